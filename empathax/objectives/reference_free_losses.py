"""Losses without a reference: `chosen` and `rejected` are the replies' log-probs under the policy, summed (cpo,
cpo_hinge) or per token. Each function gives one value per pair; the likelihood term that belongs to CPO and ORPO is
declared in losses.py and added by preference.py."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from empathax.objectives.margin_losses import hinge, ipo, smoothed_log_sigmoid

Logps = Float[Array, "*p"]

_LARGEST_EXPONENT = 80.0  # float32 ends at exp(88.7)
_NO_ODDS = -1e-6  # the odds of a probability of 1 are infinite


def cpo(chosen: Logps, rejected: Logps, *, beta: float, label_smoothing: float, alphapo_alpha: float) -> Logps:
    """CPO (Xu et al. 2024, eq. 3), smoothed as cDPO: -log s(beta (c - r)); its likelihood term is `cpo_alpha`."""
    return smoothed_log_sigmoid(beta * _margin(chosen, rejected, alphapo_alpha), label_smoothing)


def cpo_hinge(chosen: Logps, rejected: Logps, *, beta: float, alphapo_alpha: float) -> Logps:
    """SLiC-HF (Zhao et al. 2023, arXiv 2305.10425): max(0, 1 - beta (c - r)); its likelihood term is `cpo_alpha`."""
    return hinge(_margin(chosen, rejected, alphapo_alpha), beta=beta)


def cpo_ipo(chosen: Logps, rejected: Logps, *, beta: float, alphapo_alpha: float) -> Logps:
    """IPO's square (Azar et al. 2024, eq. 17) against a uniform reference; its likelihood term is `cpo_alpha`."""
    return ipo(_margin(chosen, rejected, alphapo_alpha), beta=beta)


def simpo(chosen: Logps, rejected: Logps, *, beta: float, label_smoothing: float, simpo_gamma: float) -> Logps:
    """SimPO (Meng et al. 2024, eq. 6), of log-probs per token: -log s(beta (c - r) - gamma)."""
    return smoothed_log_sigmoid(beta * (chosen - rejected - simpo_gamma / beta), label_smoothing)


def alphapo(
    chosen: Logps, rejected: Logps, *, beta: float, label_smoothing: float, simpo_gamma: float, alphapo_alpha: float
) -> Logps:
    """AlphaPO (Gupta et al. 2025, arXiv 2501.03884): SimPO with the reward (1 - p^-alpha) / alpha for log p."""
    rewards = (alphapo_reward(logps, alphapo_alpha) for logps in (chosen, rejected))
    return simpo(*rewards, beta=beta, label_smoothing=label_smoothing, simpo_gamma=simpo_gamma)


def orpo(chosen: Logps, rejected: Logps, *, beta: float) -> Logps:
    """ORPO (Hong et al. 2024, eqs. 4 and 7), beta = lambda: -beta log s(log odds(c) - log odds(r)), of log-probs per
    token, odds(p) = p / (1 - p). The likelihood of the chosen replies has weight 1."""
    chosen, rejected = (jnp.minimum(logps, _NO_ODDS) for logps in (chosen, rejected))
    log_odds = (chosen - rejected) - (_log_complement(chosen) - _log_complement(rejected))
    return -beta * jax.nn.log_sigmoid(log_odds)


def alphapo_reward(logps: Logps, alpha: float) -> Logps:
    """(1 - exp(-alpha logp)) / alpha; the log-prob itself for alpha 0, its limit. The exponent stops at 80."""
    if alpha == 0.0:
        return logps
    return -jnp.expm1(jnp.minimum(-alpha * logps, _LARGEST_EXPONENT)) / alpha


def _margin(chosen: jax.Array, rejected: jax.Array, alpha: float) -> jax.Array:
    return alphapo_reward(chosen, alpha) - alphapo_reward(rejected, alpha)


def _log_complement(logps: jax.Array) -> jax.Array:
    """log(1 - exp(x)) for x < 0, exact at both ends (Maechler 2012)."""
    is_small = logps < -jnp.log(2.0)
    far, near = jnp.where(is_small, logps, -1.0), jnp.where(is_small, -0.5, logps)  # no branch's gradient overflows
    return jnp.where(is_small, jnp.log1p(-jnp.exp(far)), jnp.log(-jnp.expm1(near)))
