"""How near a reply is to its reference in meaning: cosine of sentence embeddings, and BERTScore (Zhang et al. 2020).

BERTScore matches every token with the most similar one of the other text: precision is the mean over the reply's
tokens, recall over the reference's, F1 their harmonic mean. As in the bert-score package, [CLS] and [SEP] can be
matched but are not averaged, there is no idf weighting, and scores are not rescaled. States are the last layer's.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from empathax.models.encoder.encoder import EncoderConfig, Params, mean_pooled, normalised, token_states
from empathax.models.encoder.files import LoadedEncoder
from empathax.models.encoder.text import EncoderBatch, EncoderText

METRICS = ("semantic_similarity", "bertscore_precision", "bertscore_recall", "bertscore_f1")
_UNSEEN = -2.0  # below every cosine


@flax.struct.dataclass
class SemanticSums:
    """Sums over pairs of reply and reference: a state that adds up over batches, devices and hosts."""

    similarity: Float[Array, ""]
    precision: Float[Array, ""]
    recall: Float[Array, ""]
    f1: Float[Array, ""]
    count: Int[Array, ""]

    @classmethod
    def empty(cls) -> SemanticSums:
        """No pairs yet."""
        zero = jnp.float32(0.0)
        return cls(zero, zero, zero, zero, jnp.int32(0))

    def merge(self, other: SemanticSums) -> SemanticSums:
        """The sums of both."""
        return jax.tree.map(jnp.add, self, other)

    def compute(self) -> dict[str, Float[Array, ""]]:
        """Means over all pairs; NaN if there is none."""
        totals = (self.similarity, self.precision, self.recall, self.f1)
        return {name: total / self.count for name, total in zip(METRICS, totals, strict=True)}


def semantic_similarity(
    a_BTD: Float[Array, "B T D"], a_mask_BT: Bool[Array, "B T"], b_BSD: Float[Array, "B S D"], b_mask_BS: Array
) -> Float[Array, " B"]:
    """Cosine of the mean-pooled token states of two texts, special tokens included, from -1 to 1."""
    return jnp.sum(normalised(mean_pooled(a_BTD, a_mask_BT)) * normalised(mean_pooled(b_BSD, b_mask_BS)), axis=-1)


def bertscore(
    reply_BTD: Float[Array, "B T D"],
    reply_mask_BT: Bool[Array, "B T"],
    reference_BSD: Float[Array, "B S D"],
    reference_mask_BS: Bool[Array, "B S"],
    *,
    reply_weights_BT: Float[Array, "B T"] | None = None,
    reference_weights_BS: Float[Array, "B S"] | None = None,
) -> tuple[Float[Array, " B"], Float[Array, " B"], Float[Array, " B"]]:
    """Precision, recall and F1 of greedy matching by cosine.

    Weights say how much a token counts in the mean (0 for special tokens); by default every token of the mask counts
    as 1. A pair with a text without weight scores 0, as in the bert-score package.
    """
    cosine_BTS = jnp.einsum("btd,bsd->bts", normalised(reply_BTD), normalised(reference_BSD))
    both_BTS = reply_mask_BT[:, :, None] & reference_mask_BS[:, None, :]
    cosine_BTS = jnp.where(both_BTS, cosine_BTS, _UNSEEN)
    precision_B = _weighted_mean(cosine_BTS.max(axis=2), reply_mask_BT, reply_weights_BT)
    recall_B = _weighted_mean(cosine_BTS.max(axis=1), reference_mask_BS, reference_weights_BS)
    both_B = _has_weight(reply_mask_BT, reply_weights_BT) & _has_weight(reference_mask_BS, reference_weights_BS)
    precision_B, recall_B = jnp.where(both_B, precision_B, 0.0), jnp.where(both_B, recall_B, 0.0)
    total_B = precision_B + recall_B
    f1_B = jnp.where(total_B != 0.0, 2.0 * precision_B * recall_B / jnp.where(total_B != 0.0, total_B, 1.0), 0.0)
    return precision_B, recall_B, f1_B


class PairScores(NamedTuple):
    """The scores of each pair."""

    similarity: Float[Array, " B"]
    precision: Float[Array, " B"]
    recall: Float[Array, " B"]
    f1: Float[Array, " B"]


def pair_scores(params: Params, config: EncoderConfig, replies: EncoderBatch, references: EncoderBatch) -> PairScores:
    """The scores of a batch of pairs; to be called inside jit. Rows are [CLS] text [SEP]."""
    a_BTD = token_states(params, config, replies.token_ids_BT, replies.mask_BT)
    b_BSD = token_states(params, config, references.token_ids_BT, references.mask_BT)
    return PairScores(
        semantic_similarity(a_BTD, replies.mask_BT, b_BSD, references.mask_BT),
        *bertscore(
            a_BTD,
            replies.mask_BT,
            b_BSD,
            references.mask_BT,
            reply_weights_BT=_inner(replies.mask_BT),
            reference_weights_BS=_inner(references.mask_BT),
        ),
    )


def score_pairs(
    params: Params,
    config: EncoderConfig,
    replies: EncoderBatch,
    references: EncoderBatch,
    valid_B: Bool[Array, " B"],
) -> SemanticSums:
    """Sums over the valid rows of a batch of pairs; to be called inside jit."""
    scores = pair_scores(params, config, replies, references)
    similarity, precision, recall, f1 = (jnp.sum(jnp.where(valid_B, values_B, 0.0)) for values_B in scores)
    return SemanticSums(similarity, precision, recall, f1, jnp.sum(valid_B))


def semantic_scores(
    encoder: LoadedEncoder, replies: Sequence[str], references: Sequence[str], batch_size: int = 32
) -> SemanticSums:
    """Sums over all pairs; too long texts lose their end."""
    sums = SemanticSums.empty()
    for numbers, *batch in _pair_batches(encoder, replies, references, batch_size):
        valid_B = np.arange(batch_size) < len(numbers)
        sums = sums.merge(_jitted_pairs(encoder.params, encoder.config, *batch, valid_B))
    return sums


def semantic_values(
    encoder: LoadedEncoder, replies: Sequence[str], references: Sequence[str], batch_size: int = 32
) -> dict[str, Float[np.ndarray, " E"]]:
    """The scores of every pair by metric name, in the pairs' order; their means are those of `semantic_scores`."""
    values_ES = np.zeros((len(replies), len(PairScores._fields)))
    for numbers, *batch in _pair_batches(encoder, replies, references, batch_size):
        scores = jax.device_get(_jitted_values(encoder.params, encoder.config, *batch))
        values_ES[numbers] = np.stack(scores, axis=1)[: len(numbers)]
    return dict(zip(METRICS, values_ES.T, strict=True))


def _pair_batches(
    encoder: LoadedEncoder, replies: Sequence[str], references: Sequence[str], batch_size: int
) -> Iterator[tuple[Int[np.ndarray, " M"], EncoderBatch, EncoderBatch]]:
    """(which pairs, their replies, their references): M <= batch_size pairs, filled up to the batch's size."""
    text = EncoderText(encoder.tokenizer, encoder.config)
    reply_rows, reference_rows = [text.row(one) for one in replies], [text.row(one) for one in references]
    for numbers, batch in text.batches(reply_rows, batch_size):
        filled = np.pad(numbers, (0, batch_size - len(numbers)), mode="edge")
        yield numbers, batch, text.batch([reference_rows[number] for number in filled])


_jitted_values = jax.jit(pair_scores, static_argnames=("config",))
_jitted_pairs = jax.jit(score_pairs, static_argnames=("config",))


def _inner(mask_BT: Array) -> Array:
    """1 at the tokens between [CLS] and [SEP]: all of the mask but its first and last."""
    is_last_BT = mask_BT & ~jnp.pad(mask_BT[:, 1:], ((0, 0), (0, 1)))
    return (mask_BT & ~is_last_BT).astype(jnp.float32).at[:, 0].set(0.0)


def _has_weight(mask_BT: Array, weights_BT: Array | None) -> Array:
    return jnp.any(mask_BT if weights_BT is None else mask_BT & (weights_BT > 0), axis=1)


def _weighted_mean(values_BT: Array, mask_BT: Array, weights_BT: Array | None) -> Array:
    weights_BT = mask_BT.astype(jnp.float32) * (1.0 if weights_BT is None else weights_BT)
    total_B = weights_BT.sum(axis=1)
    return jnp.sum(jnp.where(mask_BT, values_BT, 0.0) * weights_BT, axis=1) / jnp.where(total_B > 0.0, total_B, 1.0)
