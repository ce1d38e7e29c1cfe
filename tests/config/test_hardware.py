"""Hardware by name: slices of TPUs, nodes of GPUs, and what is said of names that are none."""

import pytest

from empathax.config.hardware import KINDS, find_kind, parse_hardware, smaller_to_larger
from empathax.errors import ConfigError


@pytest.mark.parametrize(
    ("name", "devices", "slices"),
    [
        ("v5e:4x4", 16, 1),
        ("2xv5p:4x4x4", 128, 2),
        ("v4:2x2x1", 4, 1),  # a host of v4 shows four devices
        ("tpu7x:2x2x1", 8, 1),  # and one of tpu7x two a chip
        ("h100:8", 8, 1),
        ("h100:4x8", 32, 4),
        ("cpu:3", 3, 1),
        ("cpu:2x4", 8, 2),
    ],
)
def test_names(name, devices, slices):
    found = parse_hardware(name)
    assert str(found) == name
    assert (found.num_devices, found.num_slices, found.slice_size) == (devices, slices, devices // slices)


def test_names_that_are_written_otherwise():
    assert str(parse_hardware(" 2xV5p:2x2x4")) == "2xv5p:2x2x4"
    assert parse_hardware("1xv5e:4x4") == parse_hardware("v5e:4x4")
    assert parse_hardware("h100:1x8") == parse_hardware("h100:8")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("v5:4x4", "did you mean 'v5"),
        ("h10:8", "did you mean 'h100:8'"),
        ("v9:4x4", "'v9:4x4' is not known; known: v4, v5e"),
        ("v5litepod-16", "is not known"),
        ("v5e", "written like"),
        ("v5e-16", "v5e is written like 'v5e:4x4', or like '2xv5e:4x4' for two slices"),
        ("v5e:16", "written like"),
        ("v5p:4x4", "written like"),
        ("h100", "written like 'h100:8', or like 'h100:2x8' for two nodes"),
        ("h100:a", "written like"),
        ("2xh100:8", "written like"),
        ("h100:16", "at most 8 devices side by side; more are several nodes, such as 'h100:2x8'"),
        ("v5e:32x32", "at most 256 devices side by side; more are several slices, such as '2xv5e:4x4'"),
        ("v5e:0x4", "written like"),
        ("0xv5e:4x4", "written like"),
        ("h100:0x8", "written like"),
    ],
)
def test_hardware_that_does_not_exist(name, said):
    with pytest.raises(ConfigError, match=said):
        parse_hardware(name)


def test_a_kind_that_does_not_exist():
    with pytest.raises(ConfigError, match="'h10' is not known; did you mean 'h100:8'"):
        find_kind("h10")


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_examples_are_one_and_two_of_a_kind(kind):
    one, two = map(parse_hardware, kind.examples)
    assert (one.kind, one.num_slices, two.kind, two.num_slices) == (kind, 1, kind, 2)


@pytest.mark.parametrize("kind", KINDS)
def test_a_search_goes_from_small_to_large(kind):
    sizes = [found.num_devices for found in smaller_to_larger(kind)]
    assert sizes == sorted(set(sizes))
