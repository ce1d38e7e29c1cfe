"""Statistics of replies as wholes: Distinct from their words, corpus BLEU from n-gram counts, gaps from levels.

Axes as in statistics.py, with N orders of n-grams, K n-grams, Q quartiles, L levels and C = Q x L cells.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from empathax.evaluation.level_shares import NUM_LEVELS, gap_by_level, shares
from empathax.evaluation.report.statistics import (
    LogLikelihoods,
    MeanOfValues,
    RatioOfSums,
    Replicates,
    RewardMargins,
    Statistic,
    Weights,
    by_dialogue,
    places,
)

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
