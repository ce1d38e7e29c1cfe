"""Choosing the next token from logits, in float32, the same for a row whatever stands beside it in the batch.

Cuts and draws follow transformers' order; the repetition penalty needs the tokens that a row has seen so far.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from empathax.config import EvalOptions
from empathax.errors import ConfigError, raise_all
from empathax.evaluation.generation.prompt_tree import PromptTree

_HEADING = "tokens cannot be sampled"
_BLOCK = 256  # entries summed at once when drawing from a vocabulary


@dataclass(frozen=True)
class Sampling:
    """How a token is chosen; hashable, a compile-time constant. The settings apply in this order, as in transformers.

    The penalty changes greedy choices too; the cuts (`top_k`, `top_p`, `min_p`) do nothing there.
    """

    temperature: float = 0.0  # 0 = greedy
    top_k: int = 0  # keep the k most likely tokens; 0 = all
    top_p: float = 1.0  # then the fewest most likely whose renormalised probability reaches p; 1 = all
    min_p: float = 0.0  # then those at least min_p times as probable as the likeliest; 0 = all
    repetition_penalty: float = 1.0  # before all others: on logits of tokens seen in prompt or reply; 1 = none

    def __post_init__(self) -> None:
        raise_all(ConfigError, _HEADING, _problems(self))


def sampling_from(options: EvalOptions) -> Sampling:
    """The sampling that `options` ask for.

    Raises one ConfigError with every value that cannot work; several samples of a greedy choice are one.
    """
    problems = _problems(options)
    if options.num_samples < 1:
        problems.append(f"num_samples = {options.num_samples}: expected at least 1")
    if options.num_samples > 1 and options.temperature == 0:
        problems.append(
            f"num_samples = {options.num_samples} with temperature = 0 (greedy) gives the same reply "
            f"{options.num_samples} times: set a temperature above 0, or one sample"
        )
    raise_all(ConfigError, _HEADING, problems)
    return Sampling(**{field.name: getattr(options, field.name) for field in fields(Sampling)})


def _problems(values: Sampling | EvalOptions) -> list[str]:
    problems = []
    if not 0.0 <= values.temperature < float("inf"):
        problems.append(f"temperature = {values.temperature}: expected a finite number >= 0 (0 = greedy)")
    if values.top_k < 0:
        problems.append(f"top_k = {values.top_k}: expected a number of tokens, or 0 for all")
    if not 0.0 < values.top_p <= 1.0:
        problems.append(f"top_p = {values.top_p}: expected a probability in (0, 1]; 1 keeps all tokens")
    if not 0.0 <= values.min_p <= 1.0:
        problems.append(f"min_p = {values.min_p}: expected a share of the largest probability in [0, 1]; 0 keeps all")
    if not 0.0 < values.repetition_penalty < float("inf"):
        problems.append(
            f"repetition_penalty = {values.repetition_penalty}: expected a finite number > 0; 1 is no penalty, above 1 "
            "makes tokens that were seen less likely"
        )
    return problems


def row_keys(
    seed: Int[Array, ""] | int, row_ids_B: Int[Array, " B"], sample_ids_B: Int[Array, " B"] | None = None
) -> Key[Array, " B"]:
    """One random key a row, from the seed, the row's own number and its sample's: never from its place in a batch.

    `sample_ids_B` numbers the samples of one row; left out, all are sample 0.
    """
    fold = jax.vmap(jax.random.fold_in)
    keys_B = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(jax.random.key(seed), row_ids_B)
    return fold(keys_B, jnp.zeros_like(row_ids_B) if sample_ids_B is None else sample_ids_B)


def next_token(
    logits_BV: Float[Array, "B V"],
    keys_B: Key[Array, " B"],
    sampling: Sampling,
    seen_BV: Bool[Array, "B V"] | None = None,
) -> Int[Array, " B"]:
    """The next token of each row: the likeliest, or one drawn from what `candidates` leaves.

    `seen_BV`, the tokens of prompt and reply so far, is needed with a repetition penalty only.
    """
    if sampling.temperature == 0:
        return _argmax(_penalised(logits_BV, sampling, seen_BV))
    probs_BK, ids_BK = candidates(logits_BV, sampling, seen_BV)
    chosen_B = _draw(probs_BK, jax.vmap(jax.random.uniform)(keys_B))
    return chosen_B if ids_BK is None else jnp.take_along_axis(ids_BK, chosen_B[:, None], axis=-1)[:, 0]


def candidates(
    logits_BV: Float[Array, "B V"], sampling: Sampling, seen_BV: Bool[Array, "B V"] | None = None
) -> tuple[Float[Array, "B K"], Int[Array, "B K"] | None]:
    """What a token is drawn from at a temperature above 0: probabilities up to a factor, 0 for tokens cut off.

    The second array holds the ids of the K = `top_k` likeliest tokens; without `top_k` it is None, and K is V. Of
    equal logits at the border of `top_k` the lowest ids stay, where transformers keeps all.
    """
    logits_BV, ids_BK = _penalised(logits_BV, sampling, seen_BV), None
    if 0 < sampling.top_k < logits_BV.shape[-1]:
        logits_BV, ids_BK = jax.lax.top_k(logits_BV, sampling.top_k)
    probs_BK = jax.nn.softmax(logits_BV / sampling.temperature, axis=-1)
    if sampling.top_p < 1:
        probs_BK = nucleus(probs_BK, sampling.top_p)
    if sampling.min_p > 0:
        probs_BK = above_min_p(probs_BK, sampling.min_p)
    return probs_BK, ids_BK


def above_min_p(probs_BV: Float[Array, "B V"], min_p: float) -> Float[Array, "B V"]:
    """The tokens at least `min_p` times as probable as the likeliest, others 0 (Nguyen et al. 2024, section 3)."""
    border_B1 = min_p * jnp.max(probs_BV, axis=-1, keepdims=True)
    return jnp.where(probs_BV >= border_B1, probs_BV, 0.0)


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


def seen_in_prompts(prompts: PromptTree, vocab_size: int) -> Bool[Array, "B V"]:
    """Whether each token stands in each row's prompt; the padding before a prompt counts for nothing."""
    (R, _), (B, S) = prompts.token_ids_RT.shape, prompts.path_BS.shape
    take = jax.vmap(lambda token_ids_T, path_CS: token_ids_T[path_CS])
    token_ids_BS = take(prompts.token_ids_RT, prompts.path_BS.reshape(R, B // R, S)).reshape(B, S)
    is_token_BS = jnp.arange(S) >= S - prompts.lengths_B[:, None]
    nothing_BV = jnp.zeros((B, vocab_size), bool)
    return nothing_BV.at[jnp.arange(B)[:, None], jnp.where(is_token_BS, token_ids_BS, vocab_size)].set(
        True, mode="drop"
    )


def mark_seen(seen_BV: Bool[Array, "B V"], token_id_B: Int[Array, " B"]) -> Bool[Array, "B V"]:
    """`seen_BV` with one more token a row."""
    return seen_BV.at[jnp.arange(token_id_B.size), token_id_B].set(True)


def penalise_seen(logits_BV: Float[Array, "B V"], seen_BV: Bool[Array, "B V"], penalty: float) -> Float[Array, "B V"]:
    """Logits with those of seen tokens divided by `penalty` where positive, multiplied where negative.

    The repetition penalty of Keskar et al. 2019 (section 4.1), in transformers' form: the paper's own divides always,
    which would make a token with a negative logit likelier. How often a token was seen does not matter.
    """
    penalised_BV = jnp.where(logits_BV < 0, logits_BV * penalty, logits_BV / penalty)
    return jnp.where(seen_BV, penalised_BV, logits_BV)


def _penalised(
    logits_BV: Float[Array, "B V"], sampling: Sampling, seen_BV: Bool[Array, "B V"] | None
) -> Float[Array, "B V"]:
    logits_BV = logits_BV.astype(jnp.float32)
    if sampling.repetition_penalty == 1:
        return logits_BV
    if seen_BV is None:
        raise ValueError("a repetition penalty needs seen_BV, the tokens of prompt and reply so far")
    return penalise_seen(logits_BV, seen_BV, sampling.repetition_penalty)


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
