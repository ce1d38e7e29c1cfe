"""Attention over prefix trees in blocks: memory linear in the row, blocks that no query sees skipped altogether.

The online softmax of FlashAttention (Dao et al. 2022, algorithms 1 and 4) on a block-sparse list: for each block of
queries, the key blocks that any of its tokens sees. The backward pass recomputes the scores from the saved
log-sum-exp. Plain XLA: it runs wherever jax does.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

BLOCK_SIZES = (256, 128)
_MASKED = -1e30  # finite, so that a row whose first block is all masked does not give NaN


class _Layout(NamedTuple):
    """What the mask is made of, and which blocks hold any of it."""

    subtree_end_BT: jax.Array
    positions_BT: jax.Array
    window: jax.Array
    key_blocks_IJ: jax.Array  # the key blocks that query block I sees, first `num_key_blocks_I[I]` entries
    num_key_blocks_I: jax.Array


def block_size(num_tokens: int) -> int | None:
    """The block size for rows of `num_tokens`, None if none divides it."""
    return next((size for size in BLOCK_SIZES if num_tokens % size == 0), None)


def blockwise_attention(
    q_BNTH: Float[Array, "B N T H"],
    k_BKTH: Float[Array, "B K T H"],
    v_BKTH: Float[Array, "B K T H"],
    positions_BT: Int[Array, "B T"],
    subtree_end_BT: Int[Array, "B T"],
    window: int | Int[Array, ""],
    softcap: float,
    scale: float,
) -> Float[Array, "B N T H"]:
    """The result of `models.attention.attention`, T a multiple of one of BLOCK_SIZES."""
    B, N, T, H = q_BNTH.shape
    K = k_BKTH.shape[1]
    size = block_size(T)
    if size is None:
        raise ValueError(f"rows of {T} tokens do not divide into blocks of {BLOCK_SIZES}")
    window = jnp.asarray(np.iinfo(np.int32).max if isinstance(window, int) and window == 0 else window, jnp.int32)
    layout = _layout(subtree_end_BT, positions_BT, window, size)
    q_BKGTH = q_BNTH.reshape(B, K, N // K, T, H)
    return _attend(q_BKGTH, k_BKTH, v_BKTH, layout, softcap, scale, size).reshape(B, N, T, H)


def visible_blocks(
    subtree_end_BT: Int[Array, "B T"], positions_BT: Int[Array, "B T"], window: Int[Array, ""], size: int
) -> Bool[Array, "I J"]:
    """True where a token of query block I may see one of key block J, in any row of the batch."""
    B, T = subtree_end_BT.shape
    blocks = (B, T // size, size)
    last_end_BJ = subtree_end_BT.reshape(blocks).max(axis=-1)
    depth_BIs = positions_BT.reshape(blocks)
    index_I = jnp.arange(T // size)
    reaches_BIJ = last_end_BJ[:, None, :] > (index_I * size)[None, :, None]
    near_BIJ = depth_BIs.min(axis=-1)[:, :, None] - depth_BIs.max(axis=-1)[:, None, :] < window
    return (reaches_BIJ & near_BIJ).any(axis=0) & (index_I[None, :] <= index_I[:, None])


def _layout(subtree_end_BT: jax.Array, positions_BT: jax.Array, window: jax.Array, size: int) -> _Layout:
    visible_IJ = visible_blocks(subtree_end_BT, positions_BT, window, size)
    key_blocks_IJ = jnp.argsort(~visible_IJ, axis=-1, stable=True).astype(jnp.int32)
    return _Layout(subtree_end_BT, positions_BT, window, key_blocks_IJ, visible_IJ.sum(axis=-1, dtype=jnp.int32))


def _mask(layout: _Layout, query_block: jax.Array, key_block: jax.Array, size: int) -> jax.Array:
    """[B, 1, 1, size, size]: which query of the block sees which key."""
    query = query_block * size + jnp.arange(size, dtype=jnp.int32)[:, None]
    key = key_block * size + jnp.arange(size, dtype=jnp.int32)[None, :]
    end_Bs = _slice(layout.subtree_end_BT, key_block, size, 1)
    distance = (
        _slice(layout.positions_BT, query_block, size, 1)[:, :, None]
        - _slice(layout.positions_BT, key_block, size, 1)[:, None, :]
    )
    mask_Bss = (key <= query) & (query < end_Bs[:, None, :]) & (distance < layout.window)
    return mask_Bss[:, None, None]


def _slice(array: jax.Array, block: jax.Array, size: int, axis: int) -> jax.Array:
    return jax.lax.dynamic_slice_in_dim(array, block * size, size, axis)


def _put(array: jax.Array, value: jax.Array, block: jax.Array, size: int, axis: int) -> jax.Array:
    return jax.lax.dynamic_update_slice_in_dim(array, value.astype(array.dtype), block * size, axis)


def _scores(q_BKGsH: jax.Array, k_BKsH: jax.Array, mask: jax.Array, softcap: float, scale: float) -> jax.Array:
    """Masked float32 scores [B, K, G, s, s] of one pair of blocks."""
    B, K, G, size, H = q_BKGsH.shape
    folded = q_BKGsH.reshape(B, K, G * size, H)  # the queries that share keys are rows of one matmul
    raw = jnp.einsum("bkrh,bksh->bkrs", folded, k_BKsH, preferred_element_type=jnp.float32) * scale
    if softcap:
        raw = softcap * jnp.tanh(raw / softcap)
    return jnp.where(mask, raw.reshape(B, K, G, size, size), _MASKED)


@partial(jax.custom_vjp, nondiff_argnums=(4, 5, 6))
def _attend(
    q_BKGTH: jax.Array, k_BKTH: jax.Array, v_BKTH: jax.Array, layout: _Layout, softcap: float, scale: float, size: int
) -> jax.Array:
    return _forward(q_BKGTH, k_BKTH, v_BKTH, layout, softcap, scale, size)[0]


def _forward(
    q_BKGTH: jax.Array, k_BKTH: jax.Array, v_BKTH: jax.Array, layout: _Layout, softcap: float, scale: float, size: int
) -> tuple[jax.Array, Any]:
    B, K, G, T, H = q_BKGTH.shape

    def query_block(block: jax.Array, carry: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        out, lse = carry
        q_BKGsH = _slice(q_BKGTH, block, size, 3)

        def key_block(n: jax.Array, running: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
            top, total, acc = running
            j = layout.key_blocks_IJ[block, n]
            mask = _mask(layout, block, j, size)
            scores = _scores(q_BKGsH, _slice(k_BKTH, j, size, 2), mask, softcap, scale)
            new_top = jnp.maximum(top, scores.max(axis=-1))
            weights = jnp.exp(scores - new_top[..., None])
            shrink = jnp.exp(top - new_top)
            folded = weights.astype(v_BKTH.dtype).reshape(B, K, G * size, size)
            added = jnp.einsum(
                "bkrs,bksh->bkrh", folded, _slice(v_BKTH, j, size, 2), preferred_element_type=jnp.float32
            ).reshape(B, K, G, size, H)
            return new_top, total * shrink + weights.sum(axis=-1), acc * shrink[..., None] + added

        rows = (B, K, G, size)
        start = (jnp.full(rows, _MASKED), jnp.zeros(rows, jnp.float32), jnp.zeros((*rows, H), jnp.float32))
        top, total, acc = jax.lax.fori_loop(0, layout.num_key_blocks_I[block], key_block, start)
        return _put(out, acc / total[..., None], block, size, 3), _put(lse, top + jnp.log(total), block, size, 3)

    empty = (jnp.zeros((B, K, G, T, H), q_BKGTH.dtype), jnp.zeros((B, K, G, T), jnp.float32))
    out, lse = jax.lax.fori_loop(0, T // size, query_block, empty)
    return out, (q_BKGTH, k_BKTH, v_BKTH, layout, out, lse)


def _backward(softcap: float, scale: float, size: int, residuals: Any, dout: jax.Array) -> tuple[Any, ...]:
    q_BKGTH, k_BKTH, v_BKTH, layout, out, lse = residuals
    B, K, G, T, H = q_BKGTH.shape
    # sum over keys of weight x its gradient, from the output alone (Dao et al. 2022, eq. 4)
    delta = jnp.sum(dout.astype(jnp.float32) * out.astype(jnp.float32), axis=-1)

    def query_block(block: jax.Array, carry: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        dq, dk, dv = carry
        q_s, dout_s = _slice(q_BKGTH, block, size, 3), _slice(dout, block, size, 3)
        lse_s, delta_s = _slice(lse, block, size, 3), _slice(delta, block, size, 3)
        q_flat, dout_flat = q_s.reshape(B, K, G * size, H), dout_s.reshape(B, K, G * size, H)

        def key_block(n: jax.Array, running: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
            dq_flat, dk, dv = running
            j = layout.key_blocks_IJ[block, n]
            k_s, v_s = _slice(k_BKTH, j, size, 2), _slice(v_BKTH, j, size, 2)
            scores = _scores(q_s, k_s, _mask(layout, block, j, size), softcap, scale)
            weights = jnp.exp(scores - lse_s[..., None])
            dweights = jnp.einsum("bkrh,bksh->bkrs", dout_flat, v_s, preferred_element_type=jnp.float32)
            dscores = weights * (dweights.reshape(weights.shape) - delta_s[..., None])
            if softcap:
                dscores *= 1.0 - jnp.square(jnp.maximum(scores, -softcap) / softcap)  # masked: weight 0 already
            flat = (B, K, G * size, size)
            dscores = (dscores * scale).astype(q_s.dtype).reshape(flat)
            weights = weights.astype(q_s.dtype).reshape(flat)
            into_keys = partial(jnp.einsum, "bkrs,bkrh->bksh", preferred_element_type=jnp.float32)
            dk = _put(dk, _slice(dk, j, size, 2) + into_keys(dscores, q_flat), j, size, 2)
            dv = _put(dv, _slice(dv, j, size, 2) + into_keys(weights, dout_flat), j, size, 2)
            dq_flat += jnp.einsum("bkrs,bksh->bkrh", dscores, k_s, preferred_element_type=jnp.float32)
            return dq_flat, dk, dv

        start = (jnp.zeros((B, K, G * size, H), jnp.float32), dk, dv)
        dq_flat, dk, dv = jax.lax.fori_loop(0, layout.num_key_blocks_I[block], key_block, start)
        return _put(dq, dq_flat.reshape(B, K, G, size, H), block, size, 3), dk, dv

    zeros = (
        jnp.zeros(q_BKGTH.shape, q_BKGTH.dtype),
        jnp.zeros(k_BKTH.shape, jnp.float32),
        jnp.zeros(v_BKTH.shape, jnp.float32),
    )
    dq, dk, dv = jax.lax.fori_loop(0, T // size, query_block, zeros)
    no_gradient = jax.tree.map(lambda leaf: np.zeros(leaf.shape, jax.dtypes.float0), layout)
    return dq, dk.astype(k_BKTH.dtype), dv.astype(v_BKTH.dtype), no_gradient


_attend.defvjp(_forward, _backward)
