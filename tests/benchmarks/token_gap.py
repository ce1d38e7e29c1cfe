"""Do two frameworks generate the same tokens? And where not: how near were the two logits at the first difference?"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from empathax.models.transformer import logits
from empathax.models.weights.source import resolve_model
from tests.benchmarks import results
from tests.benchmarks.results import OURS, Result

Reply = list[int]


def compare(work: str, rival: str, cases: list[tuple[Reply, Reply, Reply]], params: Any, config: Any) -> list[Result]:
    """Results of (prompt, our reply, their reply) of every prompt. A reply counts up to its first difference."""
    same = [_common_length(ours, theirs) for _, ours, theirs in cases]
    gaps = [
        _logit_gap(params, config, prompt + ours[:length], ours[length], theirs[length])
        for (prompt, ours, theirs), length in zip(cases, same, strict=True)
        if length < len(ours)
    ]
    share = 100 * sum(same) / sum(len(ours) for _, ours, _ in cases)
    rows = [("identical tokens", "%", share), ("replies that differ", "replies", len(gaps))]
    rows += [("largest gap between the two logits at a first difference", "logit", max(gaps))] if gaps else []
    return [results.measured(work, OURS, metric, unit, [value], rival) for metric, unit, value in rows]


def _common_length(ours: Reply, theirs: Reply) -> int:
    return next((n for n, (a, b) in enumerate(zip(ours, theirs, strict=True)) if a != b), len(ours))


def _logit_gap(params: Any, config: Any, prefix: Reply, ours: int, theirs: int) -> float:
    """How much more our own forward pass likes our token than theirs; float noise is below 1e-3."""
    token_ids_BT = jnp.asarray([prefix])
    positions_BT = jnp.arange(len(prefix))[None]
    last_V = logits(params, config, token_ids_BT, positions_BT, jnp.full_like(positions_BT, len(prefix)))[0, -1]
    return abs(float(last_V[ours] - last_V[theirs]))


def main() -> None:
    """Reads the cases that the parent wrote, writes results."""
    parser = argparse.ArgumentParser()
    for name in ("--work", "--rival", "--model", "--cases", "--out"):
        parser.add_argument(name, required=True)
    args = parser.parse_args()
    source = resolve_model(args.model)
    cases = json.loads(Path(args.cases).read_text())
    with jax.default_matmul_precision("highest"):
        rows = compare(args.work, args.rival, cases, source.load_params(), source.config)
    results.write(Path(args.out), rows)


if __name__ == "__main__":
    main()
