"""Which mesh axis each logical axis of a parameter or a batch lies on."""

from __future__ import annotations

from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from empathax.errors import ConfigError, raise_all

# First match wins; a logical axis without a rule is replicated. Fully sharded data parallelism splits the model
# dimension, tensor parallelism the dimension that a matmul leaves or enters with.
RULES: tuple[tuple[str, str], ...] = (
    ("embed", "fsdp"),
    ("vocab", "tensor"),
    ("heads", "tensor"),
    ("kv_heads", "tensor"),
    ("ff", "tensor"),
)
BATCH_AXES = ("data", "fsdp")


def spec_for(axes: tuple[str | None, ...]) -> PartitionSpec:
    """The mesh axes of a parameter with logical `axes`; raises ConfigError if two of its dims share one."""
    table = dict(reversed(RULES))
    spec = [table.get(axis) if axis else None for axis in axes]
    used = [axis for axis in spec if axis]
    if len(set(used)) != len(used):
        raise ConfigError(f"logical axes {axes} put two dimensions on one mesh axis: {spec}")
    return PartitionSpec(*spec)


def param_shardings(mesh: Mesh, abstract_params: Any, logical_axes: Any) -> Any:
    """A NamedSharding for every parameter.

    Raises one ConfigError that names each parameter, dimension, size and mesh axis that do not divide.
    """
    problems: list[str] = []

    def shard(path: tuple[Any, ...], value: jax.ShapeDtypeStruct, axes: tuple[str | None, ...]) -> NamedSharding:
        spec = spec_for(axes)
        for dim, (size, axis) in enumerate(zip(value.shape, spec, strict=True)):
            if axis and size % mesh.shape[axis]:
                name = jax.tree_util.keystr(path, simple=True, separator="/")
                problems.append(f"{name} dim {dim} ({axes[dim]}) has size {size}, mesh axis {axis} {mesh.shape[axis]}")
        return NamedSharding(mesh, spec)

    shardings = jax.tree_util.tree_map_with_path(shard, abstract_params, logical_axes)
    raise_all(ConfigError, "the mesh does not divide the model; choose mesh sizes that divide these", problems)
    return shardings


def replicated(mesh: Mesh) -> NamedSharding:
    """The same value on every device."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh, num_leading: int = 0) -> NamedSharding:
    """Rows split over the data and fsdp axes; `num_leading` dims (accumulation) come before the rows."""
    return NamedSharding(mesh, PartitionSpec(*([None] * num_leading), BATCH_AXES))


def check_batch(mesh: Mesh, rows: int, name: str) -> None:
    """Raises ConfigError if `rows` rows cannot be split evenly over the mesh."""
    shards = mesh.shape["data"] * mesh.shape["fsdp"]
    if rows % shards:
        raise ConfigError(
            f"{name} = {rows} does not divide over data x fsdp = {shards} devices: use a multiple of {shards}"
        )
