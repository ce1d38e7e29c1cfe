"""Text to numbers (B-4, R-L, Dist-2) for all test replies of ESConv, in turns with NLTK, rouge-score and counting.

    python -m tests.benchmarks.text_metrics --corpora=../shared/data [--rounds=7] [--out=FILE]

Both sides start from strings and tokenize them anew in every round; ours has been compiled before. Replies are the
test replies in another order, then also those of training dialogues. Prints METRICS.md's sanity anchors as well.
"""

from __future__ import annotations

import argparse
import gc
import json
import random
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest

from empathax.evaluation.metrics.text_metrics import text_statistics
from empathax.evaluation.metrics.words import tokenized
from tests.benchmarks import results
from tests.benchmarks.results import OURS, Result, measured
from tests.evaluation.metrics.reference_metrics import core_metrics

WORK = "text_metrics"
REFERENCE = "nltk, rouge-score"
METRICS = ("bleu4_sentence", "rouge_l", "distinct_2")
ANCHORED = ("bleu4_sentence", "bleu4_corpus", "rouge_l", "distinct_1", "distinct_2")
Score = Callable[[Sequence[str], Sequence[str]], dict[str, float]]


def dialogues(path: Path) -> list[list[dict[str, Any]]]:
    """The turns of each dialogue."""
    return [json.loads(line)["dialog"] for line in path.read_text(encoding="utf-8").split("\n") if line]


def utterances(found: Sequence[Sequence[dict[str, Any]]]) -> list[str]:
    """Every supporter utterance by itself."""
    return [turn["text"] for turns in found for turn in turns if turn["speaker"] == "sys"]


def merged_replies(found: Sequence[Sequence[dict[str, Any]]]) -> list[str]:
    """The replies of dialogues that the seeker begins, consecutive utterances joined."""
    return [
        " ".join(turn["text"].strip() for turn in run)
        for turns in found
        if turns[0]["speaker"] == "usr"
        for speaker, run in groupby(turns, key=lambda turn: turn["speaker"])
        if speaker == "sys"
    ]


def timed(score: Score, replies: Sequence[str], gold: Sequence[str]) -> tuple[float, dict[str, float]]:
    """Seconds, and the numbers; no garbage of the other side is collected meanwhile (as timeit has it)."""
    gc.collect()
    gc.disable()
    start = time.perf_counter()
    found = score(replies, gold)
    seconds = time.perf_counter() - start
    gc.enable()
    return seconds, found


def ours(replies: Sequence[str], gold: Sequence[str]) -> dict[str, float]:
    """Our side; "distinct" counts Distinct-1 and Distinct-3 as well."""
    return score(replies, gold, ("bleu4_sentence", "rouge_l", "distinct"), METRICS)


def score(
    replies: Sequence[str], gold: Sequence[str], names: Sequence[str], metrics: Sequence[str]
) -> dict[str, float]:
    """Some metrics of the statistics `names`."""
    statistics = text_statistics(tokenized(replies, gold), [""] * len(gold), names)
    found = {metric: value for name, one in statistics.items() for metric, value in one.metrics(name).items()}
    return {metric: found[metric] for metric in metrics}


def race(name: str, replies: Sequence[str], gold: Sequence[str], rounds: int) -> Iterator[Result]:
    """Seconds of both sides, and how many times faster ours is; they must agree."""
    ours(replies, gold)  # compiles
    sides = [[timed(score, replies, gold) for score in (ours, core_metrics)] for _ in range(rounds)]
    assert sides[0][0][1] == pytest.approx(sides[0][1][1], rel=1e-6, abs=0.0)
    for side, framework in enumerate((OURS, REFERENCE)):
        yield measured(WORK, framework, name, "s", [pair[side][0] for pair in sides], "")
    yield measured(WORK, OURS, f"{name}, times faster", "x", [pair[1][0] / pair[0][0] for pair in sides], REFERENCE)


def anchors(corpus: Path) -> Iterator[Result]:
    """METRICS.md's sanity anchors, on the replies of seeker-first test dialogues."""
    gold = merged_replies(dialogues(corpus / "test.jsonl"))
    pool = merged_replies(dialogues(corpus / "train.jsonl"))
    drawn = random.Random(0).choices(pool, k=len(gold))
    constant = ["I am sorry to hear that."] * len(gold)
    for name, replies in (("gold", gold), ("random training reply", drawn), ("constant", constant)):
        for metric, value in score(
            replies, gold, ("bleu4_sentence", "bleu4_corpus", "rouge_l", "distinct"), ANCHORED
        ).items():
            yield measured(WORK, OURS, f"{len(gold):,} replies, {name}: {metric}", "", [value])


def main() -> None:
    """Measures, prints and, if asked to, writes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--corpora", type=Path, default=Path("../shared/data"))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    corpus = args.corpora / "esconv"
    gold = utterances(dialogues(corpus / "test.jsonl"))
    shuffled = random.Random(0).sample(gold, len(gold))
    others = random.Random(1).sample(utterances(dialogues(corpus / "train.jsonl")), len(gold))
    found = [
        *race(f"{len(gold):,} pairs, shuffled", shuffled, gold, args.rounds),
        *race(f"{len(gold):,} pairs, training replies", others, gold, args.rounds),
        *anchors(corpus),
    ]
    print(results.as_text(found))
    if args.out:
        results.write(args.out, found)


if __name__ == "__main__":
    main()
