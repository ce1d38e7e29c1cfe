"""Attention over prefix trees for GPUs, in Pallas on Triton: FlashAttention-2 (Dao 2023) on lists of visible blocks.

One program per block of queries (result, gradient of the queries) or of keys (their gradient and the values'). It
loops over the blocks that its own can see, as many as there are, and holds its sums in registers.

Pallas offers two GPU back ends. Mosaic GPU has to be written for one generation of tensor cores (Hopper's wgmma,
Blackwell's tcgen05); Triton runs on all from Ampere on. jax calls its Triton back end deprecated since 0.11 and still
has it in 0.12 (with a DeprecationWarning): should it go, "auto" falls back to the portable "blockwise".
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu
from jaxtyping import Array, Float

from empathax.models.attention.tree_layout import (
    MASKED,
    BlockLists,
    ScoreOptions,
    TreeLayout,
    block_lists,
    matmul,
    tile_gradient,
    tile_mask,
    tile_scores,
    visible_blocks,
)


class Tile(NamedTuple):
    """How a kernel is cut: tokens of a block of queries and of keys, warps of a program, blocks loaded ahead."""

    queries: int
    keys: int
    num_warps: int
    num_stages: int = 2

    @property
    def sizes(self) -> tuple[int, int]:
        """(queries, keys)."""
        return self.queries, self.keys


class Tiles(NamedTuple):
    """The tile of each of the three kernels."""

    forward: Tile
    dq: Tile
    dkv: Tile


def best_tiles(head_dim: int, itemsize: int) -> Tiles:
    """What runs fastest of what fits a multiprocessor's registers and shared memory.

    Measured on an H200 for heads of 64 and 128 numbers in bfloat16 (tests/benchmarks/gpu, part attention_tiles): 64
    queries are what four warps multiply at once, and eight warps on so few take twice as long. Float32 has no tensor
    cores to feed (its matmuls keep all bits): small tiles, which also compile in seconds.
    """
    if itemsize > 2:
        num_warps = 4 if head_dim <= 64 else 8
        small = Tile(32, 32, num_warps)
        return Tiles(Tile(64, 32, num_warps) if head_dim <= 128 else small, small, small)
    if head_dim <= 128:
        square = Tile(64, 64, 4)
        return Tiles(square, square, square._replace(num_stages=3) if head_dim <= 64 else square)
    return Tiles(Tile(64, 64, 8), *[Tile(32, 64, 8)] * 2)


def forward(
    q_BNTH: Float[Array, "B N T H"],
    k_BKTH: Float[Array, "B K T H"],
    v_BKTH: Float[Array, "B K T H"],
    layout: TreeLayout,
    options: ScoreOptions,
    tiles: Tiles | None = None,
) -> tuple[Float[Array, "B N T H"], Float[Array, "B N T"]]:
    """The attention's result and the float32 log-sum-exp of each query's scores; `tiles` None takes `best_tiles`."""
    B, N, T, H = q_BNTH.shape
    tile = (tiles or best_tiles(H, q_BNTH.dtype.itemsize)).forward
    lists = block_lists(visible_blocks(layout, *tile.sizes))
    out_shapes = (
        jax.ShapeDtypeStruct(q_BNTH.shape, q_BNTH.dtype),
        jax.ShapeDtypeStruct((B, N, T), jnp.float32),
    )
    kernel = partial(_forward_kernel, options=options, sizes=tile.sizes, group=N // k_BKTH.shape[1])
    run = _call(kernel, (T // tile.queries, N, B), out_shapes, tile, options.interpret)
    return run(*_layout_arrays(lists, layout), q_BNTH, k_BKTH, v_BKTH)


def backward(
    q_BNTH: Float[Array, "B N T H"],
    k_BKTH: Float[Array, "B K T H"],
    v_BKTH: Float[Array, "B K T H"],
    layout: TreeLayout,
    lse_BNT: Float[Array, "B N T"],
    delta_BNT: Float[Array, "B N T"],
    dout_BNTH: Float[Array, "B N T H"],
    options: ScoreOptions,
    tiles: Tiles | None = None,
) -> tuple[Float[Array, "B N T H"], Float[Array, "B K T H"], Float[Array, "B K T H"]]:
    """The gradients of q, k and v; `delta` is the sum of dout x out over each head (see flash.py)."""
    B, N, T, H = q_BNTH.shape
    K = k_BKTH.shape[1]
    _, dq, dkv = tiles or best_tiles(H, q_BNTH.dtype.itemsize)
    arrays = (q_BNTH, k_BKTH, v_BKTH, dout_BNTH, lse_BNT, delta_BNT)
    dq_shape = jax.ShapeDtypeStruct(q_BNTH.shape, q_BNTH.dtype)
    kernel = partial(_dq_kernel, options=options, sizes=dq.sizes, group=N // K)
    run = _call(kernel, (T // dq.queries, N, B), dq_shape, dq, options.interpret)
    lists = block_lists(visible_blocks(layout, *dq.sizes))
    dq_BNTH = run(*_layout_arrays(lists, layout), *arrays)
    # a key head's gradient from each of its query heads by itself: the blocks that all see, a dialogue's beginning,
    # would keep one program busy long after the others
    kernel = partial(_dkv_kernel, options=options, sizes=dkv.sizes, group=N // K)
    run = _call(kernel, (T // dkv.keys, N, B), (dq_shape, dq_shape), dkv, options.interpret)
    lists = block_lists(visible_blocks(layout, *dkv.sizes).swapaxes(1, 2))
    dk_BNTH, dv_BNTH = run(*_layout_arrays(lists, layout), *arrays)
    return dq_BNTH, _sum_groups(dk_BNTH, k_BKTH), _sum_groups(dv_BNTH, v_BKTH)


def _sum_groups(grad_BNTH: Array, like_BKTH: Array) -> Array:
    """The sum over the query heads that share a key head, in float32, in the shape and dtype of `like_BKTH`."""
    B, K, T, H = like_BKTH.shape
    return grad_BNTH.reshape(B, K, -1, T, H).sum(axis=2, dtype=jnp.float32).astype(like_BKTH.dtype)


def _forward_kernel(
    blocks_BIJ: Any,
    count_BI: Any,
    window_1: Any,
    positions_BT: Any,
    end_BT: Any,
    q_BNTH: Any,
    k_BKTH: Any,
    v_BKTH: Any,
    out_BNTH: Any,
    lse_BNT: Any,
    *,
    options: ScoreOptions,
    sizes: tuple[int, int],
    group: int,
) -> None:
    block, head, row = (pl.program_id(axis) for axis in range(3))
    kv_head = jax.lax.div(head, group)
    queries = pl.ds(block * sizes[0], sizes[0])
    q_sH = q_BNTH[row, head, queries, :]

    def key_block(step: Array, running: tuple[Array, ...]) -> tuple[Array, ...]:
        top_s, total_s, acc_sH = running
        j = blocks_BIJ[row, block, step]
        keys = pl.ds(j * sizes[1], sizes[1])
        k_sH, v_sH = k_BKTH[row, kv_head, keys, :], v_BKTH[row, kv_head, keys, :]
        mask = _mask(block, j, row, positions_BT, end_BT, window_1, options, sizes)
        scores = jnp.where(mask, tile_scores(matmul(q_sH, k_sH, (1, 1)), options), MASKED)
        new_top_s = jnp.maximum(top_s, scores.max(axis=1))
        weights, shrink_s = jnp.exp(scores - new_top_s[:, None]), jnp.exp(top_s - new_top_s)
        added = matmul(weights.astype(v_sH.dtype), v_sH, (1, 0))
        return new_top_s, total_s * shrink_s + weights.sum(axis=1), acc_sH * shrink_s[:, None] + added

    start = (
        jnp.full(sizes[0], MASKED, jnp.float32),
        jnp.zeros(sizes[0], jnp.float32),
        jnp.zeros(q_sH.shape, jnp.float32),
    )
    top_s, total_s, acc_sH = jax.lax.fori_loop(0, count_BI[row, block], key_block, start)
    out_BNTH[row, head, queries, :] = (acc_sH / total_s[:, None]).astype(out_BNTH.dtype)
    lse_BNT[row, head, queries] = top_s + jnp.log(total_s)


def _dq_kernel(
    blocks_BIJ: Any,
    count_BI: Any,
    window_1: Any,
    positions_BT: Any,
    end_BT: Any,
    q_BNTH: Any,
    k_BKTH: Any,
    v_BKTH: Any,
    dout_BNTH: Any,
    lse_BNT: Any,
    delta_BNT: Any,
    dq_BNTH: Any,
    *,
    options: ScoreOptions,
    sizes: tuple[int, int],
    group: int,
) -> None:
    block, head, row = (pl.program_id(axis) for axis in range(3))
    kv_head = jax.lax.div(head, group)
    queries = pl.ds(block * sizes[0], sizes[0])
    q_sH, dout_sH = q_BNTH[row, head, queries, :], dout_BNTH[row, head, queries, :]
    lse_s, delta_s = lse_BNT[row, head, queries], delta_BNT[row, head, queries]

    def key_block(step: Array, dq_sH: Array) -> Array:
        j = blocks_BIJ[row, block, step]
        keys = pl.ds(j * sizes[1], sizes[1])
        k_sH, v_sH = k_BKTH[row, kv_head, keys, :], v_BKTH[row, kv_head, keys, :]
        mask = _mask(block, j, row, positions_BT, end_BT, window_1, options, sizes)
        raw, dweights = matmul(q_sH, k_sH, (1, 1)), matmul(dout_sH, v_sH, (1, 1))
        _, draw = tile_gradient(raw, dweights, mask, lse_s[:, None], delta_s[:, None], options)
        return dq_sH + matmul(draw.astype(k_sH.dtype), k_sH, (1, 0))

    dq_sH = jax.lax.fori_loop(0, count_BI[row, block], key_block, jnp.zeros(q_sH.shape, jnp.float32))
    dq_BNTH[row, head, queries, :] = dq_sH.astype(dq_BNTH.dtype)


def _dkv_kernel(
    blocks_BJI: Any,
    count_BJ: Any,
    window_1: Any,
    positions_BT: Any,
    end_BT: Any,
    q_BNTH: Any,
    k_BKTH: Any,
    v_BKTH: Any,
    dout_BNTH: Any,
    lse_BNT: Any,
    delta_BNT: Any,
    dk_BNTH: Any,
    dv_BNTH: Any,
    *,
    options: ScoreOptions,
    sizes: tuple[int, int],
    group: int,
) -> None:
    block, head, row = (pl.program_id(axis) for axis in range(3))
    kv_head = jax.lax.div(head, group)
    keys = pl.ds(block * sizes[1], sizes[1])
    k_sH, v_sH = k_BKTH[row, kv_head, keys, :], v_BKTH[row, kv_head, keys, :]

    def query_block(step: Array, running: tuple[Array, Array]) -> tuple[Array, Array]:
        dk_sH, dv_sH = running
        i = blocks_BJI[row, block, step]
        queries = pl.ds(i * sizes[0], sizes[0])
        q_sH, dout_sH = q_BNTH[row, head, queries, :], dout_BNTH[row, head, queries, :]
        lse_s, delta_s = lse_BNT[row, head, queries], delta_BNT[row, head, queries]
        mask = _mask(i, block, row, positions_BT, end_BT, window_1, options, sizes)
        raw, dweights = matmul(q_sH, k_sH, (1, 1)), matmul(dout_sH, v_sH, (1, 1))
        weights, draw = tile_gradient(raw, dweights, mask, lse_s[:, None], delta_s[:, None], options)
        dv_sH += matmul(weights.astype(dout_sH.dtype), dout_sH, (0, 0))
        return dk_sH + matmul(draw.astype(q_sH.dtype), q_sH, (0, 0)), dv_sH

    zeros = jnp.zeros(k_sH.shape, jnp.float32)
    dk_sH, dv_sH = jax.lax.fori_loop(0, count_BJ[row, block], query_block, (zeros, zeros))
    dk_BNTH[row, head, keys, :] = dk_sH.astype(dk_BNTH.dtype)
    dv_BNTH[row, head, keys, :] = dv_sH.astype(dv_BNTH.dtype)


def _mask(
    query_block: Array,
    key_block: Array,
    row: Array,
    positions_BT: Any,
    end_BT: Any,
    window_1: Any,
    options: ScoreOptions,
    sizes: tuple[int, int],
) -> Array:
    query_start, key_start = query_block * sizes[0], key_block * sizes[1]
    queries, keys = pl.ds(query_start, sizes[0]), pl.ds(key_start, sizes[1])
    query = (query_start + jax.lax.iota(jnp.int32, sizes[0]))[:, None]
    key = (key_start + jax.lax.iota(jnp.int32, sizes[1]))[None, :]
    end = end_BT[row, keys][None, :]
    if not options.has_window:
        return tile_mask(query, key, end, None, None)
    distance = positions_BT[row, queries][:, None] - positions_BT[row, keys][None, :]
    return tile_mask(query, key, end, distance, window_1[0])


def _layout_arrays(lists: BlockLists, layout: TreeLayout) -> tuple[Array, ...]:
    return *lists, jnp.reshape(layout.window, 1), layout.positions_BT, layout.subtree_end_BT


def _call(kernel: Any, grid: tuple[int, int, int], out_shapes: Any, tile: Tile, interpret: bool) -> Any:
    return pl.pallas_call(
        kernel,
        grid=grid,
        out_shape=out_shapes,
        compiler_params=plgpu.CompilerParams(num_warps=tile.num_warps, num_stages=tile.num_stages),
        interpret=interpret,
    )
