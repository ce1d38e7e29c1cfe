"""Pairs taken out of a batch's replies: indices, chosen tokens, discounted tails, importance weights."""

import jax
import jax.numpy as jnp
import numpy as np

from empathax.objectives.pairs import (
    chosen_token_weight,
    importance_weights,
    tail_discounted,
    take_pairs,
    token_numbers,
)


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


# one row: replies of 2, 3 and 1 tokens, then two unused slots
INDEX = jnp.array([[0, 0, 1, 1, 1, 2, 0, 0]])
WEIGHT = jnp.array([[1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.0, 0.0]])
LENGTHS = jnp.array([[2.0, 3.0, 1.0]])


def test_tokens_are_numbered_in_their_reply():
    numbers = token_numbers(INDEX, WEIGHT, LENGTHS)
    np.testing.assert_array_equal(numbers[0, :6], [1, 2, 1, 2, 3, 1])


def test_a_reply_is_discounted_past_the_other_of_its_pair():
    logps = jnp.array([[-1.0, -2.0, -4.0, -8.0, -16.0, -32.0, -64.0, -64.0]])
    numbers = token_numbers(INDEX, WEIGHT, LENGTHS)
    # reply 1 beside replies of 2, of 1 and of 3 tokens (itself)
    shorter = jnp.array([[2.0, 1.0, 3.0]])
    of = lambda x: tail_discounted(x, numbers, INDEX, WEIGHT, jnp.array([[1, 1, 1]]), shorter, 0.25)  # noqa: E731
    np.testing.assert_array_equal(of(logps), [[-4 - 8 - 4, -4 - 2 - 4, -28]])
    grad = jax.grad(lambda x: of(x).sum())(logps)
    np.testing.assert_array_equal(grad, [[0, 0, 3, 2.25, 1.5, 0, 0, 0]])


def test_importance_is_the_mean_of_both_replies_without_a_gradient():
    log_weight = jnp.array([[-2.0, -3.0, 0.5]])
    take = lambda x: importance_weights(x, LENGTHS, jnp.array([[0, 2]]), jnp.array([[1, 0]]))  # noqa: E731
    np.testing.assert_allclose(take(log_weight), [[np.exp(-1 - 1), np.exp(0.5 - 1)]], rtol=1e-6)
    np.testing.assert_array_equal(jax.grad(lambda x: take(x).sum())(log_weight), np.zeros((1, 3)))
