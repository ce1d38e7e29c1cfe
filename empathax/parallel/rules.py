"""Which mesh axis each logical axis of a parameter or a batch lies on."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import jax
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from empathax.config.mesh import DEFAULT_RULES, Rules
from empathax.errors import ConfigError, raise_all

BATCH_AXES = ("data", "fsdp")


def spec_for(axes: tuple[str | None, ...], rules: Rules = DEFAULT_RULES) -> PartitionSpec:
    """The mesh axes of a parameter with logical `axes`; raises ConfigError if two of its dims share one."""
    places = _places(axes, rules)
    if len(set(sum(places, ()))) != len(sum(places, ())):
        raise ConfigError(f"logical axes {axes} put two dimensions on one mesh axis: {places}")
    return PartitionSpec(*(place[0] if len(place) == 1 else place or None for place in places))


def param_shardings(
    mesh: Mesh | AbstractMesh, abstract_params: Any, logical_axes: Any, rules: Rules = DEFAULT_RULES
) -> Any:
    """A NamedSharding for every parameter, by `rules` (`config.mesh.parse_rules` of the setting mesh.rules).

    Raises one ConfigError that names each parameter, dimension, size and mesh axis that do not divide, or that two
    dimensions of one parameter share.
    """
    problems: list[str] = []

    def shard(path: tuple[Any, ...], value: jax.ShapeDtypeStruct, axes: tuple[str | None, ...]) -> NamedSharding:
        found = _misfits(mesh, value.shape, axes, _places(axes, rules))
        if found:
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            problems.extend(f"{name} {problem}" for problem in found)
            return replicated(mesh)
        return NamedSharding(mesh, spec_for(axes, rules))

    shardings = jax.tree_util.tree_map_with_path(shard, abstract_params, logical_axes)
    heading = "the mesh does not divide the model; choose mesh sizes that divide these, or other mesh.rules"
    raise_all(ConfigError, heading, problems)
    return shardings


def _places(axes: tuple[str | None, ...], rules: Rules) -> list[tuple[str, ...]]:
    return [rules.get(axis, ()) if axis else () for axis in axes]


def _misfits(
    mesh: Mesh | AbstractMesh, shape: tuple[int, ...], axes: tuple[str | None, ...], places: list[tuple[str, ...]]
) -> list[str]:
    """The dimensions that their mesh axes do not divide, or whose mesh axis an earlier dimension has."""
    problems: list[str] = []
    taken: dict[str, str] = {}
    for dim, (size, place) in enumerate(zip(shape, places, strict=True)):
        here = f"dim {dim} ({axes[dim]}) has size {size}, mesh axis"
        if size % math.prod(mesh.shape[axis] for axis in place):
            problems.append(f"{here} {' x '.join(f'{axis} {mesh.shape[axis]}' for axis in place)}")
        problems += [
            f"{here} {axis} {mesh.shape[axis]}, where dim {taken[axis]} lies" for axis in place if axis in taken
        ]
        taken |= dict.fromkeys(place, f"{dim} ({axes[dim]})")
    return problems


def replicated(mesh: Mesh | AbstractMesh) -> NamedSharding:
    """The same value on every device."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh, num_leading: int = 0) -> NamedSharding:
    """Rows split over the data and fsdp axes; `num_leading` dims (accumulation) come before the rows."""
    return NamedSharding(mesh, PartitionSpec(*([None] * num_leading), BATCH_AXES))


def check_batches(mesh: Mesh, rows: Mapping[str, int]) -> None:
    """Raises one ConfigError if rows cannot be split evenly over the mesh; `rows` are `rows_per_batch` by section."""
    shards = mesh.shape["data"] * mesh.shape["fsdp"]
    uneven = [f"{section}.rows_per_batch = {number}" for section, number in rows.items() if number % shards]
    if uneven:
        raise ConfigError(
            f"{' and '.join(uneven)}: rows that do not divide over data x fsdp = {shards} devices; use a multiple of "
            f"{shards}"
        )
