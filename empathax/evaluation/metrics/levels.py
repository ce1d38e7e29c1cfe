"""validation_gap: how far a model's levels of validation, over the course of dialogues, are from the reference's.

A reconstruction of the DBT paper's "Our Metric", which that paper does not define, from the later full paper of its
first author (EVAEval in "I Don't Need Solution. I Need Emotional Support", Findings of ACL 2026). Every reply has a
level l (1 listening, 2 reflection, 3 validating, 4 genuineness) and a quartile q of its dialogue. T_q^l is the share of
level l among a model's replies in quartile q, V_q^l the reference's, and

    validation_gap_l = 1/4 * sum over q of (T_q^l - V_q^l)^2        lower is better; the mean over l is the headline.

Shares and gaps take any number of leading axes, so that a thousand resamples are one call.
"""

from __future__ import annotations

from typing import TypeVar

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from empathax.errors import ConfigError

LEVELS = ("listening", "reflection", "validating", "genuineness")  # Linehan's six merged to four, lowest first
NUM_LEVELS = len(LEVELS)
NUM_QUARTILES = 4

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


NORMALISATIONS = ("quartile", "level")


@flax.struct.dataclass
class LevelCounts:
    """How many replies of each quartile have each level: a state that adds up over batches, devices and hosts."""

    counts_QL: Int[Array, "4 4"]

    @classmethod
    def empty(cls) -> LevelCounts:
        """No replies yet."""
        return cls(jnp.zeros((NUM_QUARTILES, len(LEVELS)), jnp.int32))

    def merge(self, other: LevelCounts) -> LevelCounts:
        """The counts of both; exact, in any order."""
        return LevelCounts(self.counts_QL + other.counts_QL)

    def shares(self, normalise: str = "quartile") -> Float[Array, "4 4"]:
        """Shares [quartile, level] that sum to 1 over levels ("quartile") or over quartiles ("level").

        An empty quartile (or a level that nobody uses) has zeros. Raises a ConfigError for another `normalise`.
        """
        if normalise not in NORMALISATIONS:
            raise ConfigError(f"normalise = {normalise!r}: expected one of {', '.join(NORMALISATIONS)}")
        return shares(self.counts_QL, normalise)


def quartile(index: int, num_turns: int) -> int:
    """The quartile (0 to 3) of the supporter's turn `index` (from 0) among `num_turns`: min(3, floor(4 i / n))."""
    if not 0 <= index < num_turns:
        raise ValueError(f"turn {index} of {num_turns}: expected 0 <= turn < number of turns")
    return min(NUM_QUARTILES - 1, NUM_QUARTILES * index // num_turns)


def count_levels(
    levels_B: Int[Array, " B"], quartiles_B: Int[Array, " B"], valid_B: Bool[Array, " B"] | None = None
) -> LevelCounts:
    """Counts of replies with levels and quartiles from 0 to 3; rows that are not valid (padding) do not count."""
    cells_BQL = (
        (quartiles_B[:, None, None] == jnp.arange(NUM_QUARTILES)[:, None])
        & (levels_B[:, None, None] == jnp.arange(len(LEVELS)))
        & (True if valid_B is None else valid_B[:, None, None])
    )
    return LevelCounts(cells_BQL.sum(axis=0, dtype=jnp.int32))


def validation_gap(
    model: LevelCounts, reference: LevelCounts, normalise: str = "quartile"
) -> dict[str, Float[Array, ""]]:
    """`validation_gap_LEVEL` of the four levels, and `validation_gap`, their mean. Can run inside jit."""
    return gap_by_level(model.shares(normalise), reference.shares(normalise))
