"""Bootstrap confidence intervals of every metric of a record: dialogues are resampled, replies stay with theirs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from empathax.evaluation.metrics.statistics import Statistic

NUM_RESAMPLES = 1000
CONFIDENCE = 0.95


class Interval(NamedTuple):
    """Ends of a confidence interval."""

    low: float
    high: float


@dataclass(frozen=True)
class Resampled:
    """A metric's value, and its values on resamples of `dialogues`.

    `is_biased`: a resample holds dialogues twice, which by itself lowers Distinct (n-grams repeat) and raises
    validation_gap (noise is squared). Intervals of such metrics are moved by the bias that the resamples show (their
    mean less the value); the others are plain percentiles (Efron and Tibshirani 1993, sections 10.2 and 13.3).
    """

    value: float
    replicates_R: Float[np.ndarray, " R"]
    dialogues: tuple[str, ...]
    is_biased: bool
    highest: float = math.inf

    def interval(self) -> Interval | None:
        """The 95 % interval; None with fewer than two dialogues, which say nothing of the spread."""
        interval = _interval(self.replicates_R, self.value, self.dialogues, self.is_biased)
        if interval and self.is_biased:  # shares and squares, which are never negative
            return Interval(max(interval.low, 0.0), min(interval.high, self.highest))
        return interval


def resample(
    per_example: Mapping[str, Statistic], metrics: Mapping[str, float], seed: int, num_resamples: int = NUM_RESAMPLES
) -> dict[str, Resampled]:
    """Every one of `metrics` that `per_example` gives, resampled. The draws depend on the seed and on which dialogues
    there are, so that two models on the same dialogues get the same draws and can be compared in pairs."""
    found = {}
    for name, statistic in per_example.items():
        order = statistic.all_dialogues()
        replicates = statistic.estimates(name, order, draw(len(order), seed, num_resamples))
        for metric in replicates.keys() & metrics.keys():
            found[metric] = Resampled(
                metrics[metric], replicates[metric], order, statistic.is_biased, statistic.highest
            )
    return found


def draw(num_dialogues: int, seed: int, num_resamples: int) -> Float[np.ndarray, "R D"]:
    """How often each dialogue is in each resample: as many draws with replacement as there are dialogues."""
    even = np.full(num_dialogues, 1.0 / num_dialogues)
    return np.random.default_rng(seed).multinomial(num_dialogues, even, size=num_resamples).astype(float)


def difference(first: Resampled, second: Resampled) -> Interval | None:
    """The interval of first - second in pairs: both on the same resamples. None if their dialogues differ."""
    if first.dialogues != second.dialogues:
        return None
    replicates_R = first.replicates_R - second.replicates_R
    return _interval(replicates_R, first.value - second.value, first.dialogues, first.is_biased)


def _interval(
    replicates_R: Float[np.ndarray, " R"], value: float, dialogues: tuple[str, ...], is_biased: bool
) -> Interval | None:
    known_R = replicates_R[~np.isnan(replicates_R)]
    if len(dialogues) < 2 or not len(known_R):
        return None
    bias = known_R.mean() - value if is_biased else 0.0
    low, high = np.quantile(known_R, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2]) - bias
    return Interval(float(low), float(high))
