"""Chunked log-probabilities against a plain float64 log-softmax, with its gradients, memory and sharding."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from empathax.objectives.logprobs import TokenLogps, sequence_logps, sft_loss, take_queries, token_logps, token_sums


def _inputs(vocab_size, num_slots=6, dim=5, batch=2, seed=0, scale=1.0):
    rng = np.random.default_rng(seed)
    hidden = rng.normal(size=(batch, num_slots, dim)).astype(np.float32) * scale
    kernel = rng.normal(size=(vocab_size, dim)).astype(np.float32)
    target = rng.integers(0, vocab_size, (batch, num_slots)).astype(np.int32)
    return hidden, kernel, target


def _expected(hidden, kernel, target, softcap):
    """(log-probs, entropy, correct) in float64 with the whole vocabulary at once."""
    logits = np.einsum("bmd,vd->bmv", hidden.astype(np.float64), kernel.astype(np.float64))
    logits = softcap * np.tanh(logits / softcap) if softcap else logits
    top = logits.max(-1, keepdims=True)
    logps = logits - top - np.log(np.exp(logits - top).sum(-1, keepdims=True))
    entropy = -(np.exp(logps) * logps).sum(-1)
    return np.take_along_axis(logps, target[..., None], -1)[..., 0], entropy, logits.argmax(-1) == target


def _naive(hidden, kernel, target, softcap=0.0):
    logits = jnp.einsum("bmd,vd->bmv", hidden, kernel, preferred_element_type=jnp.float32)
    logits = softcap * jnp.tanh(logits / softcap) if softcap else logits
    return jnp.take_along_axis(jax.nn.log_softmax(logits), target[..., None], -1)[..., 0]


@settings(max_examples=30, deadline=None)
@given(
    vocab_size=st.integers(1, 40) | st.integers(150, 1500),
    vocab_chunk=st.integers(1, 45) | st.integers(150, 600),
    softcap=st.sampled_from([0.0, 50.0]),
    scale=st.sampled_from([0.1, 1.0, 10.0]),
    seed=st.integers(0, 1000),
)
def test_values_for_every_split_of_the_vocabulary(vocab_size, vocab_chunk, softcap, scale, seed):
    hidden, kernel, target = _inputs(vocab_size, seed=seed, scale=scale)
    result = token_logps(hidden, kernel, target, softcap=softcap, vocab_chunk=vocab_chunk)
    logps, entropy, correct = _expected(hidden, kernel, target, softcap)
    np.testing.assert_allclose(result.logps_BM, logps, rtol=1e-5, atol=2e-5)
    np.testing.assert_allclose(result.entropy_BM, entropy, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(result.correct_BM, correct)


@pytest.mark.parametrize("softcap", [0.0, 3.0])
@pytest.mark.parametrize(("vocab_size", "vocab_chunk"), [(24, 8), (23, 8), (5, 8), (1002, 501), (1021, 400)])
def test_gradients_equal_autodiff_of_the_whole_softmax(vocab_size, vocab_chunk, softcap):
    hidden, kernel, target = _inputs(vocab_size)
    weight = np.random.default_rng(1).normal(size=target.shape).astype(np.float32)

    def chunked(hidden, kernel):
        return (token_logps(hidden, kernel, target, softcap=softcap, vocab_chunk=vocab_chunk).logps_BM * weight).sum()

    def naive(hidden, kernel):
        return (_naive(hidden, kernel, target, softcap) * weight).sum()

    for got, wanted in zip(
        jax.grad(chunked, (0, 1))(hidden, kernel), jax.grad(naive, (0, 1))(hidden, kernel), strict=True
    ):
        np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-6)


def test_a_distribution_by_hand():
    kernel = jnp.log(jnp.array([[1.0], [2.0], [5.0]]))
    result = token_logps(jnp.ones((1, 2, 1)), kernel, jnp.array([[1, 2]]), vocab_chunk=2)
    np.testing.assert_allclose(result.logps_BM, np.log([[0.25, 0.625]]), rtol=1e-6)
    np.testing.assert_allclose(
        result.entropy_BM, -(0.125 * np.log(0.125) + 0.25 * np.log(0.25) + 0.625 * np.log(0.625)), rtol=1e-6
    )
    np.testing.assert_array_equal(result.correct_BM, [[0.0, 1.0]])


@pytest.mark.parametrize("vocab_chunk", [1, 2, 3, 6])
def test_the_lowest_id_wins_a_tie(vocab_chunk):
    kernel = jnp.array([[0.0], [1.0], [0.0], [1.0], [1.0], [0.0]])
    target = jnp.arange(6)[None]
    result = token_logps(jnp.ones((1, 6, 1)), kernel, target, vocab_chunk=vocab_chunk)
    np.testing.assert_array_equal(result.correct_BM, [[0, 1, 0, 0, 0, 0]])


def test_a_peaked_distribution_loses_no_digits():
    # one large value and 20,000 tiny ones, as in a real model's logits: a single float32 sum is off by 5e-5
    rng = np.random.default_rng(0)
    kernel = rng.normal(-16.0, 1.5, (20011, 1)).astype(np.float32)
    kernel[7] = 0.0
    target = rng.integers(0, 20011, (1, 50))
    target[0, :25] = 7
    hidden = np.ones((1, 50, 1), np.float32)
    result = token_logps(hidden, kernel, target)
    wanted, entropy, _ = _expected(hidden, kernel, target, 0.0)
    np.testing.assert_allclose(result.logps_BM, wanted, rtol=0, atol=2e-6)
    np.testing.assert_allclose(result.entropy_BM, entropy, rtol=0, atol=1e-5)


def test_the_value_does_not_depend_on_which_results_are_used():
    # the policy's entropy is reported, the reference's is not: their log-probs must agree at step 0 all the same
    hidden, kernel, target = _inputs(5000, num_slots=64, dim=16, scale=2.0)
    alone = jax.jit(lambda *x: token_logps(*x).logps_BM)(hidden, kernel, target)
    beside = jax.jit(token_logps)(hidden, kernel, target).logps_BM
    np.testing.assert_array_equal(alone, beside)


def test_metrics_have_no_gradient():
    hidden, kernel, target = _inputs(12)

    def metrics(hidden, kernel):
        result = token_logps(hidden, kernel, target, vocab_chunk=4)
        return (result.entropy_BM + result.correct_BM).sum()

    assert not any(np.any(grad) for grad in jax.grad(metrics, (0, 1))(hidden, kernel))


@pytest.mark.parametrize("target", [-1, 12])
def test_a_target_outside_the_vocabulary_is_not_a_number(target):
    hidden, kernel, targets = _inputs(12)
    targets[0, 0] = target
    logps = token_logps(hidden, kernel, targets, vocab_chunk=4).logps_BM
    assert np.isnan(logps[0, 0])
    assert np.isfinite(logps).sum() == logps.size - 1


def test_bfloat16_activations_keep_float32_sums_and_kernel_gradients():
    hidden, kernel, target = _inputs(300, num_slots=64, dim=32, scale=0.3)

    def loss(hidden, kernel):
        return token_logps(hidden, kernel, target, vocab_chunk=64).logps_BM.sum()

    narrow = jnp.asarray(hidden, jnp.bfloat16)
    hidden_grad, kernel_grad = jax.grad(loss, (0, 1))(narrow, kernel)
    _, wanted = jax.grad(lambda h, k: _naive(h, k, target).sum(), (0, 1))(hidden, kernel)
    assert (hidden_grad.dtype, kernel_grad.dtype) == (jnp.bfloat16, jnp.float32)
    assert np.linalg.norm(kernel_grad - wanted) < 1e-2 * np.linalg.norm(wanted)
    logps = token_logps(narrow, kernel, target, vocab_chunk=64).logps_BM
    rounded = kernel.astype(jnp.bfloat16).astype(np.float32)
    exact = _expected(np.asarray(narrow, np.float32), rounded, target, 0.0)[0]
    assert logps.dtype == jnp.float32
    np.testing.assert_allclose(logps, exact, atol=1e-5)  # bf16 log-probs would be off by 0.03


def _arrays(jaxpr):
    for equation in jaxpr.eqns:
        yield from (var.aval for var in equation.outvars)
        for value in jax.tree.leaves(equation.params, is_leaf=lambda v: hasattr(v, "eqns") or hasattr(v, "jaxpr")):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from _arrays(inner)


def _largest(function, *inputs):
    return max(aval.size for aval in _arrays(jax.make_jaxpr(function)(*inputs).jaxpr) if hasattr(aval, "shape"))


@pytest.mark.parametrize("vocab_size", [1024, 1021])
def test_no_array_of_tokens_by_vocabulary_exists_in_either_pass(vocab_size):
    hidden, kernel, target = _inputs(vocab_size, num_slots=64, dim=8)

    def loss(hidden, kernel):
        result = token_logps(hidden, kernel, target, vocab_chunk=128)
        return result.logps_BM.sum(), result

    backward = jax.value_and_grad(loss, (0, 1), has_aux=True)
    # A jaxpr that is not really walked, or a plain softmax, must show up.
    assert _largest(lambda h, k: _naive(h, k, target).sum(), hidden, kernel) >= 2 * 64 * vocab_size
    assert 2 * 64 * 64 <= _largest(backward, hidden, kernel) <= 2 * 64 * 128 < 64 * vocab_size


@pytest.mark.parametrize(
    "spec", [PartitionSpec("tensor", "fsdp"), PartitionSpec("tensor"), PartitionSpec(None, "fsdp")]
)
@pytest.mark.parametrize("vocab_size", [96, 88])
def test_sharded_inputs_give_the_same_values_and_gradients(spec, vocab_size):
    hidden, kernel, target = _inputs(vocab_size, dim=8, batch=4)
    mesh = Mesh(
        np.asarray(jax.devices()[:8]).reshape(2, 2, 2), ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3
    )

    def loss(hidden, kernel, target):
        result = token_logps(hidden, kernel, target, softcap=5.0, vocab_chunk=16)
        return result.logps_BM.sum(), result

    step = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))
    rows = NamedSharding(mesh, PartitionSpec(("data", "fsdp")))
    sharded = [jax.device_put(x, s) for x, s in ((hidden, rows), (kernel, NamedSharding(mesh, spec)), (target, rows))]
    for got, wanted in zip(jax.tree.leaves(step(*sharded)), jax.tree.leaves(step(hidden, kernel, target)), strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-5)


def test_queries_are_gathered_row_by_row():
    values = np.arange(2 * 3 * 1, dtype=np.float32).reshape(2, 3, 1)
    taken = take_queries(values, np.array([[2, 0], [1, 1]]))
    np.testing.assert_array_equal(taken[..., 0], [[2, 0], [4, 4]])


def test_sequence_sums_by_hand():
    logps = jnp.array([[-1.0, -2.0, -4.0, -8.0], [-1.0, -1.0, -1.0, -1.0]])
    index = jnp.array([[0, 2, 2, 0], [1, 0, 1, 1]])
    weight = jnp.array([[1.0, 1.0, 1.0, 0.0], [1.0, 1.0, 0.5, 0.0]])
    sums, counts = sequence_logps(logps, index, weight, 3)
    np.testing.assert_array_equal(sums, [[-1.0, 0.0, -6.0], [-1.0, -1.5, 0.0]])
    np.testing.assert_array_equal(counts, [[1.0, 0.0, 2.0], [1.0, 1.5, 0.0]])


TOKENS = TokenLogps(
    logps_BM=jnp.array([[-1.0, -2.0, -8.0], [-0.5, -3.0, -9.0]]),
    entropy_BM=jnp.array([[0.5, 1.0, 7.0], [2.0, 0.25, 7.0]]),
    correct_BM=jnp.array([[1.0, 0.0, 1.0], [1.0, 0.0, 1.0]]),
)
WEIGHT = jnp.array([[1.0, 1.0, 0.0], [1.0, 1.0, 0.0]])


def test_loss_sums_trained_tokens_only():
    loss_sum, count, sums = sft_loss(TOKENS, WEIGHT)
    assert (float(loss_sum), float(count)) == (6.5, 4.0)
    assert {name: float(value) for name, value in sums.items()} == {
        "nll": 6.5,
        "entropy": 3.75,
        "correct": 2.0,
        "tokens": 4.0,
    }


def test_sums_add_up_over_rows():
    whole = token_sums(TOKENS, WEIGHT)
    rows = [
        token_sums(TokenLogps(*(x[i] for x in (TOKENS.logps_BM, TOKENS.entropy_BM, TOKENS.correct_BM))), WEIGHT[i])
        for i in (0, 1)
    ]
    for name, value in whole.items():
        np.testing.assert_allclose(rows[0][name] + rows[1][name], value)
