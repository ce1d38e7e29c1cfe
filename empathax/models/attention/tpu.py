"""Attention over prefix trees for TPUs, in Pallas: FlashAttention-2 (Dao 2023) on lists of visible blocks.

The lists lie in scalar memory before a kernel starts, so that its pipeline knows which block comes next: a block that
no query sees is neither fetched nor computed. There are three kernels: result, gradient of the queries, gradient of
keys and values.

A kernel's body is what one grid step does with one pair of blocks. The block that stays over several steps (of queries,
or of keys in `_dkv_kernel`) lies along the rows of a tile. What belongs to its tokens comes as a row, like all numbers
of a token, and is turned into a column once. Arrays of one block are named by their shape: s tokens, H head size,
L lanes; `_1s` is a row.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float

from empathax.models.attention.tree_layout import (
    MASKED,
    ScoreOptions,
    TreeLayout,
    block_lists,
    matmul,
    tile_gradient,
    tile_mask,
    tile_scores,
    visible_blocks,
)

BLOCK_SIZES = (512, 256, 128)
LANES = 128  # width of a vector register: the narrowest column
_WIDE_HEAD_BYTES = 1024  # of one token of one head; from here on smaller blocks, to stay within 16 MiB of VMEM


def block_size(num_tokens: int, head_bytes: int) -> int:
    """The largest of BLOCK_SIZES that leaves a row at least four blocks to skip some of, else the smallest."""
    largest = 256 if head_bytes >= _WIDE_HEAD_BYTES else 512
    sizes = [size for size in BLOCK_SIZES if size <= largest and num_tokens % size == 0]
    return next((size for size in sizes if num_tokens >= 4 * size), sizes[-1])


def forward(
    q_BNTH: Float[Array, "B N T H"],
    k_BKTH: Float[Array, "B K T H"],
    v_BKTH: Float[Array, "B K T H"],
    layout: TreeLayout,
    options: ScoreOptions,
) -> tuple[Float[Array, "B N T H"], Float[Array, "B N T"]]:
    """The attention's result and the float32 log-sum-exp of each query's scores."""
    B, N, T, H = q_BNTH.shape
    K, size = k_BKTH.shape[1], block_size(T, H * q_BNTH.dtype.itemsize)
    window = jnp.reshape(layout.window, 1)
    fixed, moving = _query_major_specs(size, H, N // K)
    out_BNTH, lse_BN1T = _call(
        partial(_forward_kernel, options=options, size=size),
        grid=(B, N, T // size, T // size),
        prefetched=(*block_lists(visible_blocks(layout, size, size)), window),
        inputs=[
            (q_BNTH, fixed["head"]),
            (k_BKTH, moving["head"]),
            (v_BKTH, moving["head"]),
            *_rows(layout, fixed, moving),
        ],
        outputs=[
            (jax.ShapeDtypeStruct(q_BNTH.shape, q_BNTH.dtype), fixed["head"]),
            (jax.ShapeDtypeStruct((B, N, 1, T), jnp.float32), fixed["number"]),
        ],
        scratch=[((size, H), jnp.float32), *[((size, LANES), jnp.float32)] * 2, ((size, LANES), jnp.int32)],
        matmuls=(2, q_BNTH.shape),
        interpret=options.interpret,
    )
    return out_BNTH, lse_BN1T[:, :, 0]


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
    K, size = k_BKTH.shape[1], block_size(T, H * q_BNTH.dtype.itemsize)
    visible_BIJ = visible_blocks(layout, size, size)
    window = jnp.reshape(layout.window, 1)

    def inputs(queries: dict[str, pl.BlockSpec], keys: dict[str, pl.BlockSpec]) -> list[tuple[Array, pl.BlockSpec]]:
        return [
            (q_BNTH, queries["head"]),
            (k_BKTH, keys["head"]),
            (v_BKTH, keys["head"]),
            (dout_BNTH, queries["head"]),
            (lse_BNT[:, :, None], queries["number"]),
            (delta_BNT[:, :, None], queries["number"]),
            *_rows(layout, queries, keys),
        ]

    queries, keys = _query_major_specs(size, H, N // K)
    (dq_BNTH,) = _call(
        partial(_dq_kernel, options=options, size=size),
        grid=(B, N, T // size, T // size),
        prefetched=(*block_lists(visible_BIJ), window),
        inputs=inputs(queries, keys),
        outputs=[(jax.ShapeDtypeStruct(q_BNTH.shape, q_BNTH.dtype), queries["head"])],
        scratch=[((size, H), jnp.float32), *[((size, LANES), jnp.float32)] * 2, ((size, LANES), jnp.int32)],
        matmuls=(3, q_BNTH.shape),
        interpret=options.interpret,
    )
    keys, queries = _key_major_specs(size, H, N // K)
    dk_BKTH, dv_BKTH = _call(
        partial(_dkv_kernel, options=options, size=size),
        grid=(B, K, T // size, N // K, T // size),  # the group's heads add up in the same block of keys
        prefetched=(*block_lists(visible_BIJ.swapaxes(1, 2)), window),
        inputs=inputs(queries, keys),
        outputs=[(jax.ShapeDtypeStruct(x.shape, x.dtype), keys["head"]) for x in (k_BKTH, v_BKTH)],
        scratch=[*[((size, H), jnp.float32)] * 2, *[((size, LANES), jnp.int32)] * 2],
        matmuls=(4, q_BNTH.shape),
        interpret=options.interpret,
    )
    return dq_BNTH, dk_BKTH, dv_BKTH


def _forward_kernel(
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


def _dq_kernel(
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


def _dkv_kernel(
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


def _rows(
    layout: TreeLayout, queries: dict[str, pl.BlockSpec], keys: dict[str, pl.BlockSpec]
) -> list[tuple[Array, pl.BlockSpec]]:
    """Positions of queries and of keys, and the keys' subtree_end, each [B, 1, T]."""
    positions_B1T, end_B1T = layout.positions_BT[:, None], layout.subtree_end_BT[:, None]
    return [(positions_B1T, queries["layout"]), (positions_B1T, keys["layout"]), (end_B1T, keys["layout"])]


def _query_major_specs(size: int, H: int, group: int) -> tuple[dict[str, pl.BlockSpec], dict[str, pl.BlockSpec]]:
    """Blocks of the grid (row, query head, query block, step): of its queries, and of the keys they see."""

    def fixed(b: Any, n: Any, i: Any, step: Any, blocks: Any, *_: Any) -> tuple[Any, Any, Any]:
        return b, n, i

    def moving(b: Any, n: Any, i: Any, step: Any, blocks: Any, *_: Any) -> tuple[Any, Any, Any]:
        return b, jax.lax.div(n, group), blocks[b, i, step]

    return _specs(fixed, size, H), _specs(moving, size, H)


def _key_major_specs(size: int, H: int, group: int) -> tuple[dict[str, pl.BlockSpec], dict[str, pl.BlockSpec]]:
    """Blocks of the grid (row, key head, key block, head of its group, step): of its keys, and of their queries."""

    def fixed(b: Any, k: Any, j: Any, g: Any, step: Any, blocks: Any, *_: Any) -> tuple[Any, Any, Any]:
        return b, k, j

    def moving(b: Any, k: Any, j: Any, g: Any, step: Any, blocks: Any, *_: Any) -> tuple[Any, Any, Any]:
        return b, k * group + g, blocks[b, j, step]

    return _specs(fixed, size, H), _specs(moving, size, H)


def _specs(where: Any, size: int, H: int) -> dict[str, pl.BlockSpec]:
    """Block specs of [B, heads, T, H] ("head"), [B, heads, 1, T] ("number") and [B, 1, T] ("layout") arrays."""

    def head(*indices: Any) -> tuple[Any, ...]:
        return *where(*indices), 0

    def number(*indices: Any) -> tuple[Any, ...]:
        b, n, i = where(*indices)
        return b, n, 0, i

    def layout(*indices: Any) -> tuple[Any, ...]:
        b, _, i = where(*indices)
        return b, 0, i

    return {
        "head": pl.BlockSpec((None, None, size, H), head),
        "number": pl.BlockSpec((None, None, 1, size), number),
        "layout": pl.BlockSpec((None, 1, size), layout),
    }


def _call(
    kernel: Any,
    *,
    grid: tuple[int, ...],
    prefetched: tuple[Array, ...],
    inputs: list[tuple[Array, pl.BlockSpec]],
    outputs: list[tuple[jax.ShapeDtypeStruct, pl.BlockSpec]],
    scratch: list[tuple[tuple[int, int], Any]],
    matmuls: tuple[int, tuple[int, ...]],
    interpret: bool,
) -> Any:
    arrays, in_specs = zip(*inputs, strict=True)
    shapes, out_specs = zip(*outputs, strict=True)
    num_matmuls, (B, N, T, H) = matmuls
    # steps over the blocks that one block sees, and over a group's heads, add up in scratch memory: in order
    semantics: list[Any] = ["parallel"] * 3 + ["arbitrary"] * (len(grid) - 3)
    moved = sum(x.size * x.dtype.itemsize for x in (*arrays, *shapes))
    call = pl.pallas_call(
        kernel,
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=len(prefetched),
            grid=grid,
            in_specs=in_specs,
            out_specs=out_specs,
            scratch_shapes=[pltpu.VMEM(shape, dtype) for shape, dtype in scratch],
        ),
        out_shape=shapes,
        compiler_params=pltpu.CompilerParams(dimension_semantics=semantics),
        # a causal half of the pairs: what XLA plans its collectives around
        cost_estimate=pl.CostEstimate(
            flops=num_matmuls * B * N * T * T * H, transcendentals=B * N * T * T // 2, bytes_accessed=moved
        ),
        interpret=interpret,
    )
    return call(*prefetched, *arrays)
