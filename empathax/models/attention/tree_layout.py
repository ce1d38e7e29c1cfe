"""Which token sees which, and what the implementations in blocks share: visible blocks, mask and scores of a tile.

The implementations differ in how they move data only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

MASKED = -1e30  # finite, so that a query whose first block is all masked does not give NaN
NO_WINDOW = jnp.iinfo(jnp.int32).max  # a traced window that hides nothing
Window = int | Int[Array, ""]


class TreeLayout(NamedTuple):
    """Which token sees which: j <= i < subtree_end[j] and, with a window, positions[i] - positions[j] < window.

    The window counts the tokens that a query sees along its own path, itself included. The int 0 switches it off; a
    traced value must be > 0 (`NO_WINDOW` hides nothing).
    """

    positions_BT: Int[Array, "B T"]
    subtree_end_BT: Int[Array, "B T"]
    window: Window = 0

    @property
    def has_window(self) -> bool:
        """False where the window is known to be off when the step is traced."""
        return not (isinstance(self.window, int) and self.window == 0)

    def traced(self) -> TreeLayout:
        """The same with the window as an array, for kernels."""
        return self._replace(window=jnp.asarray(self.window if self.has_window else NO_WINDOW, jnp.int32))


@dataclass(frozen=True)
class ScoreOptions:
    """How a kernel makes a score of q.k, known when the step is compiled."""

    scale: float
    softcap: float  # 0 = off
    has_window: bool
    interpret: bool = False  # run a Pallas kernel as plain jax operations: tests on CPU


class BlockLists(NamedTuple):
    """The blocks that each block works on: the first `num_visible` entries of a list, its last one repeated after that.

    The repetition makes a pipeline fetch nothing: the block that it is to load next is already there.
    """

    blocks: Int[Array, "B X Y"]
    num_visible: Int[Array, "B X"]  # at least 1: a token sees itself


def visible_blocks(layout: TreeLayout, query_size: int, key_size: int) -> Bool[Array, "B I J"]:
    """True where a token of query block I (of `query_size` tokens) may see one of key block J, row by row."""
    B, T = layout.subtree_end_BT.shape
    first_query_I = jnp.arange(T // query_size) * query_size
    first_key_J = jnp.arange(T // key_size) * key_size
    last_end_BJ = layout.subtree_end_BT.reshape(B, -1, key_size).max(axis=-1)
    lowest_BI = layout.positions_BT.reshape(B, -1, query_size).min(axis=-1)
    deepest_BJ = layout.positions_BT.reshape(B, -1, key_size).max(axis=-1)
    is_near_BIJ = lowest_BI[:, :, None] - deepest_BJ[:, None, :] < layout.window
    reaches_BIJ = last_end_BJ[:, None, :] > first_query_I[None, :, None]
    return reaches_BIJ & is_near_BIJ & (first_key_J[None, :] < first_query_I[:, None] + query_size)


def block_lists(visible_BXY: Bool[Array, "B X Y"]) -> BlockLists:
    """For each X the blocks Y that are visible, in order."""
    count_BX = visible_BXY.sum(axis=-1, dtype=jnp.int32)
    order_BXY = jnp.argsort(~visible_BXY, axis=-1, stable=True).astype(jnp.int32)
    entry_BXY = jnp.minimum(jnp.arange(visible_BXY.shape[-1], dtype=jnp.int32), count_BX[..., None] - 1)
    return BlockLists(jnp.take_along_axis(order_BXY, entry_BXY, axis=-1), count_BX)


def matmul(a: Array, b: Array, contract: tuple[int, int]) -> Float[Array, "x y"]:
    """a.b over one dimension of each, summed in float32; float32 factors keep all their bits."""
    precision = jax.lax.Precision.HIGHEST if a.dtype == jnp.float32 else None
    dims = (((contract[0],), (contract[1],)), ((), ()))
    return jax.lax.dot_general(a, b, dims, precision=precision, preferred_element_type=jnp.float32)


def tile_scores(raw: Float[Array, "x y"], options: ScoreOptions) -> Float[Array, "x y"]:
    """Scaled and soft-capped scores of a tile of q.k."""
    scores = raw * options.scale
    return options.softcap * jnp.tanh(scores / options.softcap) if options.softcap else scores


def tile_gradient(
    raw: Float[Array, "x y"],
    dweights: Float[Array, "x y"],
    mask: Bool[Array, "x y"],
    lse: Float[Array, "x y"],
    delta: Float[Array, "x y"],
    options: ScoreOptions,
) -> tuple[Float[Array, "x y"], Float[Array, "x y"]]:
    """The softmax weights of a tile of q.k, and the gradient of q.k from that of the weights.

    `lse` and `delta` are the queries' log-sum-exp and sum of dout x out (FlashAttention-2, algorithm 2, lines 11-14);
    they have size 1 along the keys' axis, whichever of the two that is.
    """
    scores = tile_scores(raw, options)
    weights = jnp.where(mask, jnp.exp(scores - lse), 0.0)
    dscores = weights * (dweights - delta)
    if options.softcap:
        dscores = dscores * (1.0 - jnp.square(scores / options.softcap))
    return weights, dscores * options.scale


def tile_mask(
    query_index: Int[Array, "x y"],
    key_index: Int[Array, "x y"],
    end: Int[Array, "x y"],
    distance: Int[Array, "x y"] | None,
    window: Window | None,
) -> Bool[Array, "x y"]:
    """Which query of a tile sees which key; `distance` is position of query minus key, None without a window.

    The arrays broadcast against each other: what belongs to keys may have size 1 along the queries' axis.
    """
    mask = (key_index <= query_index) & (query_index < end)
    return mask if distance is None or window is None else mask & (distance < window)
