"""Choosing the next token from logits, in float32, the same for a row whatever stands beside it in the batch."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from empathax.errors import ConfigError, raise_all

_BLOCK = 256  # entries summed at once when drawing from a vocabulary


@dataclass(frozen=True)
class Sampling:
    """How a token is chosen; hashable, a compile-time constant. The cuts apply in transformers' order."""

    temperature: float = 0.0  # 0 = greedy: the cuts below then do nothing
    top_k: int = 0  # keep the k most likely tokens; 0 = all
    top_p: float = 1.0  # then the fewest most likely whose renormalised probability reaches p; 1 = all

    def __post_init__(self) -> None:
        problems = []
        if not 0.0 <= self.temperature < float("inf"):
            problems.append(f"temperature = {self.temperature}: expected a finite number >= 0 (0 = greedy)")
        if self.top_k < 0:
            problems.append(f"top_k = {self.top_k}: expected a number of tokens, or 0 for all")
        if not 0.0 < self.top_p <= 1.0:
            problems.append(f"top_p = {self.top_p}: expected a probability in (0, 1]; 1 keeps all tokens")
        raise_all(ConfigError, "tokens cannot be sampled", problems)


def row_keys(seed: Int[Array, ""] | int, row_ids_B: Int[Array, " B"]) -> Key[Array, " B"]:
    """One random key a row, from the seed and the row's own number: never from its place in a batch."""
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(jax.random.key(seed), row_ids_B)


def next_token(logits_BV: Float[Array, "B V"], keys_B: Key[Array, " B"], sampling: Sampling) -> Int[Array, " B"]:
    """The next token of each row: the likeliest, or one drawn from softmax(logits / temperature) after the cuts."""
    logits_BV = logits_BV.astype(jnp.float32)
    if sampling.temperature == 0:
        return _argmax(logits_BV)
    ids_BV = None
    if 0 < sampling.top_k < logits_BV.shape[-1]:
        logits_BV, ids_BV = jax.lax.top_k(logits_BV, sampling.top_k)
    probs_BV = jax.nn.softmax(logits_BV / sampling.temperature, axis=-1)
    if sampling.top_p < 1:
        probs_BV = nucleus(probs_BV, sampling.top_p)
    chosen_B = _draw(probs_BV, jax.vmap(jax.random.uniform)(keys_B))
    return chosen_B if ids_BV is None else jnp.take_along_axis(ids_BV, chosen_B[:, None], axis=-1)[:, 0]


def nucleus(probs_BV: Float[Array, "B V"], top_p: float) -> Float[Array, "B V"]:
    """The fewest likeliest tokens whose probability reaches `top_p`, others 0 (Holtzman et al. 2020, section 3.1).

    Ties at the border all stay. The border is found by bisection over float32 bit patterns, which order like the
    non-negative numbers they encode: exact after 31 halvings, and several times cheaper than sorting a vocabulary.
    """

    def halve(_: int, bounds: tuple[Array, Array]) -> tuple[Array, Array]:
        low_B, high_B = bounds
        middle_B = low_B + (high_B - low_B + 1) // 2
        border_B1 = jax.lax.bitcast_convert_type(middle_B, jnp.float32)[:, None]
        reached_B = jnp.sum(jnp.where(probs_BV >= border_B1, probs_BV, 0.0), axis=-1) >= top_p
        return jnp.where(reached_B, middle_B, low_B), jnp.where(reached_B, high_B, middle_B - 1)

    high_B = jax.lax.bitcast_convert_type(jnp.max(probs_BV, axis=-1), jnp.int32)
    low_B, _ = jax.lax.fori_loop(0, 31, halve, (jnp.zeros_like(high_B), high_B))
    return jnp.where(probs_BV >= jax.lax.bitcast_convert_type(low_B, jnp.float32)[:, None], probs_BV, 0.0)


def _argmax(logits_BV: Float[Array, "B V"]) -> Int[Array, " B"]:
    # Two plain reductions: XLA's CPU backend does not vectorize argmax. Of equal logits the lowest id wins.
    ids_V = jnp.arange(logits_BV.shape[-1], dtype=jnp.int32)
    best_B1 = jnp.max(logits_BV, axis=-1, keepdims=True)
    return jnp.min(jnp.where(logits_BV == best_B1, ids_V, ids_V.size - 1), axis=-1)


def _draw(probs_BV: Float[Array, "B V"], uniform_B: Float[Array, " B"]) -> Int[Array, " B"]:
    """Inverse-CDF draw: the first entry at which the running sum of (unnormalised) `probs` passes uniform * total.

    One random number a row instead of the V of a Gumbel draw, which would cost more than a small model's step. The
    running sum is taken over blocks first, then inside the block that is hit.
    """
    probs_BV = jnp.pad(probs_BV, ((0, 0), (0, -probs_BV.shape[1] % _BLOCK)))
    blocks_BNC = probs_BV.reshape(probs_BV.shape[0], -1, _BLOCK)
    block_ends_BN = jnp.cumsum(jnp.sum(blocks_BNC, axis=-1), axis=-1)
    target_B = uniform_B * block_ends_BN[:, -1]
    block_B = _first_above(block_ends_BN, target_B)
    rows_B = jnp.arange(probs_BV.shape[0])
    before_B = jnp.where(block_B > 0, block_ends_BN[rows_B, block_B - 1], 0.0)
    inside_BC = blocks_BNC[rows_B, block_B]
    return block_B * _BLOCK + _first_above(jnp.cumsum(inside_BC, axis=-1), target_B - before_B)


def _first_above(sums_BN: Float[Array, "B N"], target_B: Float[Array, " B"]) -> Int[Array, " B"]:
    """The first entry whose running sum is above the target; of none (rounding), the last that added something."""
    passed_BN = (sums_BN > target_B[:, None]) | (sums_BN >= sums_BN[:, -1:])
    return jnp.argmax(passed_BN, axis=-1).astype(jnp.int32)
