"""The compilation cache: off on CPU unless a directory is given, and then a second process compiles nothing anew."""

import subprocess
import sys

import jax
import pytest

from empathax.parallel.host import use_compilation_cache

PROGRAM = """
import sys
import jax, jax.numpy as jnp
from empathax.parallel.compilation import use_compilation_cache
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)
assert use_compilation_cache(sys.argv[1]) == sys.argv[1]
hits = []
jax.monitoring.register_event_listener(lambda name, **_: hits.append(name) if name.endswith("cache_hits") else None)
jax.jit(lambda x: jnp.sin(x) @ x)(jnp.ones((8, 8)))
print(len(hits))
"""


@pytest.fixture(autouse=True)
def _unset(monkeypatch):
    before = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", None)
    yield
    jax.config.update("jax_compilation_cache_dir", before)


@pytest.mark.parametrize("setting", ["", "auto"])
def test_it_is_off_on_cpu(setting):
    assert use_compilation_cache(setting) == ""
    assert not jax.config.jax_compilation_cache_dir


def test_a_directory_that_is_set_already_stays(tmp_path):
    jax.config.update("jax_compilation_cache_dir", str(tmp_path / "mine"))
    assert use_compilation_cache(str(tmp_path / "other")) == str(tmp_path / "mine")


def test_a_second_process_finds_what_the_first_compiled(tmp_path):
    def hits():
        command = [sys.executable, "-c", PROGRAM, str(tmp_path / "cache")]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        return int(done.stdout)

    assert hits() == 0
    assert hits() > 0
