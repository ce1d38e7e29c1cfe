"""What is said where hardware cannot be compiled for, and the environment of the process that compiles."""

import importlib.util

import pytest

from empathax.config.hardware import KINDS
from empathax.errors import ConfigError
from empathax.planning import topology
from empathax.planning.topology import child_environment


@pytest.mark.parametrize(
    ("kind", "missing", "install"),
    [
        ("v5e", "libtpu", r"pip install -e '\.\[plan\]'"),
        ("h100", "jax_plugins.xla_cuda12", r"jax\[cuda12-local\]"),
        ("a100", "nvidia.cuda_nvcc", "nvidia-cuda-nvcc-cu12"),
    ],
)
def test_a_missing_compiler_says_what_to_install(monkeypatch, kind, missing, install):
    found = importlib.util.find_spec("json")
    monkeypatch.setattr(
        topology.importlib.util, "find_spec", lambda name: None if name == missing else found
    )  # all but one are there
    with pytest.raises(ConfigError, match=f"{missing} is not installed.*{install}"):
        child_environment(KINDS[kind], 8, {})


def test_the_child_keeps_compiler_flags_and_leaves_accelerators_alone():
    environment = child_environment(KINDS["cpu"], 3, {"XLA_FLAGS": "--mine", "JAX_PLATFORMS": "cuda"})
    assert environment["XLA_FLAGS"] == "--mine"
    assert environment["JAX_PLATFORMS"] == "cpu"
    assert environment["JAX_NUM_CPU_DEVICES"] == "3"
