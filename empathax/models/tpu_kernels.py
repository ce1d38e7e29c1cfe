"""The bodies of the TPU kernels of tpu_attention.py: what one grid step does with one pair of blocks.

The block that stays over several steps (of queries, or of keys in `dkv_kernel`) lies along the rows of a tile. What
belongs to its tokens comes as a row, like all numbers of a token, and is turned into a column once. Arrays of one block
are named by their shape: s tokens, H head size, L lanes; `_1s` is a row.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jaxtyping import Array

from empathax.models.tree_layout import MASKED, ScoreOptions, matmul, tile_gradient, tile_mask, tile_scores

LANES = 128  # width of a vector register: the narrowest column


def forward_kernel(
    blocks_BIJ: Any,
    count_BI: Any,
    window_1: Any,
    q_sH: Any,
    k_sH: Any,
    v_sH: Any,
    query_position_1s: Any,
    key_position_1s: Any,
    end_1s: Any,
    out_sH: Any,
    lse_1s: Any,
    acc_sH: Any,
    top_sL: Any,
    total_sL: Any,
    position_sL: Any,
    *,
    options: ScoreOptions,
    size: int,
) -> None:
    row, block, step = pl.program_id(0), pl.program_id(2), pl.program_id(3)

    @pl.when(step == 0)
    def _start() -> None:
        acc_sH[...] = jnp.zeros_like(acc_sH)
        top_sL[...] = jnp.full_like(top_sL, MASKED)
        total_sL[...] = jnp.zeros_like(total_sL)
        position_sL[...] = _column(query_position_1s[...])

    @pl.when(step < count_BI[row, block])
    def _visible() -> None:
        mask = _query_major_mask(
            block, blocks_BIJ[row, block, step], position_sL, key_position_1s, end_1s, window_1, options, size
        )
        scores = jnp.where(mask, tile_scores(matmul(q_sH[...], k_sH[...], (1, 1)), options), MASKED)
        top = top_sL[...]
        new_top = jnp.maximum(top, scores.max(axis=1, keepdims=True))
        weights, shrink = jnp.exp(scores - new_top[:, :1]), jnp.exp(top - new_top)
        top_sL[...] = new_top
        total_sL[...] = total_sL[...] * shrink + weights.sum(axis=1, keepdims=True)
        acc_sH[...] = acc_sH[...] * shrink[:, :1] + matmul(weights.astype(v_sH.dtype), v_sH[...], (1, 0))

    @pl.when(step == pl.num_programs(3) - 1)
    def _finish() -> None:
        out_sH[...] = (acc_sH[...] / total_sL[:, :1]).astype(out_sH.dtype)
        lse_1s[...] = (top_sL[...] + jnp.log(total_sL[...])).T[:1]


def dq_kernel(
    blocks_BIJ: Any,
    count_BI: Any,
    window_1: Any,
    q_sH: Any,
    k_sH: Any,
    v_sH: Any,
    dout_sH: Any,
    lse_1s: Any,
    delta_1s: Any,
    query_position_1s: Any,
    key_position_1s: Any,
    end_1s: Any,
    dq_sH: Any,
    acc_sH: Any,
    lse_sL: Any,
    delta_sL: Any,
    position_sL: Any,
    *,
    options: ScoreOptions,
    size: int,
) -> None:
    row, block, step = pl.program_id(0), pl.program_id(2), pl.program_id(3)

    @pl.when(step == 0)
    def _start() -> None:
        acc_sH[...] = jnp.zeros_like(acc_sH)
        lse_sL[...], delta_sL[...] = _column(lse_1s[...]), _column(delta_1s[...])
        position_sL[...] = _column(query_position_1s[...])

    @pl.when(step < count_BI[row, block])
    def _visible() -> None:
        mask = _query_major_mask(
            block, blocks_BIJ[row, block, step], position_sL, key_position_1s, end_1s, window_1, options, size
        )
        raw, dweights = matmul(q_sH[...], k_sH[...], (1, 1)), matmul(dout_sH[...], v_sH[...], (1, 1))
        _, draw = tile_gradient(raw, dweights, mask, lse_sL[:, :1], delta_sL[:, :1], options)
        acc_sH[...] += matmul(draw.astype(k_sH.dtype), k_sH[...], (1, 0))

    @pl.when(step == pl.num_programs(3) - 1)
    def _finish() -> None:
        dq_sH[...] = acc_sH[...].astype(dq_sH.dtype)


def dkv_kernel(
    blocks_BJI: Any,
    count_BJ: Any,
    window_1: Any,
    q_sH: Any,
    k_sH: Any,
    v_sH: Any,
    dout_sH: Any,
    lse_1s: Any,
    delta_1s: Any,
    query_position_1s: Any,
    key_position_1s: Any,
    end_1s: Any,
    dk_sH: Any,
    dv_sH: Any,
    dk_acc_sH: Any,
    dv_acc_sH: Any,
    position_sL: Any,
    end_sL: Any,
    *,
    options: ScoreOptions,
    size: int,
) -> None:
    row, block, head, step = pl.program_id(0), pl.program_id(2), pl.program_id(3), pl.program_id(4)

    @pl.when((head == 0) & (step == 0))
    def _start() -> None:
        dk_acc_sH[...] = jnp.zeros_like(dk_acc_sH)
        dv_acc_sH[...] = jnp.zeros_like(dv_acc_sH)
        position_sL[...], end_sL[...] = _column(key_position_1s[...]), _column(end_1s[...])

    @pl.when(step < count_BJ[row, block])
    def _visible() -> None:
        key = block * size + jax.lax.broadcasted_iota(jnp.int32, (size, size), 0)
        query = blocks_BJI[row, block, step] * size + jax.lax.broadcasted_iota(jnp.int32, (size, size), 1)
        distance = query_position_1s[...] - position_sL[:, :1] if options.has_window else None
        mask = tile_mask(query, key, end_sL[:, :1], distance, window_1[0])
        raw, dweights = matmul(k_sH[...], q_sH[...], (1, 1)), matmul(v_sH[...], dout_sH[...], (1, 1))
        weights, draw = tile_gradient(raw, dweights, mask, lse_1s[...], delta_1s[...], options)
        dv_acc_sH[...] += matmul(weights.astype(dout_sH.dtype), dout_sH[...], (1, 0))
        dk_acc_sH[...] += matmul(draw.astype(q_sH.dtype), q_sH[...], (1, 0))

    @pl.when((head == pl.num_programs(3) - 1) & (step == pl.num_programs(4) - 1))
    def _finish() -> None:
        dk_sH[...] = dk_acc_sH[...].astype(dk_sH.dtype)
        dv_sH[...] = dv_acc_sH[...].astype(dv_sH.dtype)


def _column(row_1s: Array) -> Array:
    """[1, s] as [s, lanes], the same value in every lane."""
    return jnp.broadcast_to(row_1s, (LANES, row_1s.shape[1])).T


def _query_major_mask(
    query_block: Array,
    key_block: Array,
    query_position_sL: Any,
    key_position_1s: Any,
    end_1s: Any,
    window_1: Any,
    options: ScoreOptions,
    size: int,
) -> Array:
    query = query_block * size + jax.lax.broadcasted_iota(jnp.int32, (size, size), 0)
    key = key_block * size + jax.lax.broadcasted_iota(jnp.int32, (size, size), 1)
    distance = query_position_sL[:, :1] - key_position_1s[...] if options.has_window else None
    return tile_mask(query, key, end_1s[...], distance, window_1[0])
