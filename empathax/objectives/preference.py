"""The losses that a config names, as sums over pairs that add up over any split of the data.

A loss is the function of its name in pair_losses.py; config/losses.py declares in which form it takes log-probs and
which settings. This file joins the two. unpaired.py does the same for single replies; docs/objectives.md is the table.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from empathax.config import DpoOptions, losses
from empathax.config.losses import LOSSES, Loss
from empathax.errors import ConfigError, raise_all
from empathax.objectives import pair_losses
from empathax.objectives.logprobs import Sums
from empathax.objectives.pairs import Pairs, alphapo_reward, divergence_score
from empathax.objectives.unpaired import Replies, unpaired_loss


def check_options(options: DpoOptions) -> None:
    """Raises ConfigError with everything that is wrong with the settings of stage dpo."""
    raise_all(ConfigError, "the objective cannot be used", losses.problems(options))


def preference_loss(
    pairs: Pairs, options: DpoOptions, tokens_per_pair: Float[Array, ""] | None = None
) -> tuple[Float[Array, ""], Float[Array, ""], Sums]:
    """The weighted sum of the losses that `options` name.

    Its mean is mean over pairs of the pair losses + `nll_weight` x mean over tokens of the chosen replies' negative
    log-likelihood. `tokens_per_pair`: the chosen replies' tokens per pair in all data of a step; left out, in `pairs`.

    Returns (loss sum, number of pairs, metric sums): the loss is their quotient; metrics.py turns the sums of any split
    into the same number. Raises ConfigError where `pairs` lack the lengths that a loss needs.
    """
    pair_loss = jnp.zeros((), jnp.float32)
    for name, weight in zip(options.loss, losses.loss_weights(options), strict=True):
        pair_loss += weight * _loss_sum(LOSSES[name], pairs, options)
    num_pairs, weighted_nll = pairs.weight.sum(), nll_weight(options)
    sums = {"loss": pair_loss, **_metric_sums(pairs, options)}
    if not weighted_nll:
        return pair_loss, num_pairs, sums
    whole = pairs.chosen if pairs.whole_chosen is None else pairs.whole_chosen
    nll = -weighted_nll * (whole * pairs.weight).sum()
    num_tokens = (_lengths(pairs, "the negative log-likelihood of the chosen replies")[0] * pairs.weight).sum()
    sums |= {"loss_nll": nll, "loss_nll_tokens": num_tokens}
    if tokens_per_pair is None:
        tokens_per_pair = num_tokens / num_pairs
    return pair_loss + nll / tokens_per_pair, num_pairs, sums


def nll_weight(options: DpoOptions) -> float:
    """The weight of the chosen replies' negative log-likelihood per token: of "sft", ORPO, CPO's `cpo_alpha`."""
    total = 0.0
    for name, weight in zip(options.loss, losses.loss_weights(options), strict=True):
        own = LOSSES[name].nll
        total += weight * (getattr(options, own) if isinstance(own, str) else own)
    return total


def initial_loss(options: DpoOptions) -> float | None:
    """The mean of the losses of pairs or replies where the policy is its reference, whatever these are; None if it
    depends on them.

    The likelihood term is not in it. Asked of the losses themselves, with every log-ratio 0.
    """
    if losses.reads_single_replies(options):
        if options.desirable_weight != options.undesirable_weight:
            return None
        nothing, once = jnp.zeros(1), jnp.ones(1)
        replies = Replies(nothing, nothing, once, once, nothing, nothing, once)
        return float(unpaired_loss(replies, options)[0])
    if options.use_weighting or any(LOSSES[name].takes == losses.LOGPS for name in options.loss):
        return None
    zero, one = jnp.zeros(1), jnp.ones(1)
    pairs = Pairs(zero, zero, zero, zero, one, chosen_tokens=one, rejected_tokens=one)
    return float(preference_loss(pairs, options)[2]["loss"])


def _loss_sum(loss: Loss, pairs: Pairs, options: DpoOptions) -> jax.Array:
    """One loss, summed over pairs; without its likelihood term."""
    if loss.takes == losses.NOTHING:
        return jnp.zeros((), jnp.float32)
    if loss.takes == losses.REPLIES:
        raise ConfigError(f"dpo.loss = {loss.name!r} takes single replies with a label, not pairs: see unpaired_loss")
    function = partial(getattr(pair_losses, loss.name), **{name: getattr(options, name) for name in loss.options})
    if loss.takes == losses.SORTED:
        values, weight = function(pairs)
        return (values * weight).sum()
    chosen, rejected = pairs.chosen, pairs.rejected
    if loss.takes != losses.LOGPS:
        ratios = (chosen - pairs.ref_chosen, rejected - pairs.ref_rejected)
        chosen, rejected = (divergence_score(ratio, options.f_divergence, options.f_alpha) for ratio in ratios)
    chosen, rejected = _reduced((chosen, rejected), loss, pairs)
    values = function(chosen - rejected) if loss.takes == losses.MARGIN else function(chosen, rejected)
    weight = pairs.weight if pairs.importance is None else pairs.weight * pairs.importance
    return (values * weight).sum()


def _reduced(values: tuple[jax.Array, jax.Array], loss: Loss, pairs: Pairs) -> tuple[jax.Array, jax.Array]:
    """Sums, or values per token where the loss is declared so."""
    if loss.reduction == "sum":
        return values
    chosen_tokens, rejected_tokens = _lengths(pairs, f"dpo.loss = {loss.name!r}")
    return values[0] / chosen_tokens, values[1] / rejected_tokens


def _lengths(pairs: Pairs, what: str) -> tuple[jax.Array, jax.Array]:
    if pairs.chosen_tokens is None or pairs.rejected_tokens is None:
        raise ConfigError(f"{what} is per token, but these pairs hold summed log-probs without the replies' lengths")
    return jnp.maximum(pairs.chosen_tokens, 1.0), jnp.maximum(pairs.rejected_tokens, 1.0)


def _metric_sums(pairs: Pairs, options: DpoOptions) -> Sums:
    chosen, rejected = _rewards(pairs, options)
    margin = chosen - rejected
    per_pair = {
        "reward_chosen": chosen,
        "reward_rejected": rejected,
        "reward_margin": margin,
        "reward_accuracy": (margin > 0.0).astype(jnp.float32),  # a tie is not a win, as in TRL
        "logp_chosen": pairs.chosen if pairs.whole_chosen is None else pairs.whole_chosen,
        "logp_rejected": pairs.rejected if pairs.whole_rejected is None else pairs.whole_rejected,
        "pairs": jnp.ones_like(margin),
    }
    return {name: (value * pairs.weight).sum() for name, value in per_pair.items()}


def _rewards(pairs: Pairs, options: DpoOptions) -> tuple[jax.Array, jax.Array]:
    """beta x log-ratio; without a reference beta x what the first such loss takes the log-prob as."""
    free = [LOSSES[name] for name in options.loss if LOSSES[name].takes == losses.LOGPS]
    if not free or losses.reference_kind(options) != "none":
        return options.beta * (pairs.chosen - pairs.ref_chosen), options.beta * (pairs.rejected - pairs.ref_rejected)
    chosen, rejected = _reduced((pairs.chosen, pairs.rejected), free[0], pairs)
    if "alphapo_alpha" in free[0].options:
        chosen, rejected = (alphapo_reward(logps, options.alphapo_alpha) for logps in (chosen, rejected))
    return options.beta * chosen, options.beta * rejected
