"""The README's table, from a results file: python -m tests.benchmarks.table tests/benchmarks/results.json"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.benchmarks import results
from tests.benchmarks.results import OURS, Result

HEADLINES = {  # work -> (what it is, its rate)
    "esconv_dpo": ("DPO, ESConv pairs", "pairs per second"),
    "ebd_dpo": ("DPO, caregiving pairs (Empathy by Design)", "pairs per second"),
    "esconv_sft": ("SFT, whole ESConv dialogues", "tokens per second"),
    "generation_one_dialogue": ("greedy replies, 8 turns of one dialogue", "tokens per second"),
    "generation_eight_dialogues": ("greedy replies, 8 dialogues", "tokens per second"),
}


def markdown(rows: Sequence[Result]) -> str:
    """A row for each work and rival: both rates and memories, and how many times ours is the other's."""
    lines = [
        "| work | compared with | empathax | the other | times as fast | peak memory, empathax / the other |",
        "|---|---|---|---|---|---|",
    ]
    return "\n".join([*lines, *(line for work in HEADLINES for line in _lines(work, rows))])


def _lines(work: str, rows: Sequence[Result]) -> Iterator[str]:
    title, rate = HEADLINES[work]
    found = {(row.framework, row.against, row.metric): row for row in rows if row.work == work}
    for framework, _, metric in list(found):
        if framework == OURS or metric != rate:
            continue
        ours, theirs = found[OURS, framework, rate], found[framework, OURS, rate]
        memory = [found[key].value for key in ((OURS, framework, "peak memory"), (framework, OURS, "peak memory"))]
        yield (
            f"| {title} | {framework} | {ours.value:.3g} {ours.unit} | {theirs.value:.3g} {theirs.unit} "
            f"| {ours.value / theirs.value:.1f} | {memory[0]:.1f} / {memory[1]:.1f} GB |"
        )


if __name__ == "__main__":
    if len(sys.argv) != 2 or not Path(sys.argv[1]).is_file():
        sys.exit(f"{__doc__}\nexpected one argument, a results file that exists; got {sys.argv[1:]}")
    print(markdown(results.read(Path(sys.argv[1]))))
