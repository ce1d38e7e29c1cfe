"""Losses of the difference of two scores: `margin` = score of the chosen reply - score of the rejected one.

A score is the reply's log-ratio, log pi(y|x) - log pi_ref(y|x), or what an f-divergence makes of it (divergences.py);
summed over the reply, or per token where losses.py declares "mean". Each function gives one value per pair.

Losses that look at each reply by itself: `chosen` and `rejected` are the replies' log-ratios to the reference,
log pi(y|x) - log pi_ref(y|x), summed over the reply. Each function gives one value per pair.

Alignment via optimal transport (AOT, Melnyk et al. 2024, arXiv 2406.05882): distributions over a batch, not pairs.

The one-dimensional transport between two samples of one size is to sort both. The batch is every pair that the function
is given: in a training step, all rows on all devices. Values of unused slots are sorted behind the others. A function
gives one value per place in the order, and whether the place is used.

Losses without a reference: `chosen` and `rejected` are the replies' log-probs under the policy, summed (cpo,
cpo_hinge) or per token. Each function gives one value per pair; the likelihood term that belongs to CPO and ORPO is
declared in losses.py and added by preference.py.

f-DPO (Wang et al. 2024, arXiv 2309.16240): the implicit reward of another divergence than the reverse KL,
beta f'(ratio).

Its normaliser cancels only in the difference of two rewards of one prompt.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from empathax.config.losses import DIVERGENCES
from empathax.errors import ConfigError
from empathax.objectives.pairs import Pairs

Margins = Float[Array, "*p"]

_LARGEST = 1e18  # its square is a float32


def sigmoid(margin: Margins, *, beta: float, label_smoothing: float) -> Margins:
    """DPO (Rafailov et al. 2023, eq. 7): -log s(beta m). With label smoothing e the conservative cDPO (Mitchell 2023):
    -(1 - e) log s(beta m) - e log s(-beta m)."""
    return smoothed_log_sigmoid(beta * margin, label_smoothing)


def robust(margin: Margins, *, beta: float, label_smoothing: float) -> Margins:
    """rDPO (Chowdhury et al. 2024, arXiv 2403.00409), unbiased where a share e < 1/2 of the labels is flipped:
    (-(1 - e) log s(beta m) + e log s(-beta m)) / (1 - 2e)."""
    clean, flipped = jax.nn.log_sigmoid(beta * margin), jax.nn.log_sigmoid(-beta * margin)
    return (-(1.0 - label_smoothing) * clean + label_smoothing * flipped) / (1.0 - 2.0 * label_smoothing)


def hinge(margin: Margins, *, beta: float) -> Margins:
    """The hinge of SLiC-HF (Zhao et al. 2023, arXiv 2305.10425) on DPO's rewards, as in RSO (Liu et al. 2024,
    arXiv 2309.06657): max(0, 1 - beta m)."""
    return jax.nn.relu(1.0 - beta * margin)


def ipo(margin: Margins, *, beta: float) -> Margins:
    """IPO (Azar et al. 2024, eq. 17), beta = tau: (m - 1 / (2 tau))^2, of scores per token, as its authors use it."""
    margin = jnp.clip(margin, -_LARGEST, _LARGEST)  # only an f-divergence can get there
    return jnp.square(margin - 1.0 / (2.0 * beta))


def exo_pair(margin: Margins, *, beta: float, label_smoothing: float) -> Margins:
    """EXO-pref (Ji et al. 2024, eq. 16), the reverse KL from (1 - e, e) to p = s(beta m):
    p log(p / (1 - e)) + (1 - p) log((1 - p) / e)."""
    epsilon = jnp.asarray(label_smoothing, margin.dtype)
    reward = beta * margin
    chosen = jax.nn.sigmoid(reward) * (jax.nn.log_sigmoid(reward) - jnp.log1p(-epsilon))
    return chosen + jax.nn.sigmoid(-reward) * (jax.nn.log_sigmoid(-reward) - jnp.log(epsilon))


def discopop(margin: Margins, *, beta: float, discopop_tau: float) -> Margins:
    """DiscoPOP (Lu et al. 2024, eq. 5): a blend of -log s(beta m) and exp(-beta m), the latter's share s(beta m / tau).

    The second product is taken as one exponential: for a margin far below 0 its factors are infinity and 0.
    """
    reward = beta * margin
    modulation = reward / discopop_tau
    logistic = -jax.nn.log_sigmoid(reward) * jax.nn.sigmoid(-modulation)
    return logistic + jnp.exp(jax.nn.log_sigmoid(modulation) - reward)


def sigmoid_norm(margin: Margins, *, beta: float) -> Margins:
    """DPO's loss of scores per token, as Tulu 3 (Lambert et al. 2024, arXiv 2411.15124) has it: -log s(beta m)."""
    return -jax.nn.log_sigmoid(beta * margin)


def smoothed_log_sigmoid(logits: Margins, label_smoothing: float) -> Margins:
    """-(1 - e) log s(x) - e log s(-x)."""
    sure = -(1.0 - label_smoothing) * jax.nn.log_sigmoid(logits)
    return sure - label_smoothing * jax.nn.log_sigmoid(-logits)


Ratios = Float[Array, "*p"]


def nca_pair(chosen: Ratios, rejected: Ratios, *, beta: float) -> Ratios:
    """NCA on pairs (Chen et al. 2024, arXiv 2402.05369, for two replies with a hard preference):
    -log s(beta c) - log s(-beta c) / 2 - log s(-beta r) / 2."""
    reward = beta * chosen
    noise = jax.nn.log_sigmoid(-reward) + jax.nn.log_sigmoid(-beta * rejected)
    return -jax.nn.log_sigmoid(reward) - 0.5 * noise


def bco_pair(chosen: Ratios, rejected: Ratios, *, beta: float) -> Ratios:
    """BCO on pairs (Jung et al. 2024, arXiv 2404.04656): -log s(beta c) - log s(-beta r). Without the paper's shift of
    rewards, which TRL 1.16 does not have either: a pair's loss does not depend on other pairs."""
    return -jax.nn.log_sigmoid(beta * chosen) - jax.nn.log_sigmoid(-beta * rejected)


def sppo_hard(chosen: Ratios, rejected: Ratios, *, beta: float) -> Ratios:
    """SPPO (Wu et al. 2024, eq. 4.7, eta = beta) where the chosen reply wins with probability 1:
    (c - 1 / (2 beta))^2 + (r + 1 / (2 beta))^2."""
    half = 0.5 / beta
    return jnp.square(chosen - half) + jnp.square(rejected + half)


def apo_zero(chosen: Ratios, rejected: Ratios, *, beta: float) -> Ratios:
    """APO-zero (D'Oosterlinck et al. 2024, eq. 7): 1 - s(beta c) + s(beta r)."""
    return jax.nn.sigmoid(-beta * chosen) + jax.nn.sigmoid(beta * rejected)


def apo_down(chosen: Ratios, rejected: Ratios, *, beta: float) -> Ratios:
    """APO-down (D'Oosterlinck et al. 2024, eq. 8): s(beta c) + 1 - s(beta (c - r))."""
    return jax.nn.sigmoid(beta * chosen) + jax.nn.sigmoid(-beta * (chosen - rejected))


Places = tuple[Float[Array, " p"], Float[Array, " p"]]


def aot(pairs: Pairs, *, beta: float, label_smoothing: float) -> Places:
    """AOT for paired data: policy and reference values of log pi(chosen) - log pi(rejected), each sorted,
    and the smoothed -log s(beta d) of their differences d."""
    policy = pairs.chosen - pairs.rejected
    return _compared(policy, pairs.ref_chosen - pairs.ref_rejected, pairs.weight, beta, label_smoothing)


def aot_unpaired(pairs: Pairs, *, beta: float, label_smoothing: float) -> Places:
    """AOT for unpaired data: log-ratios of the chosen and of the rejected replies, each sorted."""
    chosen = pairs.chosen - pairs.ref_chosen
    return _compared(chosen, pairs.rejected - pairs.ref_rejected, pairs.weight, beta, label_smoothing)


def _compared(
    upper: jax.Array, lower: jax.Array, weight: jax.Array, beta: float, label_smoothing: float
) -> tuple[jax.Array, jax.Array]:
    is_used = weight.ravel() > 0.0
    places = (jnp.arange(is_used.size) < is_used.sum()).astype(weight.dtype)
    difference = jnp.where(places > 0.0, _sorted(upper, is_used), 0.0) - jnp.where(
        places > 0.0, _sorted(lower, is_used), 0.0
    )
    return smoothed_log_sigmoid(beta * difference, label_smoothing), places


def _sorted(values: jax.Array, is_used: jax.Array) -> jax.Array:
    return jnp.sort(jnp.where(is_used, values.ravel(), jnp.inf))


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


_LARGEST_RATIO = 80.0  # float32 ends at exp(88.7); as in TRL


def score(log_ratio: Float[Array, "*p"], divergence: str, alpha: float) -> Float[Array, "*p"]:
    """f'(u) of u = exp(log_ratio), up to a constant:

    reverse_kl: log u; forward_kl: 1 - 1/u; js: log(2u / (1 + u)); alpha: (u^(alpha - 1) - 1) / (alpha - 1), which is
    forward_kl at alpha 0 and reverse_kl at 1. Exponents stop at 80. Raises ConfigError for another divergence.
    """
    if divergence == "reverse_kl" or (divergence == "alpha" and abs(alpha - 1.0) < 1e-6):
        return log_ratio
    if divergence == "forward_kl":
        return -jnp.expm1(jnp.minimum(-log_ratio, _LARGEST_RATIO))
    if divergence == "js":
        return math.log(2.0) + jax.nn.log_sigmoid(log_ratio)
    if divergence == "alpha":
        power = alpha - 1.0
        return jnp.expm1(jnp.minimum(power * log_ratio, _LARGEST_RATIO)) / power
    raise ConfigError(f"dpo.f_divergence = {divergence!r} does not exist; expected one of {', '.join(DIVERGENCES)}")
