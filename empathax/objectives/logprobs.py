"""Log-probabilities of target tokens in float32, without ever holding an array of tokens x vocabulary; their sums over
replies, and over all tokens, which is the loss of supervised fine-tuning.

The vocabulary is read in chunks: one pass keeps a running log-sum-exp, the backward pass recomputes each chunk's
logits from it. Memory is tokens x chunk, forward and backward.

A chunk is split further into lanes that are summed apart to the end: one float32 sum over a chunk of a peaked
distribution adds thousands of tiny values to one large one and loses 5e-5 of each log-prob, always to the same side.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_derivatives import SymbolicZero
from jaxtyping import Array, Float, Int

Sums = dict[str, jax.Array]  # metric sums by name, which add up over any split of the data

_LOWEST = float(np.finfo(np.float32).min)
_NO_ID = int(np.iinfo(np.int32).max)
_WIDTH = 128  # entries of a lane, about


@flax.struct.dataclass
class TokenLogps:
    """What one distribution per slot says about its target token; all float32. Only `logps_BM` has a gradient."""

    logps_BM: Float[Array, "*b M"]
    entropy_BM: Float[Array, "*b M"]  # nats
    correct_BM: Float[Array, "*b M"]  # 1 where the target is the argmax (the lowest id wins a tie)
    log_sum_squares_BM: Float[Array, "*b M"] | None = None  # log of the sum of all squared probabilities


class _Layout(NamedTuple):
    """Vocabulary id (lane * width + entry) * num_chunks + chunk; the last ids may lie past the vocabulary.

    A chunk is thus a strided slice: each shard of a vocabulary split over devices holds some lanes of every chunk.
    """

    num_chunks: int
    lanes: int
    width: int


class _Running(NamedTuple):
    """Softmax statistics of the vocabulary chunks read so far, each [*b, M, lanes]."""

    max: jax.Array
    sum_exp: jax.Array  # sum of exp(logit - max)
    sum_exp_logit: jax.Array  # sum of exp(logit - max) * (logit - max)
    target_logit: jax.Array
    best_id: jax.Array
    sum_squares: jax.Array | None  # sum of exp(logit - max)^2, where it is asked for


def take_queries(values_BTD: Float[Array, "B T D"], query_index_BM: Int[Array, "B M"]) -> Float[Array, "B M D"]:
    """The hidden states that predict a trained token; no other reaches the vocabulary projection."""
    return jax.vmap(lambda row_TD, index_M: row_TD[index_M])(values_BTD, query_index_BM)


@partial(jax.jit, static_argnames=("softcap", "vocab_chunk", "sum_squares"))
def token_logps(
    hidden_BMD: Float[Array, "*b M D"],
    kernel_VD: Float[Array, "V D"],
    target_BM: Int[Array, "*b M"],
    *,
    softcap: float = 0.0,
    vocab_chunk: int = 8192,
    sum_squares: bool = False,
) -> TokenLogps:
    """Log-softmax of `hidden @ kernel.T` at the targets, `softcap * tanh(logits / softcap)` first if softcap > 0.

    The product runs in the dtype of `hidden_BMD` with float32 accumulation; everything after it is float32, and so is
    the gradient of a float32 kernel. Chunks hold at most `vocab_chunk` entries. A target outside the vocabulary gives
    NaN. `log_sum_squares_BM` is computed where `sum_squares` asks for it.
    """
    vocab_size = kernel_VD.shape[0]
    layout = _layout(vocab_size, vocab_chunk)
    found = _chunked_logps(hidden_BMD, kernel_VD, target_BM, softcap, layout, sum_squares)
    logps_BM, entropy_BM, correct_BM, log_sum_squares_BM = found
    in_vocabulary_BM = (target_BM >= 0) & (target_BM < vocab_size)
    return TokenLogps(
        logps_BM=jnp.where(in_vocabulary_BM, logps_BM, jnp.nan),
        entropy_BM=jax.lax.stop_gradient(entropy_BM),
        correct_BM=jax.lax.stop_gradient(correct_BM),
        log_sum_squares_BM=jax.lax.stop_gradient(log_sum_squares_BM) if sum_squares else None,
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


def sft_loss(tokens: TokenLogps, weight_BM: Float[Array, "*b M"]) -> tuple[Float[Array, ""], Float[Array, ""], Sums]:
    """The negative log-likelihood of the trained tokens.

    Returns (loss sum, number of tokens, metric sums), which add up over any split; the loss is their quotient.
    """
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


def _layout(vocab_size: int, vocab_chunk: int) -> _Layout:
    """The fewest even chunks of at most `vocab_chunk` entries; uneven ones where up to twice as many do not divide."""
    fewest = max(1, -(-vocab_size // vocab_chunk))
    for num_chunks in range(fewest, 2 * fewest + 1):
        size, rest = divmod(vocab_size, num_chunks)
        width = _lane_width(size)
        if not rest and width:
            return _Layout(num_chunks, size // width, width)
    size = -(-vocab_size // fewest)
    lanes = -(-size // _WIDTH)
    return _Layout(fewest, lanes, -(-size // lanes))


def _lane_width(size: int) -> int:
    """A divisor of `size` near _WIDTH, with lanes in multiples of 8 (for shards) if there is one; 0 if none is near."""
    if size <= _WIDTH:
        return size
    near = [width for width in range(_WIDTH // 4, 4 * _WIDTH + 1) if size % width == 0]
    return min(near, key=lambda width: (size // width % 8 > 0, abs(width - _WIDTH)), default=0)


def _laid_out(kernel_VD: jax.Array, layout: _Layout) -> jax.Array:
    """The kernel as [entries of a chunk, chunks, D], filled up with zeros."""
    size = layout.lanes * layout.width
    padding = size * layout.num_chunks - kernel_VD.shape[0]
    padded = jnp.pad(kernel_VD, ((0, padding), (0, 0))) if padding else kernel_VD
    return padded.reshape(size, layout.num_chunks, kernel_VD.shape[1])


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


def _update(running: _Running, logits: jax.Array, ids_LW: jax.Array, target: jax.Array) -> _Running:
    """Adds a chunk's logits to the statistics."""
    chunk_max = logits.max(axis=-1)
    top = jnp.maximum(running.max, chunk_max)
    below = jnp.maximum(logits - top[..., None], _LOWEST)  # 0 * -inf of an id past the vocabulary would be NaN
    exp = jnp.exp(below)
    sum_exp, sum_exp_logit = _sum_both(exp, exp * below)
    old = _rescaled(running, top)
    chunk_best = jnp.where(logits == chunk_max[..., None], ids_LW, _NO_ID).min(axis=-1)
    earlier = jnp.where(running.max == chunk_max, jnp.minimum(running.best_id, chunk_best), running.best_id)
    is_target = ids_LW == target[..., None, None]
    squares = None if old.sum_squares is None else old.sum_squares + jnp.square(exp).sum(axis=-1)
    return _Running(
        max=top,
        sum_exp=old.sum_exp + sum_exp,
        sum_exp_logit=old.sum_exp_logit + sum_exp_logit,
        target_logit=running.target_logit + jnp.where(is_target, logits, 0.0).sum(axis=-1),
        best_id=jnp.where(chunk_max > running.max, chunk_best, earlier),
        sum_squares=squares,
    )


def _rescaled(running: _Running, top: jax.Array) -> _Running:
    """The same sums relative to another maximum."""
    shift = running.max - top
    shrink = jnp.exp(shift)
    sum_exp_logit = shrink * (running.sum_exp_logit + shift * running.sum_exp)
    squares = None if running.sum_squares is None else jnp.square(shrink) * running.sum_squares
    return running._replace(max=top, sum_exp=shrink * running.sum_exp, sum_exp_logit=sum_exp_logit, sum_squares=squares)


def _sum_both(first: jax.Array, second: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Both sums over the last axis in one pass: two passes take three times as long on the CPU backend.

    The barrier keeps both where one goes unused, since a sum alone is compiled to another order of addition: a policy,
    whose entropy is reported, and a reference with the same weights would differ.
    """
    zero = jnp.float32(0.0)
    add = lambda x, y: (x[0] + y[0], x[1] + y[1])  # noqa: E731
    sums = jax.lax.reduce((first, second), (zero, zero), add, (first.ndim - 1,))
    return jax.lax.optimization_barrier(sums)


_Found = tuple[jax.Array, jax.Array, jax.Array, jax.Array]


@partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5))
def _chunked_logps(
    hidden: jax.Array, kernel_VD: jax.Array, target: jax.Array, softcap: float, layout: _Layout, sum_squares: bool
) -> _Found:
    return _read_vocabulary(hidden, kernel_VD, target, softcap, layout, sum_squares)[0]


def _forward(
    hidden: Any, kernel_VD: Any, target: Any, softcap: float, layout: _Layout, sum_squares: bool
) -> tuple[_Found, Any]:
    values = (hidden.value, kernel_VD.value, target.value)
    found, logsumexp = _read_vocabulary(*values, softcap, layout, sum_squares)
    is_trained = () if kernel_VD.perturbed else None  # as structure: what is traced cannot be branched on
    return found, (*values, logsumexp, is_trained)


def _read_vocabulary(
    hidden: jax.Array, kernel_VD: jax.Array, target: jax.Array, softcap: float, layout: _Layout, sum_squares: bool
) -> tuple[_Found, jax.Array]:
    """What the whole vocabulary says, and its log-sum-exp."""
    kernel_CND = _laid_out(kernel_VD, layout)
    lanes_shape = (layout.lanes, layout.width)

    def read(running: _Running, chunk: jax.Array) -> tuple[_Running, None]:
        _, ids_C, logits = _chunk_logits(hidden, kernel_CND, chunk, softcap, kernel_VD.shape[0])
        logits = logits.reshape(*target.shape, *lanes_shape)
        return _update(running, logits, ids_C.reshape(lanes_shape), target), None

    zeros = jnp.zeros((*target.shape, layout.lanes), jnp.float32)
    empty = _Running(zeros + _LOWEST, zeros, zeros, zeros, zeros.astype(jnp.int32), zeros if sum_squares else None)
    lanes, _ = jax.lax.scan(read, empty, jnp.arange(layout.num_chunks, dtype=jnp.int32))
    top = lanes.max.max(axis=-1)
    whole = _rescaled(lanes, top[..., None])
    sum_exp = whole.sum_exp.sum(axis=-1)
    log_sum = jnp.log(sum_exp)
    entropy = log_sum - whole.sum_exp_logit.sum(axis=-1) / sum_exp
    best_id = jnp.where(lanes.max == top[..., None], lanes.best_id, _NO_ID).min(axis=-1)
    # in this order: top + log_sum is larger than the log-prob, and its rounding error with it
    logps = (lanes.target_logit.sum(axis=-1) - top) - log_sum
    squares = jnp.zeros(()) if whole.sum_squares is None else jnp.log(whole.sum_squares.sum(axis=-1)) - 2.0 * log_sum
    found = (logps, entropy, (best_id == target).astype(jnp.float32), squares)
    return found, top + log_sum


def _backward(
    softcap: float, layout: _Layout, sum_squares: bool, residuals: Any, cotangents: Any
) -> tuple[jax.Array, jax.Array | None, Any]:
    hidden, kernel_VD, target, logsumexp, is_trained = residuals
    no_target_grad = np.zeros(target.shape, jax.dtypes.float0)
    if isinstance(cotangents[0], SymbolicZero):
        return jnp.zeros_like(hidden), None, no_target_grad
    scale = cotangents[0][..., None]
    kernel_CND = _laid_out(kernel_VD, layout)

    def pull(carry: tuple[jax.Array, Any], chunk: jax.Array) -> tuple[tuple[jax.Array, Any], None]:
        hidden_grad, kernel_grad_CND = carry
        kernel_CD, ids_C, logits = _chunk_logits(hidden, kernel_CND, chunk, softcap, kernel_VD.shape[0])
        probs = jnp.exp(logits - logsumexp[..., None])
        logits_grad = scale * (jnp.where(ids_C == target[..., None], 1.0, 0.0) - probs)
        if softcap:
            logits_grad *= jnp.where(jnp.isneginf(logits), 0.0, 1.0 - jnp.square(logits / softcap))
        logits_grad = logits_grad.astype(hidden.dtype)
        hidden_grad += jnp.einsum("...mc,cd->...md", logits_grad, kernel_CD, preferred_element_type=jnp.float32)
        if is_trained is None:
            return (hidden_grad, None), None
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

    no_kernel_grad = None if is_trained is None else jnp.zeros(kernel_CND.shape, kernel_VD.dtype)
    start = (jnp.zeros(hidden.shape, jnp.float32), no_kernel_grad)
    (hidden_grad, kernel_grad_CND), _ = jax.lax.scan(pull, start, jnp.arange(layout.num_chunks, dtype=jnp.int32))
    kernel_grad_VD = None
    if kernel_grad_CND is not None:
        kernel_grad_VD = kernel_grad_CND.reshape(-1, kernel_VD.shape[1])[: kernel_VD.shape[0]]
    return hidden_grad.astype(hidden.dtype), kernel_grad_VD, no_target_grad


_chunked_logps.defvjp(_forward, _backward, symbolic_zeros=True)
