"""Log-probabilities of target tokens in float32, without ever holding an array of tokens x vocabulary.

The vocabulary is read in chunks: one pass keeps a running log-sum-exp, the backward pass recomputes each chunk's
logits from it. Memory is tokens x chunk, forward and backward.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

_LOWEST = float(np.finfo(np.float32).min)


@flax.struct.dataclass
class TokenLogps:
    """What one distribution per slot says about its target token; all float32. Only `logps_BM` has a gradient."""

    logps_BM: Float[Array, "*b M"]
    entropy_BM: Float[Array, "*b M"]  # nats
    correct_BM: Float[Array, "*b M"]  # 1 where the target is the argmax (the lowest id wins a tie)


class _Running(NamedTuple):
    """Softmax statistics of the vocabulary chunks read so far, each [*b, M]."""

    max: jax.Array
    sum_exp: jax.Array  # sum of exp(logit - max)
    sum_exp_logit: jax.Array  # sum of exp(logit - max) * logit
    target_logit: jax.Array
    best_id: jax.Array


def take_queries(values_BTD: Float[Array, "B T D"], query_index_BM: Int[Array, "B M"]) -> Float[Array, "B M D"]:
    """The hidden states that predict a trained token; no other reaches the vocabulary projection."""
    return jax.vmap(lambda row_TD, index_M: row_TD[index_M])(values_BTD, query_index_BM)


@partial(jax.jit, static_argnames=("softcap", "vocab_chunk"))
def token_logps(
    hidden_BMD: Float[Array, "*b M D"],
    kernel_VD: Float[Array, "V D"],
    target_BM: Int[Array, "*b M"],
    *,
    softcap: float = 0.0,
    vocab_chunk: int = 8192,
) -> TokenLogps:
    """Log-softmax of `hidden @ kernel.T` at the targets, `softcap * tanh(logits / softcap)` first if softcap > 0.

    The product runs in the dtype of `hidden_BMD` with float32 accumulation; everything after it is float32, and so is
    the gradient of a float32 kernel. Chunks hold at most `vocab_chunk` entries. A target outside the vocabulary gives
    NaN.
    """
    vocab_size = kernel_VD.shape[0]
    num_chunks = _num_chunks(vocab_size, vocab_chunk)
    logps_BM, entropy_BM, correct_BM = _chunked_logps(hidden_BMD, kernel_VD, target_BM, softcap, num_chunks)
    in_vocabulary_BM = (target_BM >= 0) & (target_BM < vocab_size)
    return TokenLogps(
        logps_BM=jnp.where(in_vocabulary_BM, logps_BM, jnp.nan),
        entropy_BM=jax.lax.stop_gradient(entropy_BM),
        correct_BM=jax.lax.stop_gradient(correct_BM),
    )


def sequence_logps(
    logps_BM: Float[Array, "*b M"],
    sequence_index_BM: Int[Array, "*b M"],
    weight_BM: Float[Array, "*b M"],
    num_sequences: int,
) -> tuple[Float[Array, "*b S"], Float[Array, "*b S"]]:
    """Sums token log-probs into the replies of each row. Returns (log-prob, number of trained tokens) per reply."""

    def add(value_BM: jax.Array) -> jax.Array:
        segment_sum = partial(jax.ops.segment_sum, num_segments=num_sequences)
        return jnp.vectorize(segment_sum, signature="(m),(m)->(s)")(value_BM * weight_BM, sequence_index_BM)

    return add(logps_BM), add(jnp.ones_like(weight_BM))


def _num_chunks(vocab_size: int, vocab_chunk: int) -> int:
    """The fewest chunks of at most `vocab_chunk` that split the vocabulary evenly; uneven where none up to twice do."""
    fewest = max(1, -(-vocab_size // vocab_chunk))
    even = (count for count in range(fewest, 2 * fewest + 1) if vocab_size % count == 0)
    return next(even, fewest)


def _chunked_kernel(kernel_VD: jax.Array, num_chunks: int) -> jax.Array:
    """The kernel as [chunk entry, chunk, D]: vocabulary id = entry * num_chunks + chunk.

    A chunk is a strided slice, so every shard of a vocabulary split over devices holds its part of each chunk.
    """
    size = -(-kernel_VD.shape[0] // num_chunks)
    padding = size * num_chunks - kernel_VD.shape[0]
    padded = jnp.pad(kernel_VD, ((0, padding), (0, 0))) if padding else kernel_VD
    return padded.reshape(size, num_chunks, kernel_VD.shape[1])


def _chunk_logits(
    hidden: jax.Array, kernel_CND: jax.Array, chunk: jax.Array, softcap: float, vocab_size: int
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """One chunk's (kernel in the compute dtype, vocabulary ids, logits); ids past the vocabulary get -inf."""
    kernel_CD = jax.lax.dynamic_index_in_dim(kernel_CND, chunk, axis=1, keepdims=False).astype(hidden.dtype)
    size, num_chunks, _ = kernel_CND.shape
    ids_C = jnp.arange(size, dtype=jnp.int32) * num_chunks + chunk
    logits = jnp.einsum("...md,cd->...mc", hidden, kernel_CD, preferred_element_type=jnp.float32)
    if softcap:
        logits = softcap * jnp.tanh(logits / softcap)
    if size * num_chunks != vocab_size:
        logits = jnp.where(ids_C < vocab_size, logits, -jnp.inf)
    return kernel_CD, ids_C, logits


def _update(running: _Running, logits: jax.Array, ids_C: jax.Array, target: jax.Array) -> _Running:
    """Adds a chunk's logits to the statistics."""
    chunk_max = logits.max(axis=-1)
    top = jnp.maximum(running.max, chunk_max)
    shrink = jnp.exp(running.max - top)
    exp = jnp.exp(logits - top[..., None])
    sum_exp, sum_exp_logit = _sum_both(exp, exp * jnp.maximum(logits, _LOWEST))  # 0 * -inf of a padded id is NaN
    chunk_best = jnp.where(logits == chunk_max[..., None], ids_C, jnp.iinfo(jnp.int32).max).min(axis=-1)
    earlier = jnp.where(running.max == chunk_max, jnp.minimum(running.best_id, chunk_best), running.best_id)
    return _Running(
        max=top,
        sum_exp=running.sum_exp * shrink + sum_exp,
        sum_exp_logit=running.sum_exp_logit * shrink + sum_exp_logit,
        target_logit=running.target_logit + jnp.where(ids_C == target[..., None], logits, 0.0).sum(axis=-1),
        best_id=jnp.where(chunk_max > running.max, chunk_best, earlier),
    )


def _sum_both(first: jax.Array, second: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Both sums over the last axis in one pass: two passes take three times as long on the CPU backend."""
    zero = jnp.float32(0.0)
    add = lambda x, y: (x[0] + y[0], x[1] + y[1])  # noqa: E731
    return jax.lax.reduce((first, second), (zero, zero), add, (first.ndim - 1,))


@partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _chunked_logps(
    hidden: jax.Array, kernel_VD: jax.Array, target: jax.Array, softcap: float, num_chunks: int
) -> tuple[jax.Array, jax.Array, jax.Array]:
    return _forward(hidden, kernel_VD, target, softcap, num_chunks)[0]


def _forward(
    hidden: jax.Array, kernel_VD: jax.Array, target: jax.Array, softcap: float, num_chunks: int
) -> tuple[tuple[jax.Array, jax.Array, jax.Array], Any]:
    kernel_CND = _chunked_kernel(kernel_VD, num_chunks)

    def read(running: _Running, chunk: jax.Array) -> tuple[_Running, None]:
        _, ids_C, logits = _chunk_logits(hidden, kernel_CND, chunk, softcap, kernel_VD.shape[0])
        return _update(running, logits, ids_C, target), None

    zeros = jnp.zeros(target.shape, jnp.float32)
    empty = _Running(zeros + _LOWEST, zeros, zeros, zeros, jnp.zeros(target.shape, jnp.int32))
    running, _ = jax.lax.scan(read, empty, jnp.arange(num_chunks, dtype=jnp.int32))
    logsumexp = running.max + jnp.log(running.sum_exp)
    entropy = logsumexp - running.sum_exp_logit / running.sum_exp
    correct = (running.best_id == target).astype(jnp.float32)
    return (running.target_logit - logsumexp, entropy, correct), (hidden, kernel_VD, target, logsumexp)


def _backward(softcap: float, num_chunks: int, residuals: Any, cotangents: Any) -> tuple[jax.Array, jax.Array, Any]:
    hidden, kernel_VD, target, logsumexp = residuals
    scale = cotangents[0][..., None]
    kernel_CND = _chunked_kernel(kernel_VD, num_chunks)

    def pull(carry: tuple[jax.Array, jax.Array], chunk: jax.Array) -> tuple[tuple[jax.Array, jax.Array], None]:
        hidden_grad, kernel_grad_CND = carry
        kernel_CD, ids_C, logits = _chunk_logits(hidden, kernel_CND, chunk, softcap, kernel_VD.shape[0])
        probs = jnp.exp(logits - logsumexp[..., None])
        logits_grad = scale * (jnp.where(ids_C == target[..., None], 1.0, 0.0) - probs)
        if softcap:
            logits_grad *= jnp.where(jnp.isneginf(logits), 0.0, 1.0 - jnp.square(logits / softcap))
        logits_grad = logits_grad.astype(hidden.dtype)
        hidden_grad += jnp.einsum("...mc,cd->...md", logits_grad, kernel_CD, preferred_element_type=jnp.float32)
        chunk_grad_CD = jnp.einsum(
            "nc,nd->cd",
            logits_grad.reshape(-1, logits_grad.shape[-1]),
            hidden.reshape(-1, hidden.shape[-1]),
            preferred_element_type=jnp.float32,
        )
        kernel_grad_CND = jax.lax.dynamic_update_index_in_dim(
            kernel_grad_CND, chunk_grad_CD.astype(kernel_VD.dtype), chunk, axis=1
        )
        return (hidden_grad, kernel_grad_CND), None

    start = (jnp.zeros(hidden.shape, jnp.float32), jnp.zeros(kernel_CND.shape, kernel_VD.dtype))
    (hidden_grad, kernel_grad_CND), _ = jax.lax.scan(pull, start, jnp.arange(num_chunks, dtype=jnp.int32))
    kernel_grad_VD = kernel_grad_CND.reshape(-1, kernel_VD.shape[1])[: kernel_VD.shape[0]]
    return hidden_grad.astype(hidden.dtype), kernel_grad_VD, np.zeros(target.shape, jax.dtypes.float0)


_chunked_logps.defvjp(_forward, _backward)
