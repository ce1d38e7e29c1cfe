"""validation_gap: how far a model's levels of validation, over the course of dialogues, are from the reference's.

A reconstruction of the DBT paper's "Our Metric", which that paper does not define, from the later full paper of its
first author (EVAEval in "I Don't Need Solution. I Need Emotional Support", Findings of ACL 2026). Every reply has a
level l (1 listening, 2 reflection, 3 validating, 4 genuineness) and a quartile q of its dialogue. T_q^l is the share of
level l among a model's replies in quartile q, V_q^l the reference's, and

    validation_gap_l = 1/4 * sum over q of (T_q^l - V_q^l)^2        lower is better; the mean over l is the headline.

Levels and counts are taken under jit. Shares and gaps work on any kind of array with any number of leading axes, so
that a thousand resamples are one call.

Axes: E replies, D dialogues, Q quartiles, L levels.
"""

from __future__ import annotations

import functools
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from empathax.errors import ConfigError

LEVELS = ("listening", "reflection", "validating", "genuineness")  # Linehan's six merged to four, lowest first
NUM_LEVELS = len(LEVELS)
NUM_QUARTILES = 4
NORMALISATIONS = ("quartile", "level")

AnyArray = TypeVar("AnyArray", np.ndarray, jax.Array)  # [*R, 4, 4] in; [*R, 4, 4] or [*R] out


def quartile(index: int, num_turns: int) -> int:
    """The quartile (0 to 3) of the supporter's turn `index` (from 0) among `num_turns`: min(3, floor(4 i / n))."""
    if not 0 <= index < num_turns:
        raise ValueError(f"turn {index} of {num_turns}: expected 0 <= turn < number of turns")
    return min(NUM_QUARTILES - 1, NUM_QUARTILES * index // num_turns)


@jax.jit
def most_likely(logits_EC: Float[Array, "E C"]) -> Int[Array, " E"]:
    """The class of the largest logit, the first one of equals."""
    return jnp.argmax(logits_EC, axis=-1)


@functools.partial(jax.jit, static_argnames="num_dialogues")
def count_levels(
    levels_E: Int[Array, " E"], quartiles_E: Int[Array, " E"], dialogues_E: Int[Array, " E"], num_dialogues: int
) -> Int[Array, "D Q L"]:
    """How many replies of each dialogue and quartile have each level. All indices are from 0 and in range."""
    empty_DQL = jnp.zeros((num_dialogues, NUM_QUARTILES, NUM_LEVELS), jnp.int32)
    return empty_DQL.at[dialogues_E, quartiles_E, levels_E].add(1)


def shares(counts_QL: AnyArray, normalise: str) -> AnyArray:
    """Counts [quartile, level] as shares of a quartile ("quartile") or of a level ("level"); zeros where none are.

    Raises a ConfigError for another `normalise`.
    """
    if normalise not in NORMALISATIONS:
        raise ConfigError(f"normalise = {normalise!r}: expected one of {', '.join(NORMALISATIONS)}")
    totals = counts_QL.sum(axis=-1 if normalise == "quartile" else -2, keepdims=True)
    return counts_QL / totals.clip(min=1)


def validation_gap(model_QL: AnyArray, reference_QL: AnyArray, normalise: str = "quartile") -> dict[str, AnyArray]:
    """`validation_gap`, the mean, and `validation_gap_LEVEL` of the four levels, from counts [quartile, level]."""
    gap_L = ((shares(model_QL, normalise) - shares(reference_QL, normalise)) ** 2).mean(axis=-2)
    by_level = {f"validation_gap_{level}": gap_L[..., number] for number, level in enumerate(LEVELS)}
    return {"validation_gap": gap_L.mean(axis=-1), **by_level}
