"""f-DPO (Wang et al. 2024, arXiv 2309.16240): the implicit reward of another divergence than the reverse KL,
beta f'(ratio).

Its normaliser cancels only in the difference of two rewards of one prompt.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from empathax.errors import ConfigError
from empathax.losses import DIVERGENCES

_LARGEST_EXPONENT = 80.0  # float32 ends at exp(88.7); as in TRL


def score(log_ratio: Float[Array, "*p"], divergence: str, alpha: float) -> Float[Array, "*p"]:
    """f'(u) of u = exp(log_ratio), up to a constant:

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
