"""Next-token choice against hand-computed cuts, a sorting reference, and the probabilities it claims."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from empathax.config import EvalOptions
from empathax.errors import ConfigError
from empathax.evaluation.generation.sampling import Sampling, above_min_p, next_token, nucleus, row_keys, sampling_from

PROBS = np.array([[0.15, 0.5, 0.05, 0.3]], np.float32)


def draws(probs_V, sampling, count=4000, seed=0):
    """Shares of each token among `count` rows that differ in their row id only."""
    logits_BV = jnp.broadcast_to(jnp.log(jnp.asarray(probs_V)), (count, len(probs_V)))
    ids = next_token(logits_BV, row_keys(seed, jnp.arange(count)), sampling)
    return np.bincount(np.asarray(ids), minlength=len(probs_V)) / count


def test_temperature_zero_is_the_argmax_and_ties_take_the_lowest_id():
    logits_BV = jnp.array([[0.0, 3.0, 3.0, -1.0], [-jnp.inf, -2.0, -1.0, -5.0]])
    assert next_token(logits_BV, row_keys(0, jnp.arange(2)), Sampling()).tolist() == [1, 2]


@pytest.mark.parametrize(
    ("top_p", "kept"),
    [(0.3, [1]), (0.5, [1]), (0.51, [1, 3]), (0.79, [1, 3]), (0.81, [0, 1, 3]), (0.96, [0, 1, 2, 3])],
)
def test_nucleus_by_hand(top_p, kept):
    assert np.flatnonzero(nucleus(jnp.asarray(PROBS), top_p)[0]).tolist() == kept


def test_nucleus_keeps_ties_at_the_border():
    assert np.flatnonzero(nucleus(jnp.full((1, 4), 0.25), 0.3)[0]).tolist() == [0, 1, 2, 3]


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**31 - 1), st.floats(0.05, 0.95))
def test_nucleus_equals_a_cut_of_the_sorted_tokens(seed, top_p):
    probs = np.random.default_rng(seed).dirichlet(np.full(50, 0.3)).astype(np.float32)
    order = np.argsort(-probs)
    before = np.concatenate([[0.0], np.cumsum(probs[order].astype(np.float64))[:-1]])
    if np.min(np.abs(before - top_p)) < 1e-5:
        return  # the border is within rounding
    expected = np.zeros_like(probs)
    expected[order[before < top_p]] = probs[order[before < top_p]]
    np.testing.assert_array_equal(nucleus(jnp.asarray(probs)[None], float(top_p))[0], expected)


@pytest.mark.parametrize(
    ("min_p", "kept"),
    [(0.1, [0, 1, 2, 3]), (0.11, [0, 1, 3]), (0.29, [0, 1, 3]), (0.31, [1, 3]), (0.61, [1]), (1.0, [1])],
)
def test_min_p_by_hand(min_p, kept):
    """The borders lie at 0.05, 0.055, 0.145, 0.155, 0.305 and 0.5, as the likeliest token has half."""
    assert np.flatnonzero(above_min_p(jnp.asarray(PROBS), min_p)[0]).tolist() == kept


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**31 - 1), st.floats(0.01, 1.0), st.floats(0.1, 10.0))
def test_min_p_keeps_the_same_tokens_whatever_the_probabilities_are_scaled_by(seed, min_p, factor):
    """So it does not matter that the cuts before it leave sums below 1."""
    probs = np.random.default_rng(seed).dirichlet(np.full(50, 0.3)).astype(np.float32)
    kept = probs.astype(np.float64) >= min_p * probs.max()
    if np.min(np.abs(probs / probs.max() - min_p)) < 1e-5:
        return  # the border is within rounding
    np.testing.assert_array_equal(above_min_p(jnp.asarray(probs * np.float32(factor))[None], min_p)[0] > 0, kept)


@pytest.mark.parametrize(
    ("sampling", "expected"),
    [
        (Sampling(1.0), PROBS[0]),
        (Sampling(1.0, top_k=2), [0.0, 0.625, 0.0, 0.375]),
        (Sampling(1.0, top_p=0.81), [0.15 / 0.95, 0.5 / 0.95, 0.0, 0.3 / 0.95]),
        (Sampling(1.0, top_k=2, top_p=0.6), [0.0, 1.0, 0.0, 0.0]),  # 0.625 of the two already reaches 0.6
        (Sampling(1.0, top_k=1), [0.0, 1.0, 0.0, 0.0]),
        (Sampling(1.0, min_p=0.2), [0.15 / 0.95, 0.5 / 0.95, 0.0, 0.3 / 0.95]),
        (Sampling(1.0, min_p=0.5), [0.0, 0.625, 0.0, 0.375]),
        (Sampling(1.0, min_p=1.0), [0.0, 1.0, 0.0, 0.0]),
        (Sampling(0.5, min_p=0.3), [0.0, 0.25 / 0.34, 0.0, 0.09 / 0.34]),  # squares: 0.0225 < 0.3 * 0.25 < 0.09
        (Sampling(2.0, min_p=0.5), np.sqrt([0.15, 0.5, 0.0, 0.3]) / np.sqrt([0.15, 0.5, 0.3]).sum()),
        (Sampling(1.0, top_k=3, top_p=0.8, min_p=0.5), [0.0, 0.625, 0.0, 0.375]),
        (Sampling(0.5), PROBS[0] ** 2 / np.sum(PROBS**2)),
        (Sampling(1.0, top_k=99), PROBS[0]),
    ],
)
def test_tokens_come_with_their_probability(sampling, expected):
    shares = draws(PROBS[0], sampling)
    np.testing.assert_allclose(shares, expected, atol=0.03)  # four standard deviations
    assert np.all(shares[np.asarray(expected) == 0.0] == 0.0)


def test_a_large_vocabulary_is_drawn_from_evenly():
    """Across the blocks of the running sum: 1,000 tokens in four groups of equal mass."""
    shares = draws(np.full(1000, 1e-3, np.float32), Sampling(1.0)).reshape(4, 250).sum(axis=1)
    np.testing.assert_allclose(shares, 0.25, atol=0.03)


def test_impossible_tokens_never_come():
    probs = np.zeros(600, np.float32)
    probs[[3, 299, 599]] = [0.2, 0.3, 0.5]
    shares = draws(probs, Sampling(1.0))
    np.testing.assert_allclose(shares[[3, 299, 599]], [0.2, 0.3, 0.5], atol=0.03)
    assert shares.sum() == pytest.approx(shares[[3, 299, 599]].sum())


def test_a_row_draws_the_same_in_any_company():
    logits_BV = jax.random.normal(jax.random.key(1), (6, 40))
    row_ids = jnp.array([5, 0, 3, 9, 2, 7])
    together = next_token(logits_BV, row_keys(4, row_ids), Sampling(1.5))
    order = jnp.array([3, 1, 5, 0, 4, 2])
    shuffled = next_token(logits_BV[order], row_keys(4, row_ids[order]), Sampling(1.5))
    assert together[order].tolist() == shuffled.tolist()
    alone = next_token(logits_BV[2:3], row_keys(4, row_ids[2:3]), Sampling(1.5))
    assert alone.tolist() == together[2:3].tolist()


def test_samples_of_a_row_differ_and_are_told_apart_by_their_number_only():
    logits_BV = jnp.zeros((6, 1000))
    rows, samples = jnp.array([0, 0, 0, 1, 1, 1]), jnp.array([0, 1, 2, 0, 1, 2])
    together = next_token(logits_BV, row_keys(4, rows, samples), Sampling(1.0))
    assert len(set(together.tolist())) == 6
    order = jnp.array([4, 0, 5, 2])
    shuffled = next_token(logits_BV[:4], row_keys(4, rows[order], samples[order]), Sampling(1.0))
    assert shuffled.tolist() == together[order].tolist()
    first = next_token(logits_BV[:2], row_keys(4, jnp.array([0, 1])), Sampling(1.0))
    assert first.tolist() == together[jnp.array([0, 3])].tolist()


def test_the_penalty_changes_greedy_choices_and_draws():
    logits_BV = jnp.broadcast_to(jnp.array([2.0, 3.0, 2.9, -1.0]), (2, 4))
    seen_BV = jnp.array([[False, True, False, True], [False, False, False, False]])
    keys_B = row_keys(0, jnp.arange(2))
    assert next_token(logits_BV, keys_B, Sampling(repetition_penalty=1.5), seen_BV).tolist() == [2, 1]
    top = Sampling(1.0, top_k=1, repetition_penalty=1.5)
    assert next_token(logits_BV, keys_B, top, seen_BV).tolist() == [2, 1]
    with pytest.raises(ValueError, match="seen_BV"):
        next_token(logits_BV, keys_B, top)


def test_values_that_cannot_work_are_all_named():
    bad = {"temperature": -1.0, "top_k": -2, "top_p": 0.0, "min_p": 1.5, "repetition_penalty": 0.0}
    with pytest.raises(ConfigError) as error:
        Sampling(**bad)
    assert all(f"{name} = {value}" in str(error.value) for name, value in bad.items())
    with pytest.raises(ConfigError) as error:
        sampling_from(EvalOptions(**bad, num_samples=0))
    assert all(f"{name} = {value}" in str(error.value) for name, value in {**bad, "num_samples": 0}.items())


def test_several_samples_need_a_temperature():
    with pytest.raises(ConfigError, match="num_samples = 3 with temperature = 0"):
        sampling_from(EvalOptions(num_samples=3))
    options = EvalOptions(num_samples=3, temperature=0.7, top_k=5, top_p=0.9, min_p=0.1, repetition_penalty=1.2)
    assert sampling_from(options) == Sampling(0.7, 5, 0.9, 0.1, 1.2)
