"""How near a reply is to its reference in meaning: cosine of sentence embeddings, and BERTScore (Zhang et al. 2020).

BERTScore matches every token with the most similar one of the other text: precision is the mean over the reply's
tokens, recall over the reference's, F1 their harmonic mean. As in the bert-score package, [CLS] and [SEP] can be
matched but are not averaged, there is no idf weighting, and scores are not rescaled. States are the last layer's.

The encoder and the matching run under jit, batch by batch; a new column is one entry of what `pair_scores` returns.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from empathax.models.encoder.encoder import EncoderConfig, Params, mean_pooled, normalised, token_states
from empathax.models.encoder.files import LoadedEncoder
from empathax.models.encoder.text import EncoderBatch, EncoderText

_UNSEEN = -2.0  # below every cosine


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


def pair_scores(
    params: Params, config: EncoderConfig, replies: EncoderBatch, references: EncoderBatch
) -> dict[str, Float[Array, " B"]]:
    """The scores of each pair of a batch by metric name; to be called inside jit. Rows are [CLS] text [SEP]."""
    a_BTD = token_states(params, config, replies.token_ids_BT, replies.mask_BT)
    b_BSD = token_states(params, config, references.token_ids_BT, references.mask_BT)
    precision_B, recall_B, f1_B = bertscore(
        a_BTD,
        replies.mask_BT,
        b_BSD,
        references.mask_BT,
        reply_weights_BT=_inner(replies.mask_BT),
        reference_weights_BS=_inner(references.mask_BT),
    )
    return {
        "semantic_similarity": semantic_similarity(a_BTD, replies.mask_BT, b_BSD, references.mask_BT),
        "bertscore_precision": precision_B,
        "bertscore_recall": recall_B,
        "bertscore_f1": f1_B,
    }


_jitted_scores = jax.jit(pair_scores, static_argnames=("config",))


def semantic_values(
    encoder: LoadedEncoder, replies: Sequence[str], references: Sequence[str], batch_size: int = 32
) -> dict[str, Float[np.ndarray, " E"]]:
    """The scores of every pair by metric name, in the pairs' order; too long texts lose their end."""
    text = EncoderText(encoder.tokenizer, encoder.config)
    reply_rows, reference_rows = [text.row(one) for one in replies], [text.row(one) for one in references]
    found: dict[str, np.ndarray] = {}
    for numbers, batch in text.batches(reply_rows, batch_size):
        filled = np.pad(numbers, (0, batch_size - len(numbers)), mode="edge")
        references_batch = text.batch([reference_rows[number] for number in filled])
        scores = jax.device_get(_jitted_scores(encoder.params, encoder.config, batch, references_batch))
        for name, values_B in scores.items():
            found.setdefault(name, np.zeros(len(replies)))[numbers] = values_B[: len(numbers)]
    return found


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
