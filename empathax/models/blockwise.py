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

from empathax.models.tree_layout import MASKED, BlockLists, ScoreOptions, TreeLayout, block_lists, visible_blocks

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


def _mask(layout: TreeLayout, query_block: jax.Array, key_block: jax.Array, size: int) -> jax.Array:
    """[B, 1, 1, size, KEY_SIZE]: which query of the block sees which key."""
    query = query_block * size + jnp.arange(size, dtype=jnp.int32)[:, None]
    key = key_block * KEY_SIZE + jnp.arange(KEY_SIZE, dtype=jnp.int32)[None, :]
    end_Bs = _slice(layout.subtree_end_BT, key_block, KEY_SIZE, 1)
    distance = (
        _slice(layout.positions_BT, query_block, size, 1)[:, :, None]
        - _slice(layout.positions_BT, key_block, KEY_SIZE, 1)[:, None, :]
    )
    mask_Bqs = (key <= query) & (query < end_Bs[:, None, :]) & (distance < layout.window)
    return mask_Bqs[:, None, None]


def _slice(array: jax.Array, block: jax.Array, size: int, axis: int) -> jax.Array:
    return jax.lax.dynamic_slice_in_dim(array, block * size, size, axis)


def _put(array: jax.Array, value: jax.Array, block: jax.Array, size: int, axis: int) -> jax.Array:
    return jax.lax.dynamic_update_slice_in_dim(array, value.astype(array.dtype), block * size, axis)


def _add_keys(array_BKHT: jax.Array, value_BKHs: jax.Array, block: jax.Array) -> jax.Array:
    return _put(array_BKHT, _slice(array_BKHT, block, KEY_SIZE, 3) + value_BKHs, block, KEY_SIZE, 3)


def _scores(q_BKGqH: jax.Array, k_BKsH: jax.Array, mask: jax.Array, softcap: float, scale: float) -> jax.Array:
    """Masked float32 scores [B, K, G, q, s] of a block of queries and one of keys."""
    B, K, G, size, H = q_BKGqH.shape
    folded = q_BKGqH.reshape(B, K, G * size, H)  # the queries that share keys are rows of one matmul
    raw = jnp.einsum("bkrh,bksh->bkrs", folded, k_BKsH, preferred_element_type=jnp.float32) * scale
    if softcap:
        raw = softcap * jnp.tanh(raw / softcap)
    return jnp.where(mask, raw.reshape(B, K, G, size, KEY_SIZE), MASKED)


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
    lists, softcap, scale = _lists_of_all_rows(layout, size), options.softcap, options.scale

    def query_block(block: jax.Array, carry: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        out, lse = carry
        q_BKGsH = _slice(q_BKGTH, block, size, 3)

        def key_block(n: jax.Array, running: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
            top, total, acc = running
            j = lists.blocks[0, block, n]
            mask = _mask(layout, block, j, size)
            scores = _scores(q_BKGsH, _slice(k_BKTH, j, KEY_SIZE, 2), mask, softcap, scale)
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
    lists, softcap, scale = _lists_of_all_rows(layout, size), options.softcap, options.scale

    def query_block(block: jax.Array, carry: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        dq, dk_BKHT, dv_BKHT = carry
        q_s, dout_s = _slice(q_BKGTH, block, size, 3), _slice(dout, block, size, 3)
        lse_s, delta_s = _slice(lse, block, size, 3), _slice(delta, block, size, 3)
        q_flat, dout_flat = q_s.reshape(B, K, G * size, H), dout_s.reshape(B, K, G * size, H)

        def key_block(n: jax.Array, running: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
            dq_flat, dk_BKHT, dv_BKHT = running
            j = lists.blocks[0, block, n]
            k_s, v_s = _slice(k_BKTH, j, KEY_SIZE, 2), _slice(v_BKTH, j, KEY_SIZE, 2)
            scores = _scores(q_s, k_s, _mask(layout, block, j, size), softcap, scale)
            weights = jnp.exp(scores - lse_s[..., None])
            dweights = jnp.einsum("bkrh,bksh->bkrs", dout_flat, v_s, preferred_element_type=jnp.float32)
            dscores = weights * (dweights.reshape(weights.shape) - delta_s[..., None])
            if softcap:
                dscores *= 1.0 - jnp.square(jnp.maximum(scores, -softcap) / softcap)  # masked: weight 0 already
            flat = (B, K, G * size, KEY_SIZE)
            dscores = (dscores * scale).astype(q_s.dtype).reshape(flat)
            weights = weights.astype(q_s.dtype).reshape(flat)
            # heads before tokens: on the CPU backend the product in the other order takes twice as long
            into_keys = partial(jnp.einsum, "bkrs,bkrh->bkhs", preferred_element_type=jnp.float32)
            dk_BKHT = _add_keys(dk_BKHT, into_keys(dscores, q_flat), j)
            dv_BKHT = _add_keys(dv_BKHT, into_keys(weights, dout_flat), j)
            dq_flat += jnp.einsum("bkrs,bksh->bkrh", dscores, k_s, preferred_element_type=jnp.float32)
            return dq_flat, dk_BKHT, dv_BKHT

        start = (jnp.zeros((B, K, G * size, H), jnp.float32), dk_BKHT, dv_BKHT)
        dq_flat, dk_BKHT, dv_BKHT = jax.lax.fori_loop(0, lists.num_visible[0, block], key_block, start)
        return _put(dq, dq_flat.reshape(B, K, G, size, H), block, size, 3), dk_BKHT, dv_BKHT

    no_keys = jnp.zeros((B, K, H, T), jnp.float32)
    start = (jnp.zeros(q_BKGTH.shape, q_BKGTH.dtype), no_keys, no_keys)
    dq, dk_BKHT, dv_BKHT = jax.lax.fori_loop(0, T // size, query_block, start)
    dk_BKTH, dv_BKTH = dk_BKHT.swapaxes(2, 3).astype(k_BKTH.dtype), dv_BKHT.swapaxes(2, 3).astype(v_BKTH.dtype)
    return dq.reshape(B, N, T, H), dk_BKTH, dv_BKTH
