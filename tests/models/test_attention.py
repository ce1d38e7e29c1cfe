"""Dense attention over forests against loops over tokens."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from empathax.errors import ConfigError
from empathax.models.attention import NO_WINDOW, attention, masked_attention, tree_mask

# two trees: 0-1-(2-3, 4-(5, 6)) and 7-8
SUBTREE_END = np.array([7, 7, 4, 4, 7, 6, 7, 9, 9])
POSITIONS = np.array([0, 1, 2, 3, 2, 3, 3, 0, 1])
PATHS = [[0], [0, 1], [0, 1, 2], [0, 1, 2, 3], [0, 1, 4], [0, 1, 4, 5], [0, 1, 4, 6], [7], [7, 8]]
LAYOUT = {"positions_BT": jnp.asarray(POSITIONS)[None], "subtree_end_BT": jnp.asarray(SUBTREE_END)[None]}


def _qkv(num_heads=4, num_kv_heads=2, head_dim=8, dtype=jnp.float32):
    rng = np.random.default_rng(0)
    shapes = [(1, n, len(PATHS), head_dim) for n in (num_heads, num_kv_heads, num_kv_heads)]
    return [jnp.asarray(rng.standard_normal(shape), dtype) for shape in shapes]


def _by_loops(q, k, v, window, softcap, scale):
    """Each token's softmax over its own path, one head at a time."""
    q, k, v = (np.asarray(x[0], np.float64) for x in (q, k, v))
    group = len(q) // len(k)
    out = np.zeros_like(q)
    for head in range(len(q)):
        for token, path in enumerate(PATHS):
            seen = path[-window:] if window else path
            scores = np.array([q[head, token] @ k[head // group, other] for other in seen]) * scale
            if softcap:
                scores = softcap * np.tanh(scores / softcap)
            weights = np.exp(scores - scores.max())
            out[head, token] = weights @ v[head // group, seen] / weights.sum()
    return out


@pytest.mark.parametrize("num_kv_heads", [1, 2, 4])
@pytest.mark.parametrize(("window", "softcap"), [(0, 0.0), (2, 0.0), (1, 0.0), (0, 0.7), (3, 2.0)])
def test_equals_softmax_over_each_path(num_kv_heads, window, softcap):
    q, k, v = _qkv(num_kv_heads=num_kv_heads)
    out = attention(q, k, v, **LAYOUT, window=window, softcap=softcap, scale=0.5, implementation="dense")
    np.testing.assert_allclose(out[0], _by_loops(q, k, v, window, softcap, 0.5), atol=1e-5)


def test_a_traced_window_equals_a_static_one():
    q, k, v = _qkv()
    run = jax.jit(lambda window: attention(q, k, v, **LAYOUT, window=window))
    for static, traced in ((2, 2), (0, NO_WINDOW)):
        np.testing.assert_allclose(run(jnp.int32(traced)), attention(q, k, v, **LAYOUT, window=static), atol=1e-6)


def test_mask_by_hand():
    mask = np.asarray(tree_mask(LAYOUT["positions_BT"], LAYOUT["subtree_end_BT"])[0])
    assert [list(np.flatnonzero(row)) for row in mask] == PATHS


def test_a_token_never_moves_another_branch():
    q, k, v = _qkv()
    before = attention(q, k, v, **LAYOUT)
    after = attention(q, k.at[:, :, 4].add(9.0), v.at[:, :, 4].add(9.0), **LAYOUT)
    moved = np.flatnonzero(np.abs(np.asarray(after - before)).max(axis=(0, 1, 3)))
    assert list(moved) == [4, 5, 6]


def test_softmax_is_float32_and_the_result_has_the_dtype_of_the_query():
    q, k, v = _qkv(dtype=jnp.bfloat16)
    out = attention(q, k, v, **LAYOUT)
    assert out.dtype == jnp.bfloat16
    exact = attention(*(x.astype(jnp.float32) for x in (q, k, v)), **LAYOUT)
    np.testing.assert_allclose(out.astype(jnp.float32), exact, atol=0.03)


def test_a_query_that_sees_nothing_is_finite():
    q, k, v = _qkv()
    out = masked_attention(q, k, v, jnp.zeros((1, len(PATHS), len(PATHS)), bool), 0.0, 1.0)
    assert bool(jnp.isfinite(out).all())


def test_unknown_implementation():
    q, k, v = _qkv()
    with pytest.raises(ConfigError, match="dense"):
        attention(q, k, v, **LAYOUT, implementation="flash9")
