"""Alignment via optimal transport (AOT, Melnyk et al. 2024, arXiv 2406.05882): distributions over a batch, not pairs.

The one-dimensional transport between two samples of one size is to sort both. The batch is every pair that the function
is given: in a training step, all rows on all devices. Values of unused slots are sorted behind the others. A function
gives one value per place in the order, and whether the place is used.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from empathax.objectives.margin_losses import smoothed_log_sigmoid
from empathax.objectives.pairs import Pairs

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
