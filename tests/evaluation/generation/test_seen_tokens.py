"""Seen tokens of prompts that share beginnings; the penalty by hand."""

import jax.numpy as jnp
import numpy as np
import pytest

from empathax.evaluation.generation.prompt_tree import lay_out_prompts
from empathax.evaluation.generation.sampling import mark_seen, penalise_seen, seen_in_prompts

PROMPTS = [[5, 6, 7], [5, 6, 7, 8, 5], [9], [5, 6, 3, 3]]


@pytest.mark.parametrize("num_rows", [1, 2, 4])
def test_a_rows_own_prompt_and_nothing_else_is_seen(num_rows):
    seen_BV = seen_in_prompts(lay_out_prompts(PROMPTS, num_rows), 12)
    assert [np.flatnonzero(seen).tolist() for seen in seen_BV] == [sorted(set(prompt)) for prompt in PROMPTS]


def test_padding_is_not_seen_but_a_token_0_is():
    seen_BV = seen_in_prompts(lay_out_prompts([[4, 0], [4, 2]]), 6)
    assert [np.flatnonzero(seen).tolist() for seen in seen_BV] == [[0, 4], [2, 4]]


def test_new_tokens_are_added_row_by_row():
    seen_BV = mark_seen(jnp.zeros((2, 4), bool).at[0, 1].set(True), jnp.array([3, 1]))
    assert seen_BV.tolist() == [[False, True, False, True], [False, True, False, False]]


def test_penalty_by_hand():
    logits_BV = jnp.array([[3.0, -2.0, 0.0, 1.0, -jnp.inf]])
    seen_BV = jnp.array([[True, True, True, False, True]])
    assert penalise_seen(logits_BV, seen_BV, 2.0).tolist() == [[1.5, -4.0, 0.0, 1.0, -np.inf]]
    assert penalise_seen(logits_BV, seen_BV, 0.5).tolist() == [[6.0, -1.0, 0.0, 1.0, -np.inf]]
