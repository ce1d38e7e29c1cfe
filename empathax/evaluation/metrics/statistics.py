"""Per-example statistics: what a metric is computed from, on all dialogues (its value) or on resamples (its interval).

A metric's value is its estimate with every dialogue once (`Statistic.metrics`); the replicates behind its interval are
the same estimate with resampled weights (bootstrap.py). Sums and quotients are float64 on the host, n-grams and levels
are counted under jit. KINDS lists the kinds of statistics as evaluation.json names them (docs/report.md).

Axes: E examples (replies or pairs), D dialogues, R resamples, N orders of n-grams, Q quartiles, L levels. `weights_RD`
says how often each dialogue is in a resample.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import ClassVar

import jax
import numpy as np
from jaxtyping import Float, Int

from empathax.evaluation.metrics.levels import NORMALISATIONS, NUM_LEVELS, count_levels, shares, validation_gap
from empathax.evaluation.metrics.ngrams import count_distinct, sort_ngrams
from empathax.evaluation.metrics.overlap import MAX_ORDER
from empathax.evaluation.metrics.words import MAX_ID, TextIds

DISTINCT_ORDERS = (1, 2, 3)

Weights = Float[np.ndarray, "R D"]
Replicates = Mapping[str, Float[np.ndarray, " R"]]


@dataclass(frozen=True)
class Statistic:
    """`dialogues` names the dialogue of each example; all other per-example fields are as long."""

    kind: ClassVar[str]
    is_biased: ClassVar[bool] = False  # resamples repeat dialogues, and that alone moves the metric
    highest: ClassVar[float] = math.inf  # that the metric can be
    dialogues: tuple[str, ...]

    def metrics(self, name: str) -> dict[str, float]:
        """The metrics that the entry `name` of a record gives: their estimates with every dialogue once."""
        order = self.all_dialogues()
        found = self.estimates(name, order, np.ones((1, len(order))))
        return {metric: float(value_R[0]) for metric, value_R in found.items()}

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

    def _sums(self, order: Sequence[str], weights_RD: Weights, values: Sequence[object]) -> np.ndarray:
        """[R, ...] sums of one value (or row of values) per example over the examples of each resample, in float64."""
        values_E = np.array(values, float)
        sums_D = np.zeros((len(order), *values_E.shape[1:]))
        np.add.at(sums_D, _places(self.dialogues, order), values_E)
        return weights_RD @ sums_D

    def _ratio(
        self, order: Sequence[str], weights_RD: Weights, above: Sequence[float], below: Sequence[float]
    ) -> Float[np.ndarray, " R"]:
        """Sum over sum; NaN where a resample has nothing to divide by, which an interval leaves out."""
        above_R, below_R = (self._sums(order, weights_RD, values) for values in (above, below))
        return np.divide(above_R, below_R, out=np.full_like(above_R, np.nan), where=below_R > 0)


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
        return {name: self._ratio(order, weights_RD, self.values, (1.0,) * len(self.values))}


def mean_of_known(dialogues: Sequence[str], values_E: Float[np.ndarray, " E"]) -> MeanOfValues | None:
    """The mean over the examples that have a value, without those that are NaN; None if none has."""
    is_known_E = np.isfinite(values_E)
    known = tuple(dialogue for dialogue, is_known in zip(dialogues, is_known_E.tolist(), strict=True) if is_known)
    return MeanOfValues.of(known, values_E[is_known_E]) if known else None


@dataclass(frozen=True)
class RatioOfSums(Statistic):
    """sum of numerators / sum of denominators, on the metric's own scale."""

    kind = "ratio"
    numerators: tuple[float, ...]
    denominators: tuple[float, ...]

    def estimates(self, name: str, order: Sequence[str], weights_RD: Weights) -> Replicates:
        return {name: self._ratio(order, weights_RD, self.numerators, self.denominators)}

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
        return {name: np.exp(self._ratio(order, weights_RD, self.nlls, self.tokens))}

    def _value_problems(self) -> list[str]:
        is_usable = min(self.tokens) >= 0 and sum(self.tokens) > 0
        return [] if is_usable else ["has numbers of tokens that are negative or all 0"]


@dataclass(frozen=True)
class RewardMargins(Statistic):
    """Margins of preference pairs; gives `reward_margin`, their mean, and `reward_accuracy`, the share above 0."""

    kind = "margins"
    margins: tuple[float, ...]

    def estimates(self, name: str, order: Sequence[str], weights_RD: Weights) -> Replicates:
        columns = {"reward_margin": self.margins, "reward_accuracy": tuple(float(one > 0) for one in self.margins)}
        ones = (1.0,) * len(self.margins)
        return {metric: self._ratio(order, weights_RD, column, ones) for metric, column in columns.items()}


@dataclass(frozen=True)
class ReplyWords(Statistic):
    """Word (or token) ids of each reply; gives `distinct_1`, `distinct_2` and `distinct_3`, x100."""

    kind = "words"
    is_biased = True
    highest = 100.0
    words: tuple[tuple[int, ...], ...]

    def estimates(self, name: str, order: Sequence[str], weights_RD: Weights) -> Replicates:
        ids = TextIds.of(self.words)
        ids_P, text_P = ids.in_one_row()
        owners_P = _places(self.dialogues, order)[text_P].astype(np.int32)
        found = {}
        for n in DISTINCT_ORDERS:
            distinct_R = np.asarray(count_distinct(sort_ngrams(ids_P, owners_P, n), weights_RD > 0), np.float64)
            totals_R = self._sums(order, weights_RD, np.maximum(ids.lengths_N - n + 1, 0).tolist())
            found[f"distinct_{n}"] = 100.0 * distinct_R / np.maximum(totals_R, 1)
        return found

    def _value_problems(self) -> list[str]:
        ends = [end for reply in self.words if reply for end in (min(reply), max(reply))]
        is_usable = not ends or (min(ends) >= 0 and max(ends) <= MAX_ID)
        return [] if is_usable else [f"has word ids from {min(ends)} to {max(ends)}: expected 0 to {MAX_ID}"]


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
        columns = self.matches, self.totals, self.lengths, self.reference_lengths
        matches_RN, totals_RN, lengths_R, references_R = (self._sums(order, weights_RD, column) for column in columns)
        smoothed_RN = np.where(matches_RN > 0, matches_RN, 2.0 ** -np.cumsum(matches_RN == 0, axis=1))
        precisions_RN = smoothed_RN / np.maximum(totals_RN, 1)
        penalty_R = np.minimum(0.0, 1.0 - references_R / np.maximum(lengths_R, 1))
        score_R = 100.0 * np.exp(penalty_R + np.log(precisions_RN).mean(axis=1))
        return {name: np.where((matches_RN[:, 0] > 0) & (totals_RN > 0).all(axis=1), score_R, 0.0)}

    def _value_problems(self) -> list[str]:
        is_four = all(len(row) == MAX_ORDER for row in (*self.matches, *self.totals))
        return [] if is_four else [f"has counts of other than {MAX_ORDER} orders for some reply"]


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
        model_RQL, reference_RQL = (np.tensordot(weights_RD, counts, 1) for counts in self._counts_DQL(order))
        return validation_gap(model_RQL, reference_RQL, self.normalise)

    def counts(self) -> tuple[Int[np.ndarray, "Q L"], Int[np.ndarray, "Q L"]]:
        """How many of the model's and of the reference's replies in each quartile have each level."""
        model_DQL, reference_DQL = self._counts_DQL(self.all_dialogues())
        return model_DQL.sum(axis=0), reference_DQL.sum(axis=0)

    def shares_in_quartiles(self) -> tuple[np.ndarray, np.ndarray]:
        """Shares [quartile, level] of model and reference; they sum to 1 over the levels of a quartile."""
        model_QL, reference_QL = self.counts()
        return shares(model_QL, "quartile"), shares(reference_QL, "quartile")

    def _counts_DQL(self, order: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        sides = (
            (self.levels, self.quartiles, self.dialogues),
            (self.reference_levels, self.reference_quartiles, self.reference_dialogues),
        )
        model, reference = (
            count_levels(np.array(levels), np.array(quartiles), _places(dialogues, order), len(order))
            for levels, quartiles, dialogues in sides
        )
        return jax.device_get((model, reference))

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
        if self.normalise not in NORMALISATIONS:
            found.append(f"has normalise = {self.normalise!r}: expected 'quartile' or 'level'")
        return found


def _places(dialogues: Sequence[str], order: Sequence[str]) -> Int[np.ndarray, " E"]:
    """The place of each dialogue in `order`."""
    place = {dialogue: number for number, dialogue in enumerate(order)}
    return np.array([place[dialogue] for dialogue in dialogues], np.int32)


KINDS: Mapping[str, type[Statistic]] = {
    kind.kind: kind
    for kind in (MeanOfValues, RatioOfSums, LogLikelihoods, RewardMargins, ReplyWords, BleuCounts, ReplyLevels)
}
