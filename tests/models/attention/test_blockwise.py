"""Blockwise attention against the dense reference: values, gradients, skipped blocks, memory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from empathax.models.attention.dispatch import attention, tree_mask
from empathax.models.attention.tree_layout import TreeLayout, block_lists, visible_blocks
from tests.models.attention.forests import assert_close, random_inputs, run_attention

T = 512


def _inputs(seed, batch=1, branching=0.02):
    return random_inputs(seed, T, batch, branching=branching)


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 10**6), branching=st.sampled_from([0.0, 0.005, 0.1]), batch=st.integers(1, 2))
def test_equals_dense_on_random_forests(seed, branching, batch):
    q, k, v, layout = _inputs(seed, batch, branching=branching)
    dense, blocks = (run_attention(name, q, k, v, layout) for name in ("dense", "blockwise"))
    assert_close(blocks, dense)


@pytest.mark.parametrize("options", [{"window": 40}, {"softcap": 2.0}, {"window": jnp.int32(40), "softcap": 2.0}])
def test_window_and_softcap_equal_dense(options):
    q, k, v, layout = _inputs(1, batch=2)
    dense, blocks = (run_attention(name, 4 * q, k, v, layout, **options) for name in ("dense", "blockwise"))
    for block, reference in zip(blocks, dense, strict=True):
        np.testing.assert_allclose(block, reference, atol=1e-4)


def test_blocks_that_nothing_sees_are_left_out():
    # two trees of 256 tokens: no block of the second sees one of the first
    end_BT = jnp.repeat(jnp.array([[256, 512]], jnp.int32), 256, axis=1)
    positions_BT = jnp.arange(512, dtype=jnp.int32)[None] % 256
    visible = visible_blocks(TreeLayout(positions_BT, end_BT, jnp.int32(10**6)), 128, 128)[0]
    assert np.asarray(visible).astype(int).tolist() == [[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 1, 1]]
    chain = TreeLayout(jnp.arange(512, dtype=jnp.int32)[None], jnp.full((1, 512), 512, jnp.int32), jnp.int32(64))
    assert np.asarray(visible_blocks(chain, 128, 128)[0]).sum(axis=1).tolist() == [1, 2, 2, 2]


def test_visible_blocks_of_unequal_size_hold_every_visible_pair():
    _, _, _, layout = _inputs(2, batch=2, branching=0.05)
    mask = np.asarray(tree_mask(layout._replace(window=100)))
    for queries, keys in ((128, 64), (64, 128)):
        tiles = mask.reshape(2, T // queries, queries, T // keys, keys).any(axis=(2, 4))
        visible = visible_blocks(layout._replace(window=jnp.int32(100)), queries, keys)
        assert not (tiles & ~np.asarray(visible)).any()
        assert np.asarray(visible).sum() < 0.8 * visible.size


def test_block_lists_repeat_their_last_entry():
    lists = block_lists(jnp.array([[[False, True, False, True], [True, False, False, False]]]))
    assert lists.blocks.tolist() == [[[1, 3, 3, 3], [0, 0, 0, 0]]]
    assert lists.num_visible.tolist() == [[2, 1]]


def test_temporaries_grow_linearly():
    def temporaries(num_tokens):
        arrays = [jax.ShapeDtypeStruct((1, n, num_tokens, 16), jnp.float32) for n in (4, 2, 2)]
        index = jax.ShapeDtypeStruct((1, num_tokens), jnp.int32)

        def loss(q, k, v, positions, end):
            return attention(q, k, v, TreeLayout(positions, end), implementation="blockwise").sum()

        compiled = jax.jit(jax.grad(loss, argnums=(0, 1, 2))).lower(*arrays, index, index).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    small, large = temporaries(2048), temporaries(8192)
    assert large < 5 * small
