"""Shares of the four levels of validation per quartile of a dialogue, and the gap between two of them.

For numpy arrays as for jax's, inside jit too; on any number of leading axes, so that a thousand resamples are one call.
Definitions: docs/metrics.md.
"""

from __future__ import annotations

from typing import TypeVar

import jax
import numpy as np

LEVELS = ("listening", "reflection", "validating", "genuineness")  # Linehan's six merged to four, lowest first
NUM_LEVELS = len(LEVELS)  # and as many quartiles

AnyArray = TypeVar("AnyArray", np.ndarray, jax.Array)  # [*R, 4, 4] in; [*R, 4, 4] or [*R] out


def shares(counts_QL: AnyArray, normalise: str) -> AnyArray:
    """Counts [quartile, level] as shares of a quartile ("quartile") or of a level ("level"); zeros where none are."""
    totals = counts_QL.sum(axis=-1 if normalise == "quartile" else -2, keepdims=True)
    return counts_QL / totals.clip(min=1)


def gap_by_level(model_QL: AnyArray, reference_QL: AnyArray) -> dict[str, AnyArray]:
    """`validation_gap_LEVEL` = 1/4 sum over quartiles of the squared difference, and `validation_gap`, the mean."""
    gap_L = ((model_QL - reference_QL) ** 2).mean(axis=-2)
    by_level = {f"validation_gap_{level}": gap_L[..., number] for number, level in enumerate(LEVELS)}
    return {"validation_gap": gap_L.mean(axis=-1), **by_level}
