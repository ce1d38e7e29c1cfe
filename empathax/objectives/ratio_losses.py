"""Losses that look at each reply by itself: `chosen` and `rejected` are the replies' log-ratios to the reference,
log pi(y|x) - log pi_ref(y|x), summed over the reply. Each function gives one value per pair."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

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
