"""Losses of the difference of two scores: `margin` = score of the chosen reply - score of the rejected one.

A score is the reply's log-ratio, log pi(y|x) - log pi_ref(y|x), or what an f-divergence makes of it (divergences.py);
summed over the reply, or per token where losses.py declares "mean". Each function gives one value per pair.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

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
