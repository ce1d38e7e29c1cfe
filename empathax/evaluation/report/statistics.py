"""Per-example statistics of metrics: additive parts from which a metric can be computed again for any set of dialogues.

Axes: E examples (replies or pairs), D dialogues, R resamples. `weights_RD` says how often each dialogue is in a
resample; a row of ones gives the metric itself.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import ClassVar

import numpy as np
from jaxtyping import Float, Int

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
