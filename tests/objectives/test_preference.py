"""DPO against numbers worked out by hand and its formulas."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from empathax.errors import ConfigError
from empathax.objectives.preference import chosen_token_weight, dpo_loss, take_pairs


def _log_sigmoid(x):
    return -math.log1p(math.exp(-x)) if x > 0 else x - math.log1p(math.exp(x))


def test_two_pairs_by_hand():
    # margins: 0.1 * ((-10 + 12) - (-20 + 19)) = 0.3 and 0.1 * ((-5 + 4) - (-6 + 6)) = -0.1
    logps = ([-10.0, -5.0], [-20.0, -6.0], [-12.0, -4.0], [-19.0, -6.0])
    loss_sum, pairs, sums = dpo_loss(*map(jnp.array, logps), jnp.ones(2), beta=0.1)
    assert float(pairs) == 2.0
    np.testing.assert_allclose(loss_sum, -_log_sigmoid(0.3) - _log_sigmoid(-0.1), rtol=1e-6)
    wanted = {
        "reward_chosen": 0.2 - 0.1,
        "reward_rejected": -0.1 + 0.0,
        "reward_margin": 0.3 - 0.1,
        "reward_accuracy": 1.0,
        "logp_chosen": -15.0,
        "logp_rejected": -26.0,
        "pairs": 2.0,
    }
    for name, value in wanted.items():
        np.testing.assert_allclose(sums[name], value, rtol=1e-5, err_msg=name)


def test_unused_pairs_count_nothing():
    columns = [jnp.array([-1.0, -700.0]), jnp.array([-2.0, 0.0]), jnp.array([-1.5, 0.0]), jnp.array([-1.0, 0.0])]
    with_padding = dpo_loss(*columns, jnp.array([1.0, 0.0]), beta=0.5, label_smoothing=0.1)
    without = dpo_loss(*(column[:1] for column in columns), jnp.ones(1), beta=0.5, label_smoothing=0.1)
    jax.tree.map(np.testing.assert_array_equal, with_padding, without)


def test_a_policy_equal_to_its_reference():
    logps = jnp.array([-100.0, -3.0])
    loss_sum, pairs, sums = dpo_loss(logps, logps * 2, logps, logps * 2, jnp.ones(2), beta=0.1)
    np.testing.assert_allclose(loss_sum / pairs, math.log(2), atol=1e-7)
    assert float(sums["reward_margin"]) == 0.0
    assert float(sums["reward_accuracy"]) == 0.0  # ties do not win, as in TRL


@settings(max_examples=50, deadline=None)
@given(margin=st.floats(-30, 30), epsilon=st.floats(0, 0.5), beta=st.floats(0.01, 2))
def test_label_smoothing_is_cdpo(margin, epsilon, beta):
    zero = jnp.zeros(1)
    loss_sum, _, _ = dpo_loss(jnp.full(1, margin), zero, zero, zero, jnp.ones(1), beta=beta, label_smoothing=epsilon)
    wanted = -(1 - epsilon) * _log_sigmoid(beta * margin) - epsilon * _log_sigmoid(-beta * margin)
    np.testing.assert_allclose(loss_sum, wanted, rtol=1e-5, atol=1e-6)


def test_smoothed_loss_is_least_at_its_own_probability():
    # the gradient vanishes where sigmoid(margin) = 1 - eps: smoothing has the right sign
    zero = jnp.zeros(1)
    margin = jnp.full(1, math.log(0.9 / 0.1))
    loss = lambda m: dpo_loss(m, zero, zero, zero, jnp.ones(1), beta=1.0, label_smoothing=0.1)[0]  # noqa: E731
    np.testing.assert_allclose(jax.grad(loss)(margin), 0.0, atol=1e-6)


def test_extreme_margins_stay_finite():
    zero = jnp.zeros(2)
    loss = lambda m: dpo_loss(m, zero, zero, zero, jnp.ones(2), beta=1.0, label_smoothing=0.1)[0]  # noqa: E731
    margin = jnp.array([-1e4, 1e4])
    np.testing.assert_allclose(loss(margin), 0.9e4 + 0.1e4, rtol=1e-6)
    np.testing.assert_allclose(jax.grad(loss)(margin), [-0.9, 0.1], rtol=1e-6)


def test_a_loss_that_does_not_exist_is_an_error():
    with pytest.raises(ConfigError, match="ipo"):
        dpo_loss(*[jnp.zeros(1)] * 5, beta=0.1, loss="ipo")


def test_pairs_are_taken_row_by_row():
    logps = jnp.array([[-1.0, -2.0, -3.0], [-4.0, -5.0, -6.0]])
    chosen, rejected = take_pairs(logps, jnp.array([[0, 2], [1, 0]]), jnp.array([[1, 1], [2, 0]]))
    np.testing.assert_array_equal(chosen, [[-1, -3], [-5, -4]])
    np.testing.assert_array_equal(rejected, [[-2, -2], [-6, -4]])


def test_chosen_tokens_count_once_and_unused_pairs_not():
    sequence_index = jnp.array([[0, 0, 1, 2, 3, 0]])
    weight = jnp.array([[1.0, 1.0, 1.0, 1.0, 1.0, 0.0]])
    chosen, pair_weight = jnp.array([[2, 2, 3]]), jnp.array([[1.0, 1.0, 0.0]])
    np.testing.assert_array_equal(
        chosen_token_weight(weight, sequence_index, chosen, pair_weight), [[0, 0, 0, 1, 0, 0]]
    )
