"""Where activations lie on the mesh: rows over its axes data and fsdp, each row whole.

Left to itself the compiler takes over how the embedding is split: every device then computes a part of the model's
dimension for all rows, and passes activations, even logits, around instead of weights.
"""

from __future__ import annotations

import math

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float

from empathax.models.flash import BATCH_AXES


def split_rows(x_BTD: Float[Array, "B T D"], mesh: Mesh | None) -> Float[Array, "B T D"]:
    """`x_BTD` with its rows split over the mesh, if they divide; as it is without a mesh."""
    return _constrained(x_BTD, mesh, (BATCH_AXES, (), ()))


def split_embedded(x_BTD: Float[Array, "B T D"], mesh: Mesh | None) -> Float[Array, "B T D"]:
    """What was just looked up in the embedding, with its rows split over the mesh.

    First as the embedding's own split gives it, a part of D for the rows of all devices along fsdp, from where one
    all-to-all leads to rows; the compiler does not find that way and would gather every row on every device.
    """
    data, fsdp = BATCH_AXES
    return split_rows(_constrained(x_BTD, mesh, ((data,), (), (fsdp,))), mesh)


def _constrained(x: Array, mesh: Mesh | None, places: tuple[tuple[str, ...], ...]) -> Array:
    if mesh is None or mesh.size == 1:
        return x
    parts = [math.prod(mesh.shape[axis] for axis in place) for place in places]
    if any(size % count for size, count in zip(x.shape, parts, strict=True)):
        return x
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, PartitionSpec(*places)))
