"""One process or many: finding each other, who leads, host arrays to global arrays."""

from __future__ import annotations

import os
from typing import Any

import jax
import numpy as np
from jax.sharding import Sharding

from empathax.errors import ConfigError


def initialize() -> None:
    """Joins the processes of a job, before any other use of jax.

    Where they are comes from JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID if set, else from what jax
    finds by itself (TPU pods, SLURM, Open MPI, Kubernetes). Raises ConfigError if it finds nothing.
    """
    names = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
    address, count, index = (os.environ.get(name) for name in names)
    try:
        if address and count and index:
            jax.distributed.initialize(address, int(count), int(index))
        else:
            jax.distributed.initialize()
    except (RuntimeError, ValueError) as error:
        raise ConfigError(f"--multihost: {error}; start every process by the job's launcher, or set {names}") from error


def is_leader() -> bool:
    """True on the one process that writes logs and reports."""
    return jax.process_index() == 0


def put_batch(batch: Any, sharding: Sharding) -> Any:
    """Puts this process's rows of `batch` (a tree of numpy arrays) onto the mesh as one global array each."""

    def put(value: np.ndarray) -> jax.Array:
        if jax.process_count() == 1:
            return jax.device_put(value, sharding)
        return jax.make_array_from_process_local_data(sharding, value)

    return jax.tree.map(put, batch)
