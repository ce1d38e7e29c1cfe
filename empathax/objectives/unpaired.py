"""Losses of single replies with a label, desirable or not: KTO and the unpaired APO-zero, as sums over replies.

A loss is the function here that has its name in config/losses.py. `ratio` is a reply's log-ratio
log pi(y|x) - log pi_ref(y|x), summed over the reply; `sign` is 1 where the reply is desirable, else -1; `kl` is one
number for all. Each gives one value per reply, before the label's weight.
"""

from __future__ import annotations

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from empathax.config import DpoOptions, losses
from empathax.objectives.logprobs import Sums

Ratios = Float[Array, "*r"]

LABEL_WEIGHTS = ("desirable_weight", "undesirable_weight")  # settings of every loss here, which no function takes


class Replies(flax.struct.PyTreeNode):
    """Summed log-probs of single replies, all float32; mismatched ones are of another prompt's reply."""

    logps: Float[Array, "*r"]
    ref_logps: Float[Array, "*r"]
    desirable: Float[Array, "*r"]  # 1 or 0
    weight: Float[Array, "*r"]  # 1 for a reply, 0 for an unused slot
    mismatched_logps: Float[Array, "*r"]
    ref_mismatched_logps: Float[Array, "*r"]
    mismatched_weight: Float[Array, "*r"]  # 0 where there is none


def kto(ratio: Ratios, sign: Ratios, kl: Float[Array, ""], *, beta: float) -> Ratios:
    """KTO (Ethayarajh et al. 2024, arXiv 2402.01306, eq. 7, without its constant): 1 - s(beta (ratio - kl)) of a
    desirable reply, 1 - s(beta (kl - ratio)) of an undesirable one."""
    return jax.nn.sigmoid(-beta * sign * (ratio - kl))


def apo_zero_unpaired(ratio: Ratios, sign: Ratios, kl: Float[Array, ""], *, beta: float) -> Ratios:
    """APO-zero (D'Oosterlinck et al. 2024, arXiv 2408.06266, eq. 7), each half alone: 1 - s(beta ratio) of a desirable
    reply, s(beta ratio) of an undesirable one. `kl` is not used."""
    return jax.nn.sigmoid(-beta * sign * ratio)


def kl_estimate(replies: Replies) -> Float[Array, ""]:
    """KTO's reference point (section 4.1): the mean log-ratio of mismatched replies, at least 0, without a gradient.

    0 where no reply has a mismatched one.
    """
    ratios = (replies.mismatched_logps - replies.ref_mismatched_logps) * replies.mismatched_weight
    mean = ratios.sum() / jnp.maximum(replies.mismatched_weight.sum(), 1.0)
    return jax.lax.stop_gradient(jnp.maximum(mean, 0.0))


def unpaired_loss(replies: Replies, options: DpoOptions) -> tuple[Float[Array, ""], Float[Array, ""], Sums]:
    """The weighted sum of the losses that `options` name, each reply's times `desirable_weight` or
    `undesirable_weight`.

    Returns (loss sum, number of replies, metric sums): the loss is their quotient. The KL divergence is estimated from
    all `replies`, so the sums of several batches add up to the mean of the batches' own losses.
    """
    kl, ratio = kl_estimate(replies), replies.logps - replies.ref_logps
    label_weight = jnp.where(replies.desirable > 0.0, options.desirable_weight, options.undesirable_weight)
    total = jnp.zeros_like(ratio)
    for name, weight in zip(options.loss, losses.loss_weights(options), strict=True):
        settings = {key: getattr(options, key) for key in losses.LOSSES[name].options if key not in LABEL_WEIGHTS}
        total += weight * globals()[name](ratio, 2.0 * replies.desirable - 1.0, kl, **settings)
    loss, num_replies = (total * label_weight * replies.weight).sum(), replies.weight.sum()
    sums = {"loss": loss, "replies": num_replies, **_metric_sums(replies, options.beta * ratio)}
    if losses.rows_kind(options) == losses.MISMATCHED_ROWS:
        sums["kl"] = kl * num_replies
    return loss, num_replies, sums


def _metric_sums(replies: Replies, rewards: Ratios) -> Sums:
    """Sums over the desirable replies ("chosen") and over the undesirable ones ("rejected")."""
    sums: Sums = {}
    for side, is_of_it in (("chosen", replies.desirable), ("rejected", 1.0 - replies.desirable)):
        weight = is_of_it * replies.weight
        sums |= {
            f"reward_{side}": (rewards * weight).sum(),
            f"logp_{side}": (replies.logps * weight).sum(),
            f"replies_{side}": weight.sum(),
        }
    return sums
