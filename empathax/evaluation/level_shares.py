"""Shares of the four levels of validation per quartile of a dialogue, and the gap between two of them, in numpy.

Works on any number of leading axes, so that a thousand resamples are one call. Definitions: docs/metrics.md.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

LEVELS = ("listening", "reflection", "validating", "genuineness")  # Linehan's six merged to four, lowest first
NUM_LEVELS = len(LEVELS)  # and as many quartiles


def shares(counts_QL: Float[np.ndarray, "*R 4 4"], normalise: str) -> Float[np.ndarray, "*R 4 4"]:
    """Counts [quartile, level] as shares of a quartile ("quartile") or of a level ("level"); zeros where none are."""
    totals = counts_QL.sum(axis=-1 if normalise == "quartile" else -2, keepdims=True)
    return counts_QL / np.maximum(totals, 1)


def gap_by_level(
    model_QL: Float[np.ndarray, "*R 4 4"], reference_QL: Float[np.ndarray, "*R 4 4"]
) -> dict[str, Float[np.ndarray, "*R"]]:
    """`validation_gap_LEVEL` = 1/4 sum over quartiles of the squared difference, and `validation_gap`, the mean."""
    gap_L = ((model_QL - reference_QL) ** 2).mean(axis=-2)
    by_level = {f"validation_gap_{level}": gap_L[..., number] for number, level in enumerate(LEVELS)}
    return {"validation_gap": gap_L.mean(axis=-1), **by_level}
