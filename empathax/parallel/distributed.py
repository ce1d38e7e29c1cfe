"""Host arrays to global arrays, on one process or many."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
from jax.sharding import Sharding


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
