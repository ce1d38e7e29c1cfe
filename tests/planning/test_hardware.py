"""Topologies as they are written, and what is said where they cannot be compiled for."""

import importlib.util

import pytest

from empathax.errors import ConfigError
from empathax.planning import topology
from empathax.planning.hardware import HARDWARE, parse_topology, smaller_to_larger
from empathax.planning.topology import child_environment


@pytest.mark.parametrize(
    ("text", "devices"),
    [("v5e:4x4", 16), ("v5p:4x4x4", 64), ("v4:2x2x1", 8), ("h100:8", 8), ("h100:2x8", 16), ("cpu:3", 3)],
)
def test_topologies(text, devices):
    found = parse_topology(text)
    assert (str(found), found.num_devices) == (text, devices)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("v5e", "expected a shape of 2 numbers"),
        ("v5p:4x4", "expected a shape of 3 numbers"),
        ("v5e:4x0", "expected a shape"),
        ("h100:a", "expected a shape of 1 or 2 numbers"),
        ("v9:4x4", "'v9' is no known hardware"),
    ],
)
def test_bad_topologies_say_what_is_expected(text, reason):
    with pytest.raises(ConfigError, match=reason):
        parse_topology(text)


def test_a_step_over_nodes_sends_at_the_speed_of_the_network_card():
    assert parse_topology("h100:2x8").link_bandwidth < parse_topology("h100:1x8").link_bandwidth
    assert parse_topology("h100:1x8").link_bandwidth == parse_topology("h100:8").link_bandwidth


@pytest.mark.parametrize("kind", HARDWARE)
def test_a_search_goes_from_small_to_large(kind):
    sizes = [found.num_devices for found in smaller_to_larger(kind)]
    assert sizes == sorted(set(sizes))


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
        child_environment(HARDWARE[kind], 8, {})


def test_the_child_keeps_compiler_flags_and_leaves_accelerators_alone():
    environment = child_environment(HARDWARE["cpu"], 3, {"XLA_FLAGS": "--mine", "JAX_PLATFORMS": "cuda"})
    assert environment["XLA_FLAGS"] == "--mine"
    assert environment["JAX_PLATFORMS"] == "cpu"
    assert environment["JAX_NUM_CPU_DEVICES"] == "3"
