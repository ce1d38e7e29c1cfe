"""Attention over prefix trees in blocks: memory linear in the row, blocks that no query sees skipped altogether.

The online softmax of FlashAttention (Dao et al. 2022, algorithms 1 and 4) on a block-sparse list: for each block of
queries, the key blocks that any of its tokens sees. The backward pass recomputes the scores from the saved
log-sum-exp. Plain XLA: it runs wherever jax does.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from empathax.models.attention.tree_layout import (
    MASKED,
    BlockLists,
    ScoreOptions,
    TreeLayout,
    block_lists,
    tile_gradient,
    tile_mask,
    tile_scores,
    visible_blocks,
)

QUERY_SIZES = (256, 128)  # tokens of a block of queries, by what divides the row
KEY_SIZE = 128


def block_size(num_tokens: int) -> int | None:
    """Queries in a block of rows of `num_tokens`, None if such rows do not divide into blocks."""
    return next((size for size in QUERY_SIZES if num_tokens % size == 0), None)


def _required_size(num_tokens: int) -> int:
    size = block_size(num_tokens)
    if size is None:
        raise ValueError(f"rows of {num_tokens} tokens do not divide into blocks of {QUERY_SIZES}")
    return size


def _lists_of_all_rows(layout: TreeLayout, size: int) -> BlockLists:
    """One list for the whole batch: XLA's loops run over all rows at once."""
    return block_lists(visible_blocks(layout, size, KEY_SIZE).any(axis=0, keepdims=True))


def _mask(layout: TreeLayout, query_block: Array, key_block: Array, size: int, options: ScoreOptions) -> Array:
    """[B, 1, 1, size, KEY_SIZE]: which query of the block sees which key."""
    query = query_block * size + jnp.arange(size, dtype=jnp.int32)[:, None]
    key = key_block * KEY_SIZE + jnp.arange(KEY_SIZE, dtype=jnp.int32)[None, :]
    end_B1s = _slice(layout.subtree_end_BT, key_block, KEY_SIZE, 1)[:, None, :]
    distance = None
    if options.has_window:
        query_position_Bq = _slice(layout.positions_BT, query_block, size, 1)
        distance = query_position_Bq[:, :, None] - _slice(layout.positions_BT, key_block, KEY_SIZE, 1)[:, None, :]
    return tile_mask(query, key, end_B1s, distance, layout.window)[:, None, None]


def _slice(array: Array, block: Array, size: int, axis: int) -> Array:
    return jax.lax.dynamic_slice_in_dim(array, block * size, size, axis)


def _put(array: Array, value: Array, block: Array, size: int, axis: int) -> Array:
    return jax.lax.dynamic_update_slice_in_dim(array, value.astype(array.dtype), block * size, axis)


def _add_keys(array_BKHT: Array, value_BKHs: Array, block: Array) -> Array:
    return _put(array_BKHT, _slice(array_BKHT, block, KEY_SIZE, 3) + value_BKHs, block, KEY_SIZE, 3)


def _raw(rows_BKrH: Array, keys_BKsH: Array, group: int) -> Array:
    """Float32 products of a block of queries, G x size of them, with one of keys: [B, K, G, size, KEY_SIZE]."""
    # the queries that share keys are rows of one matmul
    raw = jnp.einsum("bkrh,bksh->bkrs", rows_BKrH, keys_BKsH, preferred_element_type=jnp.float32)
    return raw.reshape(*raw.shape[:2], group, -1, KEY_SIZE)


def forward(
    q_BNTH: Float[Array, "B N T H"],
    k_BKTH: Float[Array, "B K T H"],
    v_BKTH: Float[Array, "B K T H"],
    layout: TreeLayout,
    options: ScoreOptions,
) -> tuple[Float[Array, "B N T H"], Float[Array, "B N T"]]:
    """The attention's result and the float32 log-sum-exp of each query's scores."""
    B, N, T, H = q_BNTH.shape
    K = k_BKTH.shape[1]
    G, size = N // K, _required_size(T)
    q_BKGTH = q_BNTH.reshape(B, K, G, T, H)
    lists = _lists_of_all_rows(layout, size)

    def query_block(block: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        out, lse = carry
        q_flat = _slice(q_BKGTH, block, size, 3).reshape(B, K, G * size, H)

        def key_block(n: Array, running: tuple[Array, ...]) -> tuple[Array, ...]:
            top, total, acc = running
            j = lists.blocks[0, block, n]
            raw = _raw(q_flat, _slice(k_BKTH, j, KEY_SIZE, 2), G)
            scores = jnp.where(_mask(layout, block, j, size, options), tile_scores(raw, options), MASKED)
            new_top = jnp.maximum(top, scores.max(axis=-1))
            weights = jnp.exp(scores - new_top[..., None])
            shrink = jnp.exp(top - new_top)
            folded = weights.astype(v_BKTH.dtype).reshape(B, K, G * size, KEY_SIZE)
            added = jnp.einsum(
                "bkrs,bksh->bkrh", folded, _slice(v_BKTH, j, KEY_SIZE, 2), preferred_element_type=jnp.float32
            ).reshape(B, K, G, size, H)
            return new_top, total * shrink + weights.sum(axis=-1), acc * shrink[..., None] + added

        rows = (B, K, G, size)
        start = (jnp.full(rows, MASKED), jnp.zeros(rows, jnp.float32), jnp.zeros((*rows, H), jnp.float32))
        top, total, acc = jax.lax.fori_loop(0, lists.num_visible[0, block], key_block, start)
        return _put(out, acc / total[..., None], block, size, 3), _put(lse, top + jnp.log(total), block, size, 3)

    empty = (jnp.zeros((B, K, G, T, H), q_BKGTH.dtype), jnp.zeros((B, K, G, T), jnp.float32))
    out, lse = jax.lax.fori_loop(0, T // size, query_block, empty)
    return out.reshape(B, N, T, H), lse.reshape(B, N, T)


def backward(
    q_BNTH: Float[Array, "B N T H"],
    k_BKTH: Float[Array, "B K T H"],
    v_BKTH: Float[Array, "B K T H"],
    layout: TreeLayout,
    lse_BNT: Float[Array, "B N T"],
    delta_BNT: Float[Array, "B N T"],
    dout_BNTH: Float[Array, "B N T H"],
    options: ScoreOptions,
) -> tuple[Float[Array, "B N T H"], Float[Array, "B K T H"], Float[Array, "B K T H"]]:
    """The gradients of q, k and v; `delta` is the sum of dout x out over each head (see flash.py)."""
    B, N, T, H = q_BNTH.shape
    K = k_BKTH.shape[1]
    G, size = N // K, _required_size(T)
    q_BKGTH, dout = (array.reshape(B, K, G, T, H) for array in (q_BNTH, dout_BNTH))
    lse, delta = (array.reshape(B, K, G, T) for array in (lse_BNT, delta_BNT))
    lists = _lists_of_all_rows(layout, size)

    def query_block(block: Array, carry: tuple[Array, ...]) -> tuple[Array, ...]:
        dq, dk_BKHT, dv_BKHT = carry
        q_flat, dout_flat = (_slice(x, block, size, 3).reshape(B, K, G * size, H) for x in (q_BKGTH, dout))
        lse_s, delta_s = _slice(lse, block, size, 3), _slice(delta, block, size, 3)

        def key_block(n: Array, running: tuple[Array, ...]) -> tuple[Array, ...]:
            dq_flat, dk_BKHT, dv_BKHT = running
            j = lists.blocks[0, block, n]
            k_s, v_s = _slice(k_BKTH, j, KEY_SIZE, 2), _slice(v_BKTH, j, KEY_SIZE, 2)
            raw, dweights = _raw(q_flat, k_s, G), _raw(dout_flat, v_s, G)
            mask = _mask(layout, block, j, size, options)
            tile = tile_gradient(raw, dweights, mask, lse_s[..., None], delta_s[..., None], options)
            weights, draw = (x.astype(q_flat.dtype).reshape(B, K, G * size, KEY_SIZE) for x in tile)
            # heads before tokens: on the CPU backend the product in the other order takes twice as long
            into_keys = partial(jnp.einsum, "bkrs,bkrh->bkhs", preferred_element_type=jnp.float32)
            dk_BKHT = _add_keys(dk_BKHT, into_keys(draw, q_flat), j)
            dv_BKHT = _add_keys(dv_BKHT, into_keys(weights, dout_flat), j)
            dq_flat += jnp.einsum("bkrs,bksh->bkrh", draw, k_s, preferred_element_type=jnp.float32)
            return dq_flat, dk_BKHT, dv_BKHT

        start = (jnp.zeros((B, K, G * size, H), jnp.float32), dk_BKHT, dv_BKHT)
        dq_flat, dk_BKHT, dv_BKHT = jax.lax.fori_loop(0, lists.num_visible[0, block], key_block, start)
        return _put(dq, dq_flat.reshape(B, K, G, size, H), block, size, 3), dk_BKHT, dv_BKHT

    no_keys = jnp.zeros((B, K, H, T), jnp.float32)
    start = (jnp.zeros(q_BKGTH.shape, q_BKGTH.dtype), no_keys, no_keys)
    dq, dk_BKHT, dv_BKHT = jax.lax.fori_loop(0, T // size, query_block, start)
    dk_BKTH, dv_BKTH = dk_BKHT.swapaxes(2, 3).astype(k_BKTH.dtype), dv_BKHT.swapaxes(2, 3).astype(v_BKTH.dtype)
    return dq.reshape(B, N, T, H), dk_BKTH, dv_BKTH
