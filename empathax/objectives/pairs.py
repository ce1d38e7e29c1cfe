"""Preference pairs as the losses take them: the log-probs of both replies, out of a batch's log-probs of replies."""

from __future__ import annotations

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


class Pairs(flax.struct.PyTreeNode):
    """Summed log-probs of the chosen and the rejected reply of each pair, all float32.

    `chosen` and `rejected` are what the losses take: sums over the reply's tokens, or with its tail discounted
    (`tail_discounted`); `whole_chosen` and `whole_rejected` are the plain sums where the two differ.
    """

    chosen: Float[Array, "*p"]
    rejected: Float[Array, "*p"]
    ref_chosen: Float[Array, "*p"]  # 0 without a reference
    ref_rejected: Float[Array, "*p"]
    weight: Float[Array, "*p"]  # 1 for a pair, 0 for an unused slot
    chosen_tokens: Float[Array, "*p"] | None = None  # trained tokens of the reply; losses of means need them
    rejected_tokens: Float[Array, "*p"] | None = None
    importance: Float[Array, "*p"] | None = None  # WPO's weight of the pair's loss
    whole_chosen: Float[Array, "*p"] | None = None
    whole_rejected: Float[Array, "*p"] | None = None


def take_pairs(
    values_BS: Float[Array, "*b S"], chosen_index_BP: Int[Array, "*b P"], rejected_index_BP: Int[Array, "*b P"]
) -> tuple[Float[Array, "*b P"], Float[Array, "*b P"]]:
    """The values of each pair's two replies."""
    chosen_BP = jnp.take_along_axis(values_BS, chosen_index_BP, axis=-1)
    return chosen_BP, jnp.take_along_axis(values_BS, rejected_index_BP, axis=-1)


def chosen_token_weight(
    weight_BM: Float[Array, "*b M"],
    sequence_index_BM: Int[Array, "*b M"],
    chosen_index_BP: Int[Array, "*b P"],
    pair_weight_BP: Float[Array, "*b P"],
) -> Float[Array, "*b M"]:
    """`weight_BM` on the tokens of chosen replies, 0 elsewhere; a reply chosen in several pairs counts once."""
    is_chosen_BMP = sequence_index_BM[..., :, None] == chosen_index_BP[..., None, :]
    in_pair_BM = (is_chosen_BMP & (pair_weight_BP[..., None, :] > 0.0)).any(axis=-1)
    return jnp.where(in_pair_BM, weight_BM, 0.0)


def token_numbers(
    sequence_index_BM: Int[Array, "*b M"], weight_BM: Float[Array, "*b M"], num_tokens_BS: Float[Array, "*b S"]
) -> Float[Array, "*b M"]:
    """The number of each trained token in its reply, from 1; tokens lie reply after reply, each reply's in order."""
    before_BS = jnp.cumsum(num_tokens_BS, axis=-1) - num_tokens_BS
    return jnp.cumsum(weight_BM, axis=-1) - jnp.take_along_axis(before_BS, sequence_index_BM, axis=-1)


def tail_discounted(
    logps_BM: Float[Array, "*b M"],
    token_number_BM: Float[Array, "*b M"],
    sequence_index_BM: Int[Array, "*b M"],
    weight_BM: Float[Array, "*b M"],
    index_BP: Int[Array, "*b P"],
    shorter_BP: Float[Array, "*b P"],
    alpha: float,
) -> Float[Array, "*b P"]:
    """LD-DPO (Liu et al. 2024, arXiv 2409.06411): log-probs of the replies `index_BP`, with the tokens past the length
    of the pair's shorter reply times `alpha`.

    A pair's longer reply is cut where the shorter one ends, so one reply has other values in other pairs.
    """
    is_own_BPM = sequence_index_BM[..., None, :] == index_BP[..., :, None]
    factor_BPM = jnp.where(token_number_BM[..., None, :] <= shorter_BP[..., :, None], 1.0, alpha)
    weighted_BM = logps_BM * weight_BM
    return jnp.where(is_own_BPM, factor_BPM * weighted_BM[..., None, :], 0.0).sum(axis=-1)


def importance_weights(
    log_weight_BS: Float[Array, "*b S"],
    num_tokens_BS: Float[Array, "*b S"],
    chosen_index_BP: Int[Array, "*b P"],
    rejected_index_BP: Int[Array, "*b P"],
) -> Float[Array, "*b P"]:
    """WPO (Zhou et al. 2024, eq. 2, with its sampled alignment): how readily the policy itself would say both replies.

    exp of the mean over a reply's tokens of log p(token) - log sum_v p(v)^2, multiplied over the two replies; without
    a gradient. `log_weight_BS` holds the sums of these differences.
    """
    weight_BS = jnp.exp(jax.lax.stop_gradient(log_weight_BS) / jnp.maximum(num_tokens_BS, 1.0))
    chosen_BP, rejected_BP = take_pairs(weight_BS, chosen_index_BP, rejected_index_BP)
    return chosen_BP * rejected_BP
