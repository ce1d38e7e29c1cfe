"""Next-token choice against hand-computed cuts, a sorting reference, and the probabilities it claims."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from empathax.errors import ConfigError
from empathax.evaluation.sampling import Sampling, next_token, nucleus, row_keys

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
    ("sampling", "expected"),
    [
        (Sampling(1.0), PROBS[0]),
        (Sampling(1.0, top_k=2), [0.0, 0.625, 0.0, 0.375]),
        (Sampling(1.0, top_p=0.81), [0.15 / 0.95, 0.5 / 0.95, 0.0, 0.3 / 0.95]),
        (Sampling(1.0, top_k=2, top_p=0.6), [0.0, 1.0, 0.0, 0.0]),  # 0.625 of the two already reaches 0.6
        (Sampling(1.0, top_k=1), [0.0, 1.0, 0.0, 0.0]),
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


def test_values_that_cannot_work_are_all_named():
    with pytest.raises(ConfigError) as error:
        Sampling(temperature=-1.0, top_k=-2, top_p=0.0)
    assert all(name in str(error.value) for name in ("temperature", "top_k", "top_p"))
