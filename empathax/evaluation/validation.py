"""validation_gap: how far a model's levels of validation, over the course of dialogues, are from the reference's.

A reconstruction of the DBT paper's "Our Metric", which that paper does not define, from the later full paper of its
first author (EVAEval in "I Don't Need Solution. I Need Emotional Support", Findings of ACL 2026). Every reply has a
level l (1 listening, 2 reflection, 3 validating, 4 genuineness) and a quartile q of its dialogue. T_q^l is the share of
level l among a model's replies in quartile q, V_q^l the reference's, and

    validation_gap_l = 1/4 * sum over q of (T_q^l - V_q^l)^2        lower is better; the mean over l is the headline.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from empathax.data.records import Dialogue
from empathax.errors import ConfigError
from empathax.evaluation.classifiers.classifier import Classifier, ClassifierConfig, class_logits, encode_rows
from empathax.evaluation.level_data import LEVEL_HEAD, LEVELS
from empathax.evaluation.level_shares import gap_by_level, shares
from empathax.models.encoder import Params
from empathax.models.encoder_text import EncoderText

NUM_QUARTILES = 4
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


class PlacedReply(NamedTuple):
    """A reply, the seeker's last turn before it (the classifier's context), and its quartile."""

    text: str
    seeker: str
    quartile: int


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


def score_levels(
    params: Params,
    config: ClassifierConfig,
    token_ids_BT: Int[Array, "B T"],
    mask_BT: Bool[Array, "B T"],
    segment_ids_BT: Int[Array, "B T"],
    quartiles_B: Int[Array, " B"],
    valid_B: Bool[Array, " B"] | None = None,
) -> LevelCounts:
    """Counts of the levels that the classifier sees in a batch of replies; to be called inside jit."""
    logits_BL = class_logits(params, config, token_ids_BT, mask_BT, segment_ids_BT)[LEVEL_HEAD.name]
    return count_levels(jnp.argmax(logits_BL, axis=-1), quartiles_B, valid_B)


def validation_gap(
    model: LevelCounts, reference: LevelCounts, normalise: str = "quartile"
) -> dict[str, Float[Array, ""]]:
    """`validation_gap_LEVEL` of the four levels, and `validation_gap`, their mean. Can run inside jit."""
    return gap_by_level(model.shares(normalise), reference.shares(normalise))


def dialogue_replies(dialogue: Dialogue) -> list[PlacedReply]:
    """The supporter's turns of a dialogue, as reference replies."""
    turns = [number for number, message in enumerate(dialogue.messages) if message.role == "assistant"]
    return [
        PlacedReply(
            text=dialogue.messages[number].content,
            seeker=next((m.content for m in reversed(dialogue.messages[:number]) if m.role == "user"), ""),
            quartile=quartile(index, len(turns)),
        )
        for index, number in enumerate(turns)
    ]


def reply_levels(classifier: Classifier, replies: Sequence[PlacedReply], batch_size: int = 64) -> LevelCounts:
    """Counts of the levels of `replies`; text becomes ids here, the rest runs compiled."""
    rows = encode_rows(classifier, [reply.text for reply in replies], [reply.seeker for reply in replies])
    quartiles = np.array([reply.quartile for reply in replies], np.int32)
    counts = LevelCounts.empty()
    text = EncoderText(classifier.encoder.tokenizer, classifier.config.encoder)
    for numbers, batch in text.batches(rows, batch_size):
        padding = (0, batch_size - len(numbers))
        valid_B, quartiles_B = np.arange(batch_size) < len(numbers), np.pad(quartiles[numbers], padding)
        scored = _jitted_score(classifier.params, classifier.config, *batch, quartiles_B, valid_B)
        counts = counts.merge(scored)
    return counts


_jitted_score = jax.jit(score_levels, static_argnames=("config",))
