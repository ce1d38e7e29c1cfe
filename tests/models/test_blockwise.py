"""Blockwise attention against the dense reference: values, gradients, skipped blocks, memory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from empathax.models.attention import attention
from empathax.models.blockwise import visible_blocks

T = 512


def _inputs(seed, batch=1, branching=0.02):
    return random_inputs(seed, T, batch, branching=branching)


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 10**6), branching=st.sampled_from([0.0, 0.005, 0.1]), batch=st.integers(1, 2))
def test_equals_dense_on_random_forests(seed, branching, batch):
    q, k, v, layout = _inputs(seed, batch, branching=branching)
    dense, blocks = (run_attention(name, q, k, v, **layout) for name in ("dense", "blockwise"))
    np.testing.assert_allclose(blocks[0], dense[0], atol=1e-5)
    for block, reference in zip(blocks[1:], dense[1:], strict=True):
        np.testing.assert_allclose(block, reference, atol=1e-4)


@pytest.mark.parametrize("options", [{"window": 40}, {"softcap": 2.0}, {"window": jnp.int32(40), "softcap": 2.0}])
def test_window_and_softcap_equal_dense(options):
    q, k, v, layout = _inputs(1, batch=2)
    dense, blocks = (run_attention(name, 4 * q, k, v, **layout, **options) for name in ("dense", "blockwise"))
    for block, reference in zip(blocks, dense, strict=True):
        np.testing.assert_allclose(block, reference, atol=1e-4)


def test_blocks_that_nothing_sees_are_left_out():
    # two trees of 256 tokens: no block of the second sees one of the first
    end_BT = jnp.repeat(jnp.array([[256, 512]], jnp.int32), 256, axis=1)
    positions_BT = jnp.arange(512, dtype=jnp.int32)[None] % 256
    visible = visible_blocks(end_BT, positions_BT, jnp.int32(10**6), 128)
    assert np.asarray(visible).astype(int).tolist() == [[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 1, 1]]
    near = visible_blocks(
        jnp.full((1, 512), 512, jnp.int32), jnp.arange(512, dtype=jnp.int32)[None], jnp.int32(64), 128
    )
    assert np.asarray(near).sum(axis=1).tolist() == [1, 2, 2, 2]


def test_temporaries_grow_linearly():
    def temporaries(num_tokens):
        arrays = [jax.ShapeDtypeStruct((1, n, num_tokens, 16), jnp.float32) for n in (4, 2, 2)]
        index = jax.ShapeDtypeStruct((1, num_tokens), jnp.int32)

        def loss(q, k, v, positions, end):
            return attention(q, k, v, positions_BT=positions, subtree_end_BT=end, implementation="blockwise").sum()

        compiled = jax.jit(jax.grad(loss, argnums=(0, 1, 2))).lower(*arrays, index, index).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    small, large = temporaries(2048), temporaries(8192)
    assert large < 5 * small
