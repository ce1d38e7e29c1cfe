"""Preference pairs as the losses take them: both replies' log-probs out of a batch, and what losses make of them.

The first functions take pairs, token weights and discounted tails out of a batch's arrays. The last two turn a
log-ratio or a log-prob into the value that a loss compares.
"""

from __future__ import annotations

import math

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from empathax.config.losses import DIVERGENCES
from empathax.errors import ConfigError

_LARGEST_EXPONENT = 80.0  # float32 ends at exp(88.7); as in TRL


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
    """WPO (Zhou et al. 2024, eq. 2, with its sampled alignment): how likely the policy itself is to write both replies.

    exp of the mean over a reply's tokens of log p(token) - log sum_v p(v)^2, multiplied over the two replies; without
    a gradient. `log_weight_BS` holds the sums of these differences.
    """
    weight_BS = jnp.exp(jax.lax.stop_gradient(log_weight_BS) / jnp.maximum(num_tokens_BS, 1.0))
    chosen_BP, rejected_BP = take_pairs(weight_BS, chosen_index_BP, rejected_index_BP)
    return chosen_BP * rejected_BP


def divergence_score(log_ratio: Float[Array, "*p"], divergence: str, alpha: float) -> Float[Array, "*p"]:
    """f-DPO (Wang et al. 2024, arXiv 2309.16240): the implicit reward under another divergence than the reverse KL.

    f'(u) of u = exp(log_ratio), up to a constant, which cancels only in the difference of two replies to one prompt:
    reverse_kl: log u; forward_kl: 1 - 1/u; js: log(2u / (1 + u)); alpha: (u^(alpha - 1) - 1) / (alpha - 1), which is
    forward_kl at alpha 0 and reverse_kl at 1. Exponents stop at 80. Raises ConfigError for another divergence.
    """
    if divergence == "reverse_kl" or (divergence == "alpha" and abs(alpha - 1.0) < 1e-6):
        return log_ratio
    if divergence == "forward_kl":
        return -jnp.expm1(jnp.minimum(-log_ratio, _LARGEST_EXPONENT))
    if divergence == "js":
        return math.log(2.0) + jax.nn.log_sigmoid(log_ratio)
    if divergence == "alpha":
        power = alpha - 1.0
        return jnp.expm1(jnp.minimum(power * log_ratio, _LARGEST_EXPONENT)) / power
    raise ConfigError(f"dpo.f_divergence = {divergence!r} does not exist; expected one of {', '.join(DIVERGENCES)}")


def alphapo_reward(logps: Float[Array, "*p"], alpha: float) -> Float[Array, "*p"]:
    """AlphaPO's reward (Gupta et al. 2025, arXiv 2501.03884): (1 - exp(-alpha logp)) / alpha; the log-prob itself at
    alpha 0, its limit. The exponent stops at 80."""
    if alpha == 0.0:
        return logps
    return -jnp.expm1(jnp.minimum(-alpha * logps, _LARGEST_EXPONENT)) / alpha
