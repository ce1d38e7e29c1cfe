"""The GPU kernel of attention: against the dense reference in float32, and its time beside the other forms.

The reference runs on the same card at precision "highest" on inputs widened to float32: products of float32 are TF32
there by default. Layouts are rows of ESConv, of synthetic dialogues like its own (fixed_steps.py), random forests, and
one chain, which is plain causal attention and so what cuDNN can do too.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from empathax.data.packing import pack
from empathax.models.attention import gpu as gpu_attention
from empathax.models.attention.dispatch import attention
from empathax.models.attention.gpu import Tile, Tiles
from empathax.models.attention.tree_layout import ScoreOptions, TreeLayout
from tests.benchmarks.fixed_steps import synthetic_dialogues
from tests.benchmarks.gpu.part import Part, choice_from_argv, compiled_together, guarded, seconds_per_call
from tests.benchmarks.gpu.prepare import read_batches
from tests.benchmarks.results import OURS, Result, measured

CHECKS = "attention_correctness"
TIMES = "attention_time"
TILES = "attention_tiles"
TOLERANCES = {"float32": 1e-5, "bfloat16": 1.5e-2}  # norm of the difference over the reference's norm
GRADIENTS = ("result", "dq", "dk", "dv")


@dataclass(frozen=True)
class Shape:
    """One call of attention."""

    rows: int
    heads: int
    kv_heads: int
    head_dim: int
    tokens: int
    layout: str = "dialogues"  # or forest, chain, esconv
    dtype: str = "bfloat16"
    window: int = 0
    softcap: float = 0.0

    def __str__(self) -> str:
        extra = f", window {self.window}" if self.window else ""
        extra += f", soft-cap {self.softcap:g}" if self.softcap else ""
        heads = f"{self.heads}/{self.kv_heads} heads of {self.head_dim}"
        return f"{self.rows} x {self.tokens} tokens ({self.layout}), {heads}, {self.dtype}{extra}"


def checked_shapes(quick: bool) -> list[Shape]:
    """Grouped heads, every head size, window, soft-cap, short and long rows, in both dtypes."""
    small = [
        Shape(2, 9, 3, 64, 512, "forest"),
        Shape(1, 4, 4, 128, 512, "forest", window=60),
        Shape(2, 4, 1, 256, 512, "forest", window=100, softcap=20.0),
    ]
    large = [
        Shape(2, 9, 3, 64, 1024, "dialogues"),
        Shape(2, 32, 8, 128, 2048, "dialogues"),
        Shape(1, 8, 4, 256, 2048, "dialogues", window=512, softcap=50.0),
        Shape(2, 9, 3, 64, 4096, "dialogues"),
        Shape(1, 9, 3, 64, 8192, "dialogues"),
        Shape(1, 8, 2, 128, 4096, "chain"),
    ]
    shapes = small[:1] if quick else small + large
    return [Shape(**{**vars(shape), "dtype": dtype}) for shape in shapes for dtype in TOLERANCES]


def timed_shapes(quick: bool) -> list[Shape]:
    """The heads of SmolLM2-135M and of Llama-3-8B: rows of ESConv, and 8,192 tokens in rows of several lengths."""
    if quick:
        return [Shape(1, 2, 1, 64, 512, "dialogues")]
    small, large = (9, 3, 64), (32, 8, 128)
    esconv = [Shape(8, *small, 4096, "esconv"), Shape(8, *large, 4096, "esconv")]
    lengths = [Shape(8192 // tokens, *large, tokens) for tokens in (1024, 2048, 8192)]
    return esconv + lengths + [Shape(2, *heads, 4096, "chain") for heads in (small, large)]


def tile_candidates() -> list[Tile]:
    """Tiles to choose from; which of them fit depends on the heads."""
    sizes = [(128, 64), (64, 64), (64, 128), (128, 128)]
    candidates = [Tile(*size, warps, stages) for size in sizes for warps in (4, 8) for stages in (2, 3)]
    return [*candidates, Tile(64, 64, 4, 1), Tile(128, 32, 4, 2), Tile(32, 64, 4, 2), Tile(64, 32, 4, 2)]


def check(part: Part) -> None:
    """Largest relative error of result and gradients, a row for each shape; says so if one is past its tolerance."""
    shapes = checked_shapes(part.quick)
    kernel = "pallas_gpu" if jax.default_backend() == "gpu" else "blockwise"
    lowerings: dict[Any, Any] = {(shape, kernel): partial(_lower, shape, kernel) for shape in shapes}
    lowerings |= {(_widened(shape), "dense"): partial(_lower, _widened(shape), "dense") for shape in shapes}
    programs = compiled_together(lowerings, tuned=False)
    for number, shape in enumerate(shapes):
        run, reference = programs.get((shape, kernel)), programs.get((_widened(shape), "dense"))
        if run is None or reference is None:
            print(f"NOT CHECKED: {shape}")
            continue
        guarded(f"check of {shape}", partial(_compare, part, shape, run, reference, number))


def _compare(part: Part, shape: Shape, run: Any, reference: Any, seed: int) -> None:
    arrays = random_arrays(shape, seed, part.folder)
    found = run(*arrays)
    expected = reference(*(array.astype(jnp.float32) for array in arrays[:4]), *arrays[4:])
    errors = []
    for name, got, want in zip(GRADIENTS, found, expected, strict=True):
        got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
        errors.append(float(np.linalg.norm(got - want) / np.linalg.norm(want)))
        if not errors[-1] <= TOLERANCES[shape.dtype]:
            print(f"WRONG: {shape}: {name} differs by {errors[-1]:.3g}, at most {np.abs(got - want).max():.3g}")
    metric = f"{shape}: relative error of {', '.join(GRADIENTS)}"
    part.add(Result(CHECKS, OURS, metric, max(errors), "relative", tuple(errors)))


def time_forms(part: Part) -> None:
    """Milliseconds of forward and backward: the kernel, portable blocks, the dense matrix, cuDNN's causal attention."""
    on_gpu, shapes = jax.default_backend() == "gpu", timed_shapes(part.quick)
    kernels = ("pallas_gpu", "blockwise", "dense") if on_gpu else ("blockwise", "dense")
    in_all_forms = [shapes[0], *(shape for shape in shapes if shape.tokens == 2048)]
    cases = [
        (shape, kernel) for shape in shapes for kernel in kernels if shape in in_all_forms or kernel == "pallas_gpu"
    ]
    cases += [(shape, "cudnn") for shape in shapes if shape.layout == "chain" and on_gpu]
    for (shape, kernel), program in compiled_together({case: partial(_lower, *case) for case in cases}).items():
        guarded(f"{kernel} on {shape}", partial(_time, part, TIMES, str(shape), kernel, program, shape))


def time_tiles(part: Part) -> None:
    """Milliseconds of each of the kernel's three parts under other tiles, on rows of ESConv."""
    if jax.default_backend() != "gpu":
        return
    for head in TILE_HEADS:
        shape = Shape(8, *head, 4096, "esconv")
        cases = {
            (name, tile): partial(_lower_tile, shape, name, tile) for tile in tile_candidates() for name in KERNELS
        }
        for (name, tile), program in compiled_together(cases, tuned=False).items():
            work = f"{name}, {head[0]}/{head[1]} heads of {head[2]}: {'x'.join(map(str, tile))}"
            guarded(work, partial(_time, part, TILES, work, OURS, program, shape, 3))


def _time(part: Part, work: str, metric: str, framework: str, program: Any, shape: Shape, samples: int = 5) -> None:
    seconds = seconds_per_call(program, *random_arrays(shape, 0, part.folder), samples=samples)
    part.add(measured(work, framework, metric, "ms", [1e3 * value for value in seconds]))


def _widened(shape: Shape) -> Shape:
    return Shape(**{**vars(shape), "dtype": "float32"})


def _lower(shape: Shape, kernel: str) -> Any:
    """Result and gradients under a given gradient of the result."""

    def run(q, k, v, dout, positions, ends):
        out, pull = jax.vjp(_form(shape, kernel, positions, ends), q, k, v)
        return out, *pull(dout)

    precision = "highest" if kernel == "dense" and shape.dtype == "float32" else None
    with jax.default_matmul_precision(precision):
        return jax.jit(run).lower(*_abstract(shape))


def _form(shape: Shape, kernel: str, positions: jax.Array, ends: jax.Array) -> Callable[..., jax.Array]:
    scale = shape.head_dim**-0.5
    if kernel != "cudnn":
        layout = TreeLayout(positions, ends, shape.window)
        return lambda q, k, v: attention(q, k, v, layout, softcap=shape.softcap, scale=scale, implementation=kernel)

    def causal(q, k, v):
        q, k, v = (x.swapaxes(1, 2) for x in (q, k, v))  # cuDNN's layout is tokens before heads
        out = jax.nn.dot_product_attention(q, k, v, scale=scale, is_causal=True, implementation="cudnn")
        return out.swapaxes(1, 2)

    return causal


KERNELS = ("forward", "dq", "dkv")
TILE_HEADS = ((9, 3, 64), (32, 8, 128), (8, 4, 256))  # SmolLM2-135M's, Llama-3-8B's, Gemma-2-2B's


def _lower_tile(shape: Shape, name: str, tile: Tile) -> Any:
    """One of the three kernels alone: what the others would compute is not asked for, and compiled away."""

    def run(q, k, v, dout, positions, ends):
        layout, options = TreeLayout(positions, ends, jnp.int32(2**31 - 1)), _options(shape)
        if name == "forward":
            return gpu_attention.forward(q, k, v, layout, options, tiles=Tiles(tile, tile, tile))
        numbers = jnp.zeros(q.shape[:3], jnp.float32)
        tiles = Tiles(tile, tile, tile)
        dq, dk, dv = gpu_attention.backward(q, k, v, layout, numbers + 9.0, numbers, dout, options, tiles=tiles)
        return dq if name == "dq" else (dk, dv)

    return jax.jit(run).lower(*_abstract(shape))


def _options(shape: Shape) -> ScoreOptions:
    return ScoreOptions(shape.head_dim**-0.5, 0.0, False)


def _abstract(shape: Shape) -> list[jax.ShapeDtypeStruct]:
    wide = [(shape.rows, heads, shape.tokens, shape.head_dim) for heads in _head_counts(shape)]
    ints = jax.ShapeDtypeStruct((shape.rows, shape.tokens), jnp.int32)
    return [*(jax.ShapeDtypeStruct(size, shape.dtype) for size in wide), ints, ints]


@functools.lru_cache(maxsize=1)
def random_arrays(shape: Shape, seed: int, folder: Path) -> list[jax.Array]:
    """q, k, v, the result's gradient, positions and subtree ends."""
    keys = jax.random.split(jax.random.key(seed), 4)
    wide = [
        jax.random.normal(key, (shape.rows, heads, shape.tokens, shape.head_dim), shape.dtype)
        for key, heads in zip(keys, _head_counts(shape), strict=True)
    ]
    return [*wide, *map(jnp.asarray, layout_arrays(shape, seed, folder))]


def _head_counts(shape: Shape) -> tuple[int, int, int, int]:
    return shape.heads, shape.kv_heads, shape.kv_heads, shape.heads


def layout_arrays(shape: Shape, seed: int, folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Positions and subtree ends, [rows, tokens]."""
    tokens = shape.tokens
    if shape.layout == "chain":
        one = np.arange(tokens, dtype=np.int32), np.full(tokens, tokens, np.int32)
        return tuple(np.tile(array, (shape.rows, 1)) for array in one)
    if shape.layout == "esconv":
        batch = read_batches(folder, "tree")[0][0]
        return batch.positions_BT[0, : shape.rows], batch.subtree_end_BT[0, : shape.rows]
    if shape.layout == "forest":
        from tests.models.attention.forests import random_inputs

        *_, layout = random_inputs(seed, tokens, batch=shape.rows, head_dim=1, padding=tokens // 16)
        return np.asarray(layout.positions_BT), np.asarray(layout.subtree_end_BT)
    groups = synthetic_dialogues(2 + shape.rows * tokens // 200, 10 if tokens >= 2048 else 2, 1000, seed)
    rows = pack(groups, "tree", tokens)
    fullest = sorted(range(len(rows)), key=lambda row: -rows.trees[rows.tree_indices[row][0]].num_tokens)
    batches = [rows[row] for row in fullest[: shape.rows]]
    return np.stack([b.positions_BT for b in batches]), np.stack([b.subtree_end_BT for b in batches])


RUNS = {"check": check, "time": time_forms, "tiles": time_tiles}

if __name__ == "__main__":
    part, name = choice_from_argv(__doc__, tuple(RUNS))
    RUNS[name](part)
