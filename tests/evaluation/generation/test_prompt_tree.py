"""Prompts as one tree: every prompt can be read back from it, and shared tokens lie in it once."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from empathax.evaluation.generation.prompt_tree import lay_out_prompts, prefill_tree, rounded_up
from empathax.models.architecture.presets import preset
from empathax.models.transformer import hidden_states, init_params

TOKENS = st.lists(st.integers(1, 4), min_size=1, max_size=12)


@settings(max_examples=50, deadline=None)
@given(st.lists(TOKENS, min_size=1, max_size=6))
def test_every_prompt_is_a_path_and_prefixes_are_shared(prompts):
    tree = lay_out_prompts(prompts)
    for row, prompt in enumerate(prompts):
        path = tree.path_BS[row, -len(prompt) :]
        assert tree.lengths_B[row] == len(prompt)
        assert tree.token_ids_RT[0, path].tolist() == prompt
        assert tree.positions_RT[0, path].tolist() == list(range(len(prompt)))
        # a prompt's token sees exactly its own beginning
        ends = tree.subtree_end_RT[0]
        for index in path:
            seen = [j for j in range(index + 1) if index < ends[j]]
            assert tree.token_ids_RT[0, seen].tolist() == prompt[: len(seen)]
    distinct = {tuple(prompt[: length + 1]) for prompt in prompts for length in range(len(prompt))}
    used = np.unique(np.concatenate([tree.path_BS[row, -len(p) :] for row, p in enumerate(prompts)]))
    assert len(used) == len(distinct)


def test_sizes_are_rounded_up_to_few():
    assert [rounded_up(n) for n in (1, 128, 129, 192, 193, 256, 300, 384, 385, 1025)] == [
        128, 128, 192, 192, 256, 256, 384, 384, 512, 1536,
    ]  # fmt: skip


def test_prompts_must_divide_into_rows():
    with pytest.raises(ValueError, match="3 prompts"):
        lay_out_prompts([[1], [2], [3]], num_rows=2)


@pytest.mark.parametrize("name", ["tiny-llama", "tiny-gemma3"])
@pytest.mark.parametrize("num_rows", [1, 2])
def test_last_hidden_states_and_cache_are_those_of_each_prompt_alone(name, num_rows):
    config = preset(name)
    params = init_params(config, 0)
    trunk = np.random.default_rng(0).integers(3, 500, 40).tolist()
    prompts = [trunk[:3], trunk[:30], [*trunk[:30], 9, 8], [*trunk[:12], 7]]
    hidden_BD, cache = prefill_tree(params, config, lay_out_prompts(prompts, num_rows), 5)
    for row, prompt in enumerate(prompts):
        length = len(prompt)
        alone_BTD = hidden_states(
            params, config, jnp.array([prompt]), jnp.arange(length)[None], jnp.full((1, length), length)
        )
        np.testing.assert_allclose(hidden_BD[row], alone_BTD[0, -1], atol=1e-5)
        filled = np.flatnonzero(cache.position_BS[row] >= 0)
        assert cache.position_BS[row, filled].tolist() == list(range(length))
        assert int(cache.next_position_B[row]) == length
