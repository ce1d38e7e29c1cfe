"""One process or many: joining a job and leaving it, which process this is, and host arrays as global arrays."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import jax
import numpy as np
from jax._src import distributed as _jax_distributed  # the coordinator's client is not public
from jax.sharding import Mesh, NamedSharding

from empathax import sigterm
from empathax.errors import ConfigError, EmpathaxError, exit_code, unexpected

VARIABLES = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
COORDINATOR_TIMEOUT_MS = 24 * 3600 * 1000  # a live process may read its data for long; a dead one is noticed anyway
_GOODBYE_MS = 10_000  # how long a process that fails waits to hear that all others fail too


@contextmanager
def joined(is_multihost: bool) -> Iterator[None]:
    """Runs a command's work as one process of a job if `is_multihost`.

    A process that fails does not wait for the others: one that waits for it in a collective operation would wait for
    ever. jax ends them when this one is gone.
    """
    if not is_multihost:
        yield
        return
    initialize()
    try:
        yield
        _barrier(
            "done", COORDINATOR_TIMEOUT_MS
        )  # jax itself waits five minutes here, and the leader may still be writing
    except BaseException as error:
        if isinstance(error, EmpathaxError | SystemExit) and _all_fail():
            jax.distributed.shutdown()
            raise
        code = _code_of(error)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def initialize() -> None:
    """Joins the processes of a job, before any other use of jax.

    Where they are comes from JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID if set, else from what jax
    finds by itself (TPU pods, SLURM, Open MPI, Kubernetes). Raises ConfigError if it finds nothing, or not all of them.
    """
    address, count, index = (os.environ.get(name) for name in VARIABLES)
    timeout = int(os.environ.get("EMPATHAX_JOIN_SECONDS", "300"))
    try:
        if address and count and index:
            jax.distributed.initialize(address, int(count), int(index), initialization_timeout=timeout)
        else:
            jax.distributed.initialize(initialization_timeout=timeout)
    except (RuntimeError, ValueError) as error:
        raise ConfigError(
            f"--multihost: {error}; start every process by the job's launcher, or set {', '.join(VARIABLES)}"
        ) from error
    sigterm.listen_again()


def process_number() -> int:
    """This process's number, known before jax looks for devices; 0 for one alone."""
    return _jax_distributed.global_state.process_id


def num_processes() -> int:
    """How many processes the job has, known before jax looks for devices."""
    return _jax_distributed.global_state.num_processes if coordinator() else 1


def is_leader() -> bool:
    """True on process 0, the one that writes logs and reports."""
    return process_number() == 0


def coordinator() -> Any:
    """jax's client of the job's coordinator, which has a key-value store and barriers; None for a process alone."""
    return _jax_distributed.global_state.client


def rows_of_process(mesh: Mesh) -> tuple[tuple[int, ...], int]:
    """(parts, number of parts): which of the equal parts of a batch's rows this process's devices hold, in order.

    They need not be adjacent: a mesh is laid out as the network is. Processes that share a tensor axis hold the same
    parts.
    """
    num_parts = mesh.shape["data"] * mesh.shape["fsdp"]
    devices = mesh.devices.reshape(num_parts, -1)
    own = (any(device.process_index == jax.process_index() for device in row) for row in devices)
    return tuple(part for part, is_own in enumerate(own) if is_own), num_parts


def put_batch(batch: Any, sharding: NamedSharding) -> Any:
    """Puts this process's rows of `batch` (a tree of numpy arrays, see `rows_of_process`) onto the mesh as one global
    array each."""
    if jax.process_count() == 1:
        return jax.device_put(batch, sharding)
    parts, num_parts = rows_of_process(cast(Mesh, sharding.mesh))
    axis = next(axis for axis, name in enumerate(sharding.spec) if name)

    def put(value: np.ndarray) -> jax.Array:
        rows = value.shape[axis] // len(parts)
        shape = (*value.shape[:axis], rows * num_parts, *value.shape[axis + 1 :])

        def local(index: Any) -> np.ndarray:
            place = parts.index((index[axis].start or 0) // rows) * rows
            return value[(slice(None),) * axis + (slice(place, place + rows),)]

        return jax.make_array_from_callback(shape, sharding, local)

    return jax.tree.map(put, batch)


def _barrier(name: str, timeout_ms: int) -> None:
    if num_processes() > 1:
        coordinator().wait_at_barrier(f"empathax/{name}", timeout_ms)


def _all_fail() -> bool:
    """True if every process fails too, before the time is over."""
    try:
        _barrier("failed", _GOODBYE_MS)
    except RuntimeError:
        return False
    return True


def _code_of(error: BaseException) -> int:
    if isinstance(error, EmpathaxError):
        return exit_code(error)
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else 1
    return unexpected(error)
