"""Huge pages: a command that re-executes itself keeps its arguments, its process and what the user has set.

The compilation cache: off on CPU unless a directory is given, and then a second process compiles nothing anew.
"""

import os
import subprocess
import sys

import jax
import pytest

from empathax.parallel.host import use_compilation_cache

RESTART = """
import os, sys
from empathax.parallel.host import restart_with_huge_pages
if os.environ.get("FIRST_PID") is None:
    os.environ["FIRST_PID"] = str(os.getpid())
restart_with_huge_pages()
print(os.environ["GLIBC_TUNABLES"], os.environ["FIRST_PID"] == str(os.getpid()), "jax" in sys.modules, sys.argv[1:])
"""
CACHED = """
import sys
import jax, jax.numpy as jnp
from empathax.parallel.host import use_compilation_cache
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)
assert use_compilation_cache(sys.argv[1]) == sys.argv[1]
hits = []
jax.monitoring.register_event_listener(lambda name, **_: hits.append(name) if name.endswith("cache_hits") else None)
jax.jit(lambda x: jnp.sin(x) @ x)(jnp.ones((8, 8)))
print(len(hits))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's setting")
@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("", "glibc.malloc.hugetlb=1"),
        ("glibc.malloc.hugetlb=0", "glibc.malloc.hugetlb=0"),
        ("glibc.malloc.perturb=7", "glibc.malloc.perturb=7:glibc.malloc.hugetlb=1"),
    ],
)
def test_a_command_restarts_once_before_it_imports_jax(before, after):
    environment = {name: value for name, value in os.environ.items() if name != "GLIBC_TUNABLES"}
    environment |= {"GLIBC_TUNABLES": before} if before else {}
    command = [sys.executable, "-c", RESTART, "--a=1 2", "b"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment)
    assert done.stdout.strip() == f"{after} True False ['--a=1 2', 'b']", done.stderr


@pytest.fixture
def _no_cache():
    before = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", None)
    yield
    jax.config.update("jax_compilation_cache_dir", before)


@pytest.mark.usefixtures("_no_cache")
@pytest.mark.parametrize("setting", ["", "auto"])
def test_the_cache_is_off_on_cpu(setting):
    assert use_compilation_cache(setting) == ""
    assert not jax.config.jax_compilation_cache_dir


@pytest.mark.usefixtures("_no_cache")
def test_a_directory_that_is_set_already_stays(tmp_path):
    jax.config.update("jax_compilation_cache_dir", str(tmp_path / "mine"))
    assert use_compilation_cache(str(tmp_path / "other")) == str(tmp_path / "mine")


def test_a_second_process_finds_what_the_first_compiled(tmp_path):
    def hits():
        command = [sys.executable, "-c", CACHED, str(tmp_path / "cache")]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        return int(done.stdout)

    assert hits() == 0
    assert hits() > 0
