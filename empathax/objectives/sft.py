"""Supervised fine-tuning: the negative log-likelihood of the trained tokens, as sums that add up over any split."""

from __future__ import annotations

import jax
from jaxtyping import Array, Float

from empathax.objectives.logprobs import TokenLogps

Sums = dict[str, jax.Array]


def sft_loss(tokens: TokenLogps, weight_BM: Float[Array, "*b M"]) -> tuple[Float[Array, ""], Float[Array, ""], Sums]:
    """Returns (loss sum, number of tokens, metric sums); the loss is their quotient over everything summed."""
    sums = token_sums(tokens, weight_BM)
    return sums["nll"], sums["tokens"], sums


def token_sums(tokens: TokenLogps, weight_BM: Float[Array, "*b M"]) -> Sums:
    """Weighted sums over tokens: nll and entropy in nats, correct predictions, tokens."""
    return {
        "nll": -(tokens.logps_BM * weight_BM).sum(),
        "entropy": (tokens.entropy_BM * weight_BM).sum(),
        "correct": (tokens.correct_BM * weight_BM).sum(),
        "tokens": weight_BM.sum(),
    }
