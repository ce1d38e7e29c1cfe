"""Mesh shapes and parameter shardings: what fits, and what is said when it does not."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from empathax.config import MeshOptions
from empathax.errors import ConfigError
from empathax.parallel.distributed import put_batch
from empathax.parallel.mesh import make_mesh, mesh_shape
from empathax.parallel.rules import batch_sharding, check_batch, param_shardings, spec_for


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
    check_batch(mesh, 4, "rows_per_batch")
    with pytest.raises(ConfigError, match="multiple of 4"):
        check_batch(mesh, 6, "rows_per_batch")
