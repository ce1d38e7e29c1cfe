"""The losses of preference pairs: each a short pure function, one value per pair.

config/losses.py declares each loss under its function's name: what it takes (the groups below), whether these are sums
over a reply or means per token, and its settings, which the function takes as keywords. preference.py calls it.

In the formulas c and r are the values of the chosen and the rejected reply: log-ratios to the reference,
log pi(y|x) - log pi_ref(y|x), or what an f-divergence makes of them; in losses without a reference log-probs under the
policy. m = c - r, s is the logistic function, e the label smoothing.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from empathax.objectives.pairs import Pairs, alphapo_reward

Values = Float[Array, "*p"]  # one per pair

_LARGEST = 1e18  # its square is a float32
_NO_ODDS = -1e-6  # the odds of a probability of 1 are infinite


# MARGIN: the difference m of the two replies' values.


def sigmoid(margin: Values, *, beta: float, label_smoothing: float) -> Values:
    """DPO (Rafailov et al. 2023, arXiv 2305.18290, eq. 7): -log s(beta m). With label smoothing the
    conservative cDPO (Mitchell 2023): -(1 - e) log s(beta m) - e log s(-beta m)."""
    return _smoothed_log_sigmoid(beta * margin, label_smoothing)


def robust(margin: Values, *, beta: float, label_smoothing: float) -> Values:
    """rDPO (Chowdhury et al. 2024, arXiv 2403.00409), unbiased where a share e < 1/2 of the labels is flipped:
    (-(1 - e) log s(beta m) + e log s(-beta m)) / (1 - 2e)."""
    clean, flipped = jax.nn.log_sigmoid(beta * margin), jax.nn.log_sigmoid(-beta * margin)
    return (-(1.0 - label_smoothing) * clean + label_smoothing * flipped) / (1.0 - 2.0 * label_smoothing)


def hinge(margin: Values, *, beta: float) -> Values:
    """The hinge of SLiC-HF (Zhao et al. 2023, arXiv 2305.10425) on DPO's rewards, as in RSO (Liu et al. 2024,
    arXiv 2309.06657): max(0, 1 - beta m)."""
    return jax.nn.relu(1.0 - beta * margin)


def ipo(margin: Values, *, beta: float) -> Values:
    """IPO (Azar et al. 2024, arXiv 2310.12036, eq. 17), beta = tau: (m - 1 / (2 tau))^2, of log-ratios per token as
    its authors use it."""
    margin = jnp.clip(margin, -_LARGEST, _LARGEST)  # only an f-divergence can get there
    return jnp.square(margin - 1.0 / (2.0 * beta))


def exo_pair(margin: Values, *, beta: float, label_smoothing: float) -> Values:
    """EXO-pref (Ji et al. 2024, arXiv 2402.00856, eq. 16), the reverse KL from (1 - e, e) to p = s(beta m):
    p log(p / (1 - e)) + (1 - p) log((1 - p) / e)."""
    epsilon = jnp.asarray(label_smoothing, margin.dtype)
    reward = beta * margin
    chosen = jax.nn.sigmoid(reward) * (jax.nn.log_sigmoid(reward) - jnp.log1p(-epsilon))
    return chosen + jax.nn.sigmoid(-reward) * (jax.nn.log_sigmoid(-reward) - jnp.log(epsilon))


def discopop(margin: Values, *, beta: float, discopop_tau: float) -> Values:
    """DiscoPOP (Lu et al. 2024, arXiv 2406.08414, eq. 5): a blend of -log s(beta m) and exp(-beta m), the share of the
    latter s(beta m / tau).

    The second product is taken as one exponential: for a margin far below 0 its factors are infinity and 0.
    """
    reward = beta * margin
    modulation = reward / discopop_tau
    logistic = -jax.nn.log_sigmoid(reward) * jax.nn.sigmoid(-modulation)
    return logistic + jnp.exp(jax.nn.log_sigmoid(modulation) - reward)


def sigmoid_norm(margin: Values, *, beta: float) -> Values:
    """DPO's loss of log-ratios per token, as in Tulu 3 (Lambert et al. 2024, arXiv 2411.15124): -log s(beta m)."""
    return -jax.nn.log_sigmoid(beta * margin)


# RATIOS: the log-ratios c and r of both replies.


def nca_pair(chosen: Values, rejected: Values, *, beta: float) -> Values:
    """NCA on pairs (Chen et al. 2024, arXiv 2402.05369, for two replies with a hard preference):
    -log s(beta c) - log s(-beta c) / 2 - log s(-beta r) / 2."""
    reward = beta * chosen
    noise = jax.nn.log_sigmoid(-reward) + jax.nn.log_sigmoid(-beta * rejected)
    return -jax.nn.log_sigmoid(reward) - 0.5 * noise


def bco_pair(chosen: Values, rejected: Values, *, beta: float) -> Values:
    """BCO on pairs (Jung et al. 2024, arXiv 2404.04656): -log s(beta c) - log s(-beta r). Without the paper's shift of
    rewards, which TRL 1.16 does not have either: a pair's loss does not depend on other pairs."""
    return -jax.nn.log_sigmoid(beta * chosen) - jax.nn.log_sigmoid(-beta * rejected)


def sppo_hard(chosen: Values, rejected: Values, *, beta: float) -> Values:
    """SPPO (Wu et al. 2024, arXiv 2405.00675, eq. 4.7, eta = beta) where the chosen reply wins with probability 1:
    (c - 1 / (2 beta))^2 + (r + 1 / (2 beta))^2."""
    half = 0.5 / beta
    return jnp.square(chosen - half) + jnp.square(rejected + half)


def apo_zero(chosen: Values, rejected: Values, *, beta: float) -> Values:
    """APO-zero (D'Oosterlinck et al. 2024, arXiv 2408.06266, eq. 7): 1 - s(beta c) + s(beta r)."""
    return jax.nn.sigmoid(-beta * chosen) + jax.nn.sigmoid(beta * rejected)


def apo_down(chosen: Values, rejected: Values, *, beta: float) -> Values:
    """APO-down (D'Oosterlinck et al. 2024, arXiv 2408.06266, eq. 8): s(beta c) + 1 - s(beta (c - r))."""
    return jax.nn.sigmoid(beta * chosen) + jax.nn.sigmoid(-beta * (chosen - rejected))


# LOGPS: the log-probs c and r of both replies, without a reference. The likelihood of the chosen replies, a part
# of CPO and ORPO, is declared in config/losses.py and added by preference.py.


def cpo(chosen: Values, rejected: Values, *, beta: float, label_smoothing: float, alphapo_alpha: float) -> Values:
    """CPO (Xu et al. 2024, arXiv 2401.08417, eq. 3), smoothed as cDPO: -log s(beta m); likelihood weight
    `cpo_alpha`."""
    return _smoothed_log_sigmoid(beta * _alphapo_margin(chosen, rejected, alphapo_alpha), label_smoothing)


def cpo_hinge(chosen: Values, rejected: Values, *, beta: float, alphapo_alpha: float) -> Values:
    """SLiC-HF (Zhao et al. 2023, arXiv 2305.10425): max(0, 1 - beta m); likelihood weight `cpo_alpha`."""
    return hinge(_alphapo_margin(chosen, rejected, alphapo_alpha), beta=beta)


def cpo_ipo(chosen: Values, rejected: Values, *, beta: float, alphapo_alpha: float) -> Values:
    """IPO's square (Azar et al. 2024, eq. 17) against a uniform reference; likelihood weight `cpo_alpha`."""
    return ipo(_alphapo_margin(chosen, rejected, alphapo_alpha), beta=beta)


def simpo(chosen: Values, rejected: Values, *, beta: float, label_smoothing: float, simpo_gamma: float) -> Values:
    """SimPO (Meng et al. 2024, arXiv 2405.14734, eq. 6), of log-probs per token: -log s(beta m - gamma)."""
    return _smoothed_log_sigmoid(beta * (chosen - rejected - simpo_gamma / beta), label_smoothing)


def alphapo(
    chosen: Values, rejected: Values, *, beta: float, label_smoothing: float, simpo_gamma: float, alphapo_alpha: float
) -> Values:
    """AlphaPO (Gupta et al. 2025, arXiv 2501.03884): SimPO with the reward (1 - p^-alpha) / alpha for log p."""
    rewards = (alphapo_reward(logps, alphapo_alpha) for logps in (chosen, rejected))
    return simpo(*rewards, beta=beta, label_smoothing=label_smoothing, simpo_gamma=simpo_gamma)


def orpo(chosen: Values, rejected: Values, *, beta: float) -> Values:
    """ORPO (Hong et al. 2024, arXiv 2403.07691, eqs. 4 and 7), beta = lambda: -beta log s(log odds(c) - log odds(r)),
    of log-probs per token, odds(p) = p / (1 - p); likelihood weight 1."""
    chosen, rejected = (jnp.minimum(logps, _NO_ODDS) for logps in (chosen, rejected))
    log_odds = (chosen - rejected) - (_log_complement(chosen) - _log_complement(rejected))
    return -beta * jax.nn.log_sigmoid(log_odds)


# SORTED: all pairs of a batch at once, in a training step those of all rows and devices. AOT (alignment via optimal
# transport, Melnyk et al. 2024, arXiv 2406.05882) compares distributions: the transport between two samples of one size
# is to sort both. Returns one value per place in the order, and whether the place is used.


def aot(pairs: Pairs, *, beta: float, label_smoothing: float) -> tuple[Values, Values]:
    """AOT for paired data: policy and reference values of log pi(chosen) - log pi(rejected), each sorted,
    and the smoothed -log s(beta d) of their differences d."""
    policy = pairs.chosen - pairs.rejected
    return _compared(policy, pairs.ref_chosen - pairs.ref_rejected, pairs.weight, beta, label_smoothing)


def aot_unpaired(pairs: Pairs, *, beta: float, label_smoothing: float) -> tuple[Values, Values]:
    """AOT for unpaired data: log-ratios of the chosen and of the rejected replies, each sorted."""
    chosen = pairs.chosen - pairs.ref_chosen
    return _compared(chosen, pairs.rejected - pairs.ref_rejected, pairs.weight, beta, label_smoothing)


def _smoothed_log_sigmoid(logits: Values, label_smoothing: float) -> Values:
    """-(1 - e) log s(x) - e log s(-x)."""
    sure = -(1.0 - label_smoothing) * jax.nn.log_sigmoid(logits)
    return sure - label_smoothing * jax.nn.log_sigmoid(-logits)


def _compared(
    upper: Values, lower: Values, weight: Values, beta: float, label_smoothing: float
) -> tuple[Values, Values]:
    """The smoothed loss of the differences of two sorted samples; unused slots are sorted behind the others."""
    is_used = weight.ravel() > 0.0
    places = (jnp.arange(is_used.size) < is_used.sum()).astype(weight.dtype)

    def in_order(values: Values) -> Values:
        return jnp.where(places > 0.0, jnp.sort(jnp.where(is_used, values.ravel(), jnp.inf)), 0.0)

    return _smoothed_log_sigmoid(beta * (in_order(upper) - in_order(lower)), label_smoothing), places


def _alphapo_margin(chosen: jax.Array, rejected: jax.Array, alpha: float) -> jax.Array:
    return alphapo_reward(chosen, alpha) - alphapo_reward(rejected, alpha)


def _log_complement(logps: jax.Array) -> jax.Array:
    """log(1 - exp(x)) for x < 0, exact at both ends (Maechler 2012)."""
    is_small = logps < -jnp.log(2.0)
    far, near = jnp.where(is_small, logps, -1.0), jnp.where(is_small, -0.5, logps)  # no branch's gradient overflows
    return jnp.where(is_small, jnp.log1p(-jnp.exp(far)), jnp.log(-jnp.expm1(near)))
