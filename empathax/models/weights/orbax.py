"""Trees of arrays as Orbax stores them: read into any layout, one by one, or written."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, cast

import jax
import orbax.checkpoint as ocp

from empathax.models.weights.digests import leaf_name

_CHUNK_BYTES = 16 << 20  # of converted parameters: what is read at once, whatever part of it is wanted
_LARGEST_ITEM = 4  # bytes of a float32
_UNLIMITED_GB = 96.0  # as good as none: Orbax's own


def read_arrays(place: Path, like: Any) -> Any:
    """The arrays of the item in directory `place`, in the shapes, dtypes and shardings of `like`.

    Each device reads its part. Raises what Orbax raises for another tree, other shapes or unreadable files.
    """
    wanted = abstract(like)
    try:
        return _restore(place, wanted, _in_flight_gb(wanted))
    except ValueError as error:
        if "Requested more bytes" not in str(error):
            raise
        return _restore(place, wanted, _UNLIMITED_GB)  # chunks that are larger than what a device wants of them


def read_leaf(place: Path, name: str) -> Any:
    """The item in `place` with one array, `name`, on one device; the others are left out."""
    one_device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])

    def chosen(path: tuple[Any, ...], leaf: Any) -> Any:
        if leaf_name(path) != name:
            return ocp.PLACEHOLDER
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=one_device)

    tree = jax.tree_util.tree_map_with_path(chosen, stored_leaves(place))
    wanted = ocp.args.PyTreeRestore(item=tree, restore_args=ocp.checkpoint_utils.construct_restore_args(tree))
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
        found = jax.tree_util.tree_leaves_with_path(reader.restore(place, args=wanted))
    return next(leaf for path, leaf in found if leaf_name(path) == name)


def _restore(place: Path, wanted: Any, in_flight_gb: float) -> Any:
    handler = ocp.StandardCheckpointHandler(restore_concurrent_gb=cast(Any, in_flight_gb))  # a fraction will do
    with ocp.Checkpointer(handler) as reader:
        return reader.restore(place, args=ocp.args.StandardRestore(wanted))


def _in_flight_gb(wanted: Any) -> float:
    """How much may be on its way to the devices: a few of the largest shards, not everything at once."""
    sizes = (
        math.prod(leaf.sharding.shard_shape(leaf.shape) if leaf.sharding else leaf.shape) * _LARGEST_ITEM
        for leaf in jax.tree.leaves(wanted)
    )
    return max(_CHUNK_BYTES * 8, 2 * max(sizes)) / 1e9


def write_arrays(place: Path, tree: Any) -> None:
    """Writes the item in directory `place`, in small chunks. Raises OSError if the disk refuses."""
    chunks = jax.tree.map(lambda _: ocp.SaveArgs(chunk_byte_size=_CHUNK_BYTES), tree)
    with ocp.Checkpointer(ocp.StandardCheckpointHandler()) as writer:
        writer.save(Path(place).absolute(), args=ocp.args.StandardSave(tree, save_args=chunks))


def stored_leaves(place: Path) -> Any:
    """The tree that the item in directory `place` holds, with shapes and dtypes for leaves; reads no arrays."""
    # a Checkpointer would look for a whole checkpoint's metadata here, and warn that there is none
    return ocp.StandardCheckpointHandler().metadata(place).tree


def abstract(tree: Any) -> Any:
    """Shapes, dtypes and shardings of a tree of arrays."""

    def leaf(value: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(value.shape, value.dtype, sharding=getattr(value, "sharding", None))

    return jax.tree.map(leaf, tree)
