"""How good a classifier is: accuracy, F1 of every class, their mean, and the confusion counts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class HeadScores:
    """Scores of one head. `confusion_CC` counts [true class, predicted class]."""

    labels: tuple[str, ...]
    confusion_CC: np.ndarray

    @property
    def num_examples(self) -> int:
        """How many texts were classified."""
        return int(self.confusion_CC.sum())

    @property
    def accuracy(self) -> float:
        """Share of texts whose class was found."""
        return float(np.trace(self.confusion_CC) / max(1, self.num_examples))

    @property
    def f1(self) -> np.ndarray:
        """F1 of every class: 2 hits / (predicted + true); 0 for a class that is neither."""
        either_C = self.confusion_CC.sum(0) + self.confusion_CC.sum(1)
        return 2.0 * np.diag(self.confusion_CC) / np.maximum(either_C, 1)

    @property
    def macro_f1(self) -> float:
        """The mean of the classes' F1."""
        return float(self.f1.mean())

    def as_dict(self) -> dict[str, Any]:
        """For a JSON file."""
        return {
            "examples": self.num_examples,
            "accuracy": self.accuracy,
            "macro_f1": self.macro_f1,
            "f1": dict(zip(self.labels, self.f1.tolist(), strict=True)),
            "confusion": self.confusion_CC.tolist(),
        }


def head_scores(true_B: np.ndarray, predicted_B: np.ndarray, labels: Sequence[str]) -> HeadScores:
    """Scores of predicted against true class numbers."""
    confusion_CC = np.zeros((len(labels), len(labels)), np.int64)
    np.add.at(confusion_CC, (true_B, predicted_B), 1)
    return HeadScores(tuple(labels), confusion_CC)
