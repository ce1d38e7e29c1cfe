"""How near a reply is to its reference in meaning: cosine of sentence embeddings, and BERTScore (Zhang et al. 2020).

BERTScore matches every token with the most similar one of the other text: precision is the mean over the reply's
tokens, recall over the reference's, F1 their harmonic mean. As in the bert-score package, [CLS] and [SEP] can be
matched but are not averaged, there is no idf weighting, and scores are not rescaled. States are the last layer's.
"""

from __future__ import annotations

from collections.abc import Sequence

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from empathax.models.encoder import EncoderConfig, Params, mean_pooled, normalised, token_states
from empathax.models.encoder_files import LoadedEncoder
from empathax.models.encoder_text import EncoderBatch, EncoderText

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
        names = {"semantic_similarity": self.similarity, "bertscore_precision": self.precision}
        names |= {"bertscore_recall": self.recall, "bertscore_f1": self.f1}
        return {name: total / self.count for name, total in names.items()}


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
    as 1. A text without weight scores 0.
    """
    cosine_BTS = jnp.einsum("btd,bsd->bts", normalised(reply_BTD), normalised(reference_BSD))
    both_BTS = reply_mask_BT[:, :, None] & reference_mask_BS[:, None, :]
    cosine_BTS = jnp.where(both_BTS, cosine_BTS, _UNSEEN)
    precision_B = _weighted_mean(cosine_BTS.max(axis=2), reply_mask_BT, reply_weights_BT)
    recall_B = _weighted_mean(cosine_BTS.max(axis=1), reference_mask_BS, reference_weights_BS)
    total_B = precision_B + recall_B
    f1_B = jnp.where(total_B != 0.0, 2.0 * precision_B * recall_B / jnp.where(total_B != 0.0, total_B, 1.0), 0.0)
    return precision_B, recall_B, f1_B


def score_pairs(
    params: Params,
    config: EncoderConfig,
    replies: EncoderBatch,
    references: EncoderBatch,
    valid_B: Bool[Array, " B"],
) -> SemanticSums:
    """Sums over the valid rows of a batch of pairs; to be called inside jit. Rows are [CLS] text [SEP]."""
    a_BTD = token_states(params, config, replies.token_ids_BT, replies.mask_BT)
    b_BSD = token_states(params, config, references.token_ids_BT, references.mask_BT)
    similarity_B = semantic_similarity(a_BTD, replies.mask_BT, b_BSD, references.mask_BT)
    precision_B, recall_B, f1_B = bertscore(
        a_BTD,
        replies.mask_BT,
        b_BSD,
        references.mask_BT,
        reply_weights_BT=_inner(replies.mask_BT),
        reference_weights_BS=_inner(references.mask_BT),
    )
    total = lambda values_B: jnp.sum(jnp.where(valid_B, values_B, 0.0))  # noqa: E731
    return SemanticSums(total(similarity_B), total(precision_B), total(recall_B), total(f1_B), jnp.sum(valid_B))


def semantic_scores(
    encoder: LoadedEncoder, replies: Sequence[str], references: Sequence[str], batch_size: int = 32
) -> SemanticSums:
    """Sums over all pairs; too long texts lose their end."""
    text = EncoderText(encoder.tokenizer, encoder.config)
    reply_rows, reference_rows = [text.row(one) for one in replies], [text.row(one) for one in references]
    sums = SemanticSums.empty()
    for numbers, batch in text.batches(reply_rows, batch_size):
        filled = np.pad(numbers, (0, batch_size - len(numbers)), mode="edge")
        other = text.batch([reference_rows[number] for number in filled])
        valid_B = np.arange(batch_size) < len(numbers)
        sums = sums.merge(_jitted_pairs(encoder.params, encoder.config, batch, other, valid_B))
    return sums


_jitted_pairs = jax.jit(score_pairs, static_argnames=("config",))


def _inner(mask_BT: Array) -> Array:
    """1 at the tokens between [CLS] and [SEP]: all of the mask but its first and last."""
    is_last_BT = mask_BT & ~jnp.pad(mask_BT[:, 1:], ((0, 0), (0, 1)))
    return (mask_BT & ~is_last_BT).astype(jnp.float32).at[:, 0].set(0.0)


def _weighted_mean(values_BT: Array, mask_BT: Array, weights_BT: Array | None) -> Array:
    weights_BT = mask_BT.astype(jnp.float32) * (1.0 if weights_BT is None else weights_BT)
    total_B = weights_BT.sum(axis=1)
    return jnp.sum(jnp.where(mask_BT, values_BT, 0.0) * weights_BT, axis=1) / jnp.where(total_B > 0.0, total_B, 1.0)
