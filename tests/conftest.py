"""Eight virtual CPU devices for every test, so that meshes can be tested anywhere."""

import gc
import os
from pathlib import Path

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import jax
import pytest

jax.config.update("jax_num_cpu_devices", 8)

_MAPS = Path("/proc/self/maps")
_MOST_MAPS = 30_000  # of the 65,530 that Linux allows a process; XLA aborts at the limit


@pytest.fixture(scope="module", autouse=True)
def _compiled_programs_are_let_go():
    """Each takes a few of a process's memory maps, and one process may run all tests."""
    yield
    if _MAPS.exists() and _MAPS.read_bytes().count(b"\n") > _MOST_MAPS:
        jax.clear_caches()
        gc.collect()
