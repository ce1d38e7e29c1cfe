"""`python -m tests.benchmarks.interval_coverage`: how often 95 % intervals hold the mean over fresh samples.

Two metrics that resampling biases, on made-up replies: word ids by a power law with a topic for each dialogue, and
levels that follow the quartile half of the time. "moved" are the report's intervals, "plain" bare percentiles.
"""

from __future__ import annotations

import numpy as np

from empathax.evaluation.metrics.bootstrap import resample
from empathax.evaluation.metrics.statistics import ReplyLevels, ReplyWords, Statistic

NUM_DIALOGUES, NUM_REPLIES, NUM_WORDS, VOCABULARY = 80, 4, 15, 1500
FRESH, TRIALS, RESAMPLES = 300, 120, 400
NAMES = tuple(f"d{dialogue}" for dialogue in range(NUM_DIALOGUES) for _ in range(NUM_REPLIES))
QUARTILES = tuple(range(NUM_REPLIES)) * NUM_DIALOGUES


def words(rng: np.random.Generator) -> Statistic:
    replies = []
    for _ in range(NUM_DIALOGUES):
        topic = rng.integers(0, VOCABULARY, 6)
        for _ in range(NUM_REPLIES):
            ids = rng.zipf(1.25, NUM_WORDS).clip(0, VOCABULARY)
            is_topic = rng.random(NUM_WORDS) < 0.25
            ids[is_topic] = rng.choice(topic, is_topic.sum())
            replies.append(tuple(ids.tolist()))
    return ReplyWords(NAMES, tuple(replies))


def levels(rng: np.random.Generator) -> Statistic:
    def mixed(share: float, usual: object) -> tuple[int, ...]:
        size = len(NAMES)
        return tuple(np.where(rng.random(size) < share, usual, rng.integers(0, 4, size)).tolist())

    model, reference = mixed(0.5, 3), mixed(0.6, np.array(QUARTILES))
    return ReplyLevels(NAMES, "quartile", model, QUARTILES, NAMES, reference, QUARTILES)


def main() -> None:
    rng = np.random.default_rng(0)
    for make, name, metric in ((words, "distinct", "distinct_2"), (levels, "validation_gap", "validation_gap")):
        truth = np.mean([make(rng).metrics(name)[metric] for _ in range(FRESH)])
        moved = plain = 0
        for trial in range(TRIALS):
            statistic = make(rng)
            found = resample({name: statistic}, statistic.metrics(name), seed=trial, num_resamples=RESAMPLES)[metric]
            low, high = found.interval()
            moved += low <= truth <= high
            low, high = np.quantile(found.replicates_R, [0.025, 0.975])
            plain += low <= truth <= high
        print(f"{metric}: mean {truth:.4f}; moved {moved / TRIALS:.1%}, plain {plain / TRIALS:.1%}", flush=True)


if __name__ == "__main__":
    main()
