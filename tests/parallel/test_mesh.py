"""Mesh shapes and parameter shardings: what fits, and what is said when it does not."""

import itertools
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from empathax.config import MeshOptions
from empathax.config.mesh import parse_rules
from empathax.errors import ConfigError
from empathax.parallel.mesh import arranged, make_mesh, mesh_shape
from empathax.parallel.processes import put_batch
from empathax.parallel.rules import batch_sharding, check_batches, param_shardings, spec_for


def test_open_axis_takes_what_is_left():
    assert mesh_shape(MeshOptions(data=2, fsdp=-1, tensor=2), 8) == (2, 2, 2)
    assert mesh_shape(MeshOptions(data=1, fsdp=-1, tensor=1), 1) == (1, 1, 1)


@pytest.mark.parametrize("sizes", [(3, -1, 1), (2, 2, 1), (16, 1, 1)])
def test_mesh_that_does_not_fit_names_sizes_and_devices(sizes):
    with pytest.raises(ConfigError, match="does not fit 8 devices"):
        mesh_shape(MeshOptions(*sizes), 8)


def test_two_dims_never_share_a_mesh_axis():
    assert spec_for(("layer", "embed", "heads")) == PartitionSpec(None, "fsdp", "tensor")
    with pytest.raises(ConfigError, match="two dimensions on one mesh axis"):
        spec_for(("vocab", "ff"))


def test_rules_of_the_config_place_parameters():
    mesh = make_mesh(MeshOptions(data=2, fsdp=2, tensor=2))
    shapes = {"a": jax.ShapeDtypeStruct((8, 6), jnp.float32)}
    shardings = param_shardings(mesh, shapes, {"a": ("vocab", "embed")}, parse_rules("vocab=data+fsdp,embed="))
    assert shardings["a"].spec == PartitionSpec(("data", "fsdp"), None)


def test_rules_that_put_two_dims_on_one_axis_name_the_parameter():
    mesh = make_mesh(MeshOptions(data=1, fsdp=4, tensor=2))
    shapes = {"mlp": {"kernel": jax.ShapeDtypeStruct((8, 16), jnp.float32)}}
    with pytest.raises(ConfigError) as caught:
        param_shardings(mesh, shapes, {"mlp": {"kernel": ("embed", "ff")}}, parse_rules("embed=tensor"))
    assert "mlp/kernel dim 1 (ff) has size 16, mesh axis tensor 2, where dim 0 (embed) lies" in str(caught.value)


def test_every_indivisible_parameter_is_named():
    mesh = make_mesh(MeshOptions(data=1, fsdp=4, tensor=2))
    shapes = {"a": jax.ShapeDtypeStruct((6, 8), jnp.float32), "b": jax.ShapeDtypeStruct((8, 3), jnp.float32)}
    axes = {"a": ("embed", "ff"), "b": ("embed", "ff")}
    with pytest.raises(ConfigError) as caught:
        param_shardings(mesh, shapes, axes)
    assert "a dim 0 (embed) has size 6, mesh axis fsdp 4" in str(caught.value)
    assert "b dim 1 (ff) has size 3, mesh axis tensor 2" in str(caught.value)


def test_rows_lie_on_data_and_fsdp():
    mesh = make_mesh(MeshOptions(data=2, fsdp=2, tensor=2))
    rows = np.arange(24).reshape(1, 4, 6)
    placed = put_batch(rows, batch_sharding(mesh, num_leading=1))
    assert {shard.data.shape for shard in placed.addressable_shards} == {(1, 1, 6)}
    np.testing.assert_array_equal(placed, rows)
    check_batches(mesh, {"eval": 4, "dpo": 8})
    with pytest.raises(ConfigError, match=r"^eval.rows_per_batch = 6 and dpo.rows_per_batch = 1: .* multiple of 4$"):
        check_batches(mesh, {"eval": 6, "sft": 4, "dpo": 1})


@dataclass(frozen=True)
class Chip:
    """What jax says of a TPU chip, attached or of a topology only."""

    id: int
    coords: tuple[int, int, int]
    device_kind: str
    slice_index: int = 0
    process_index: int = 0
    core_on_chip: int = 0
    platform: str = "tpu"


def _slice(kind, *shape, slice_index=0):
    """The chips of a slice, the first coordinate running fastest, as jax lists them."""
    places = itertools.product(*map(range, reversed(shape)))
    return [Chip(i, tuple(reversed(place)), kind, slice_index) for i, place in enumerate(places)]


def _coords(grid):
    return np.array([chip.coords for chip in grid.ravel()]).reshape(*grid.shape, 3)


def test_neighbours_of_the_mesh_are_neighbours_in_the_network():
    coords = _coords(arranged(_slice("TPU v6 lite", 4, 4, 1), (1, 4, 4)))
    for axis in (1, 2):
        assert (np.abs(np.diff(coords, axis=axis)).sum(-1) == 1).all()
    ring = _coords(arranged(_slice("TPU v5 lite", 4, 4, 1), (1, 16, 1)))[0, :, 0]
    assert (np.abs(ring - np.roll(ring, 1, axis=0)).sum(-1) == 1).all()  # in list order some are four links apart
    assert len(np.unique(ring, axis=0)) == 16


def test_an_axis_takes_whole_dimensions_of_the_network():
    coords = _coords(arranged(_slice("TPU v5", 4, 4, 4), (1, 16, 4)))
    along_fsdp, along_tensor = (np.ptp(coords, axis=axis) for axis in (1, 2))
    assert (np.count_nonzero(along_fsdp, axis=-1) == 2).all()
    assert (np.count_nonzero(along_tensor, axis=-1) == 1).all()


def test_only_the_dcn_axis_leaves_a_slice():
    chips = [chip for i in (1, 0) for chip in _slice("TPU v6 lite", 2, 4, 1, slice_index=i)]
    for shape, dcn, axis in (((2, 4, 2), (2, 1, 1), 0), ((1, 8, 2), (1, 2, 1), 1)):
        index = np.vectorize(lambda chip: chip.slice_index)(arranged(chips, shape, dcn))
        halves = np.split(index, 2, axis=axis)
        assert [np.unique(half).tolist() for half in halves] == [[0], [1]]


def test_slices_that_the_sizes_do_not_mention_are_refused():
    chips = [chip for i in range(2) for chip in _slice("TPU v6 lite", 2, 2, 1, slice_index=i)]
    with pytest.raises(ConfigError, match=r"lie in 2 TPU slices: set mesh.dcn_data = 2"):
        arranged(chips, (1, 8, 1))
    with pytest.raises(ConfigError, match=r"2 x 2 slices, but the devices lie in 2"):
        arranged(chips, (2, 4, 1), (2, 2, 1))


def test_virtual_devices_stand_for_slices():
    ids = np.vectorize(lambda device: device.id)
    mesh = make_mesh(MeshOptions(data=2, fsdp=2, tensor=2, dcn_data=2))
    np.testing.assert_array_equal(ids(mesh.devices), np.arange(8).reshape(2, 2, 2))
    mesh = make_mesh(MeshOptions(data=2, fsdp=4, tensor=1, dcn_fsdp=2))  # slices: devices 0-3 and 4-7
    np.testing.assert_array_equal(ids(mesh.devices)[..., 0], [[0, 1, 4, 5], [2, 3, 6, 7]])
    with pytest.raises(ConfigError, match=r"mesh.dcn_data = 2 does not divide the 1 devices along data"):
        make_mesh(MeshOptions(data=-1, fsdp=8, dcn_data=2))


def test_processes_are_slices_where_nothing_else_is_said():
    chips = [Chip(i, (i, 0, 0), "cpu", process_index=i % 2, platform="cpu") for i in range(4)]
    grid = arranged(chips, (2, 2, 1), (2, 1, 1))
    assert [[chip.process_index for chip in row] for row in grid[..., 0]] == [[0, 0], [1, 1]]


def test_a_preset_names_the_hardware_that_is_there():
    assert dict(make_mesh(MeshOptions(preset="cpu:2x4")).shape) == {"data": 2, "fsdp": 4, "tensor": 1}
    with pytest.raises(ConfigError, match=r"'v5e:4x4' is 16 devices, but there are 8 of kind cpu"):
        make_mesh(MeshOptions(preset="v5e:4x4"))
