"""Per-example statistics of metrics: additive parts from which a metric can be computed again for any set of dialogues.

Axes: E examples (replies or pairs), D dialogues, R resamples. `weights_RD` says how often each dialogue is in a
resample; a row of ones gives the metric itself.

Statistics of replies as wholes: Distinct from their words, corpus BLEU from n-gram counts, gaps from levels.

Axes as in statistics.py, with N orders of n-grams, K n-grams, Q quartiles, L levels and C = Q x L cells.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import ClassVar

import numpy as np
from jaxtyping import Float, Int

from empathax.evaluation.metrics.levels import NUM_LEVELS, gap_by_level, shares

Weights = Float[np.ndarray, "R D"]
Replicates = Mapping[str, Float[np.ndarray, " R"]]


@dataclass(frozen=True)
class Statistic:
    """`dialogues` names the dialogue of each example; all other per-example fields are as long."""

    kind: ClassVar[str]
    is_biased: ClassVar[bool] = False  # resamples repeat dialogues, and that alone moves the metric
    highest: ClassVar[float] = math.inf  # that the metric can be
    dialogues: tuple[str, ...]

    def estimates(self, name: str, order: Sequence[str], weights_RD: Weights) -> Replicates:
        """The metrics that the entry `name` of a record gives, by name, on each resample of the dialogues `order`."""
        raise NotImplementedError

    def all_dialogues(self) -> tuple[str, ...]:
        """Every dialogue once, sorted: the units that are resampled."""
        return tuple(sorted(set(self.dialogues)))

    def problems(self) -> list[str]:
        """What is wrong with the fields, in words."""
        sizes = {name: len(getattr(self, name)) for name in self._aligned()}
        if not sizes["dialogues"]:
            return ["has no examples: leave the entry out"]
        if len(set(sizes.values())) > 1:
            found = ", ".join(f"{size} {name}" for name, size in sizes.items())
            return [f"has {found}: expected one of each for every example"]
        return self._value_problems()

    def _aligned(self) -> tuple[str, ...]:
        return tuple(field.name for field in fields(self))

    def _value_problems(self) -> list[str]:
        return []


@dataclass(frozen=True)
class MeanOfValues(Statistic):
    """A mean over examples, on the metric's own scale."""

    kind = "mean"
    values: tuple[float, ...]

    @classmethod
    def of(cls, dialogues: tuple[str, ...], values_E: Float[np.ndarray, " E"]) -> MeanOfValues:
        """The mean of an array, in float64."""
        return cls(dialogues, tuple(values_E.astype(np.float64).tolist()))

    def estimates(self, name: str, order: Sequence[str], weights_RD: Weights) -> Replicates:
        sums_D, counts_D = by_dialogue(self.dialogues, order, np.array(self.values)), _counts(self.dialogues, order)
        return {name: _quotient(weights_RD @ sums_D, weights_RD @ counts_D)}


@dataclass(frozen=True)
class RatioOfSums(Statistic):
    """sum of numerators / sum of denominators, on the metric's own scale."""

    kind = "ratio"
    numerators: tuple[float, ...]
    denominators: tuple[float, ...]

    def estimates(self, name: str, order: Sequence[str], weights_RD: Weights) -> Replicates:
        top_D = by_dialogue(self.dialogues, order, np.array(self.numerators))
        bottom_D = by_dialogue(self.dialogues, order, np.array(self.denominators))
        return {name: _quotient(weights_RD @ top_D, weights_RD @ bottom_D)}

    def _value_problems(self) -> list[str]:
        is_usable = min(self.denominators) >= 0 and sum(self.denominators) > 0
        return [] if is_usable else ["has denominators that are negative or all 0: expected counts"]


@dataclass(frozen=True)
class LogLikelihoods(Statistic):
    """Perplexity: exp(sum of negative log-likelihoods / number of tokens), in nats."""

    kind = "perplexity"
    nlls: tuple[float, ...]
    tokens: tuple[int, ...]

    def estimates(self, name: str, order: Sequence[str], weights_RD: Weights) -> Replicates:
        ratio = RatioOfSums(self.dialogues, self.nlls, self.tokens).estimates(name, order, weights_RD)
        return {name: np.exp(ratio[name])}

    def _value_problems(self) -> list[str]:
        is_usable = min(self.tokens) >= 0 and sum(self.tokens) > 0
        return [] if is_usable else ["has numbers of tokens that are negative or all 0"]


@dataclass(frozen=True)
class RewardMargins(Statistic):
    """Margins of preference pairs; gives `reward_margin`, their mean, and `reward_accuracy`, the share above 0."""

    kind = "margins"
    margins: tuple[float, ...]

    def estimates(self, name: str, order: Sequence[str], weights_RD: Weights) -> Replicates:
        margins_E = np.array(self.margins)
        wins = MeanOfValues(self.dialogues, tuple((margins_E > 0).astype(float)))
        return {
            **MeanOfValues(self.dialogues, self.margins).estimates("reward_margin", order, weights_RD),
            **wins.estimates("reward_accuracy", order, weights_RD),
        }


def places(dialogues: Sequence[str], order: Sequence[str]) -> Int[np.ndarray, " E"]:
    """The place of each dialogue in `order`."""
    place = {dialogue: number for number, dialogue in enumerate(order)}
    return np.array([place[dialogue] for dialogue in dialogues], np.int64)


def by_dialogue(dialogues: Sequence[str], order: Sequence[str], values_E: np.ndarray) -> np.ndarray:
    """Sums over the examples of each dialogue: [D, ...]."""
    sums_D = np.zeros((len(order), *values_E.shape[1:]))
    np.add.at(sums_D, places(dialogues, order), values_E)
    return sums_D


def _counts(dialogues: Sequence[str], order: Sequence[str]) -> Float[np.ndarray, " D"]:
    return np.bincount(places(dialogues, order), minlength=len(order)).astype(float)


def _quotient(top_R: np.ndarray, bottom_R: np.ndarray) -> np.ndarray:
    """NaN where a resample has nothing to divide by; such resamples are left out of an interval."""
    return np.divide(top_R, bottom_R, out=np.full_like(top_R, np.nan), where=bottom_R > 0)


DISTINCT_ORDERS = (1, 2, 3)
BLEU_ORDERS = 4


@dataclass(frozen=True)
class ReplyWords(Statistic):
    """Word (or token) ids of each reply; gives `distinct_1`, `distinct_2` and `distinct_3`, x100."""

    kind = "words"
    is_biased = True
    highest = 100.0
    words: tuple[tuple[int, ...], ...]

    def estimates(self, name: str, order: Sequence[str], weights_RD: Weights) -> Replicates:
        place_E = places(self.dialogues, order)
        return {f"distinct_{n}": self._distinct(n, place_E, weights_RD) for n in DISTINCT_ORDERS}

    def _distinct(self, n: int, place_E: Int[np.ndarray, " E"], weights_RD: Weights) -> Float[np.ndarray, " R"]:
        rows = [np.lib.stride_tricks.sliding_window_view(np.array(reply), n) for reply in self.words if len(reply) >= n]
        if not rows:
            return np.zeros(len(weights_RD))
        place_K = np.repeat(place_E, [max(len(reply) - n + 1, 0) for reply in self.words])
        _, type_K = np.unique(np.concatenate(rows), axis=0, return_inverse=True)
        # (type, dialogue) once each, sorted by type: a type is there if one of its dialogues is drawn
        entry_2K = np.unique(np.stack([type_K.reshape(-1), place_K]), axis=1)
        starts = np.flatnonzero(np.diff(entry_2K[0], prepend=-1))
        is_drawn_RD = weights_RD > 0
        distinct_R = [np.logical_or.reduceat(drawn_D[entry_2K[1]], starts).sum() for drawn_D in is_drawn_RD]
        total_R = weights_RD @ np.bincount(place_K, minlength=weights_RD.shape[1])
        return 100.0 * np.array(distinct_R) / np.maximum(total_R, 1)


@dataclass(frozen=True)
class BleuCounts(Statistic):
    """A corpus BLEU-4 (`bleu4_corpus`, `bleu4_sacre`), x100: clipped matches and totals of n-grams, n = 1 to 4.

    `totals` are as the score counts them: NLTK takes 1 for a reply that has no n-gram. An order without a match takes
    1/2, 1/4, ... of one (smoothing method 3 of Chen and Cherry 2014; sacrebleu's "exp").
    """

    kind = "bleu"
    matches: tuple[tuple[int, ...], ...]
    totals: tuple[tuple[int, ...], ...]
    lengths: tuple[int, ...]
    reference_lengths: tuple[int, ...]

    def estimates(self, name: str, order: Sequence[str], weights_RD: Weights) -> Replicates:
        def sums(values: Sequence[object]) -> np.ndarray:
            return weights_RD @ by_dialogue(self.dialogues, order, np.array(values, float))

        matches_RN, totals_RN = sums(self.matches), sums(self.totals)
        smoothed_RN = np.where(matches_RN > 0, matches_RN, 2.0 ** -np.cumsum(matches_RN == 0, axis=1))
        precisions_RN = smoothed_RN / np.maximum(totals_RN, 1)
        penalty_R = np.minimum(0.0, 1.0 - sums(self.reference_lengths) / np.maximum(sums(self.lengths), 1))
        score_R = 100.0 * np.exp(penalty_R + np.log(precisions_RN).mean(axis=1))
        return {name: np.where((matches_RN[:, 0] > 0) & (totals_RN > 0).all(axis=1), score_R, 0.0)}

    def _value_problems(self) -> list[str]:
        is_four = all(len(row) == BLEU_ORDERS for row in (*self.matches, *self.totals))
        return [] if is_four else [f"has counts of other than {BLEU_ORDERS} orders for some reply"]


@dataclass(frozen=True)
class ReplyLevels(Statistic):
    """Levels and quartiles (both 0 to 3) of the model's and the reference's replies; gives `validation_gap` and
    `validation_gap_LEVEL`."""

    kind = "levels"
    is_biased = True
    normalise: str
    levels: tuple[int, ...]
    quartiles: tuple[int, ...]
    reference_dialogues: tuple[str, ...]
    reference_levels: tuple[int, ...]
    reference_quartiles: tuple[int, ...]

    def all_dialogues(self) -> tuple[str, ...]:
        return tuple(sorted({*self.dialogues, *self.reference_dialogues}))

    def estimates(self, name: str, order: Sequence[str], weights_RD: Weights) -> Replicates:
        model_RQL, reference_RQL = (
            shares((weights_RD @ counts_DC).reshape(-1, NUM_LEVELS, NUM_LEVELS), self.normalise)
            for counts_DC in self._counts_by_dialogue(order)
        )
        return gap_by_level(model_RQL, reference_RQL)

    def shares_in_quartiles(self) -> tuple[np.ndarray, np.ndarray]:
        """Shares [quartile, level] of model and reference; they sum to 1 over the levels of a quartile."""
        model_QL, reference_QL = (
            shares(counts_DC.sum(axis=0).reshape(NUM_LEVELS, NUM_LEVELS), "quartile")
            for counts_DC in self._counts_by_dialogue(self.all_dialogues())
        )
        return model_QL, reference_QL

    def _counts_by_dialogue(self, order: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        def counts(dialogues: Sequence[str], quartiles: Sequence[int], levels: Sequence[int]) -> np.ndarray:
            cell_E = NUM_LEVELS * np.array(quartiles) + np.array(levels)
            return by_dialogue(dialogues, order, np.eye(NUM_LEVELS**2)[cell_E])

        return (
            counts(self.dialogues, self.quartiles, self.levels),
            counts(self.reference_dialogues, self.reference_quartiles, self.reference_levels),
        )

    def problems(self) -> list[str]:
        reference = (self.reference_dialogues, self.reference_levels, self.reference_quartiles)
        if len({len(values) for values in reference}) > 1 or not self.reference_levels:
            return ["has no reference replies, or not a level, a quartile and a dialogue for each"]
        return super().problems()

    def _aligned(self) -> tuple[str, ...]:
        return ("dialogues", "levels", "quartiles")

    def _value_problems(self) -> list[str]:
        numbers = {*self.levels, *self.quartiles, *self.reference_levels, *self.reference_quartiles}
        outside = sorted(numbers - set(range(NUM_LEVELS)))
        found = [f"has levels or quartiles {outside}: expected 0 to {NUM_LEVELS - 1}"] if outside else []
        if self.normalise not in ("quartile", "level"):
            found.append(f"has normalise = {self.normalise!r}: expected 'quartile' or 'level'")
        return found


KINDS: Mapping[str, type[Statistic]] = {
    kind.kind: kind
    for kind in (MeanOfValues, RatioOfSums, LogLikelihoods, RewardMargins, ReplyWords, BleuCounts, ReplyLevels)
}
