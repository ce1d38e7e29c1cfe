"""Dense attention over forests against loops over tokens."""

import dataclasses
import types

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from empathax.errors import ConfigError
from empathax.models.architecture.presets import preset
from empathax.models.attention import dispatch, flash
from empathax.models.attention.dispatch import attention, masked_attention, tree_mask
from empathax.models.attention.tree_layout import NO_WINDOW, TreeLayout
from empathax.models.transformer import ComputeOptions, abstract_params, hidden_states, init_params
from empathax.parallel import rules
from tests.models.attention.forests import random_inputs

# two trees: 0-1-(2-3, 4-(5, 6)) and 7-8
SUBTREE_END = np.array([7, 7, 4, 4, 7, 6, 7, 9, 9])
POSITIONS = np.array([0, 1, 2, 3, 2, 3, 3, 0, 1])
PATHS = [[0], [0, 1], [0, 1, 2], [0, 1, 2, 3], [0, 1, 4], [0, 1, 4, 5], [0, 1, 4, 6], [7], [7, 8]]
LAYOUT = TreeLayout(jnp.asarray(POSITIONS)[None], jnp.asarray(SUBTREE_END)[None])


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
    out = attention(q, k, v, LAYOUT._replace(window=window), softcap=softcap, scale=0.5, implementation="dense")
    np.testing.assert_allclose(out[0], _by_loops(q, k, v, window, softcap, 0.5), atol=1e-5)


def test_a_traced_window_equals_a_static_one():
    q, k, v = _qkv()
    run = jax.jit(lambda window: attention(q, k, v, LAYOUT._replace(window=window)))
    for static, traced in ((2, 2), (0, NO_WINDOW)):
        np.testing.assert_allclose(
            run(jnp.int32(traced)), attention(q, k, v, LAYOUT._replace(window=static)), atol=1e-6
        )


def test_mask_by_hand():
    mask = np.asarray(tree_mask(LAYOUT)[0])
    assert [list(np.flatnonzero(row)) for row in mask] == PATHS


def test_a_token_never_moves_another_branch():
    q, k, v = _qkv()
    before = attention(q, k, v, LAYOUT)
    after = attention(q, k.at[:, :, 4].add(9.0), v.at[:, :, 4].add(9.0), LAYOUT)
    moved = np.flatnonzero(np.abs(np.asarray(after - before)).max(axis=(0, 1, 3)))
    assert list(moved) == [4, 5, 6]


def test_softmax_is_float32_and_the_result_has_the_dtype_of_the_query():
    q, k, v = _qkv(dtype=jnp.bfloat16)
    out = attention(q, k, v, LAYOUT)
    assert out.dtype == jnp.bfloat16
    exact = attention(*(x.astype(jnp.float32) for x in (q, k, v)), LAYOUT)
    np.testing.assert_allclose(out.astype(jnp.float32), exact, atol=0.03)


def test_a_query_that_sees_nothing_is_finite():
    q, k, v = _qkv()
    out = masked_attention(q, k, v, jnp.zeros((1, len(PATHS), len(PATHS)), bool), 0.0, 1.0)
    assert bool(jnp.isfinite(out).all())


def test_unknown_implementation():
    q, k, v = _qkv()
    with pytest.raises(ConfigError, match="dense"):
        attention(q, k, v, LAYOUT, implementation="flash9")


class _MeshOf:
    """What `attention` asks of a mesh before it traces anything."""

    def __init__(self, platform, **shape):
        self.shape, self.size = shape, int(np.prod([*shape.values()]))
        self.devices = np.array([types.SimpleNamespace(platform=platform)])


@pytest.mark.parametrize(
    ("platform", "rows", "tokens", "head_dim", "shape", "expected"),
    [
        ("cpu", 1, 512, 64, {}, "blockwise"),
        ("tpu", 1, 512, 64, {}, "pallas_tpu"),
        ("gpu", 1, 512, 128, {}, "pallas_gpu"),
        ("tpu", 4, 512, 128, {"data": 2, "fsdp": 2, "tensor": 2}, "pallas_tpu"),
        ("tpu", 2, 512, 128, {"data": 2, "fsdp": 2, "tensor": 1}, "blockwise"),  # rows do not divide
        ("tpu", 4, 512, 128, {"tensor": 4}, "blockwise"),  # key heads do not divide
        ("gpu", 1, 512, 96, {}, "blockwise"),
        ("tpu", 1, 256, 64, {}, "dense"),
        ("tpu", 1, 500, 64, {}, "dense"),
    ],
)
def test_auto_follows_the_platform_of_the_mesh(monkeypatch, platform, rows, tokens, head_dim, shape, expected):
    ran = []
    monkeypatch.setattr(dispatch, "flash_attention", lambda q, k, v, layout, plan: ran.append(plan) or q)
    q, kv = (jnp.zeros((rows, heads, tokens, head_dim)) for heads in (4, 2))
    index = jnp.zeros((rows, tokens), jnp.int32)
    mesh = _MeshOf(platform, **({"data": 1, "fsdp": 1, "tensor": 1} | shape))
    attention(q, kv, kv, TreeLayout(index, index), mesh=mesh)
    assert [plan.kernel for plan in ran] == ([] if expected == "dense" else [expected])
    assert all((plan.mesh is mesh) == (mesh.size > 1 and expected != "blockwise") for plan in ran)


def test_a_kernel_asked_for_by_name_says_what_it_needs():
    q, k, v = _qkv()
    with pytest.raises(ConfigError, match=r"multiple of 128 tokens, not 9.*choose 'auto'"):
        attention(q, k, v, LAYOUT, implementation="pallas_tpu")


def test_the_mesh_axes_of_rows_and_heads_are_those_of_the_rules():
    assert flash.BATCH_AXES == rules.BATCH_AXES
    assert rules.spec_for(("heads",))[0] == rules.spec_for(("kv_heads",))[0] == flash.HEAD_AXIS


@pytest.mark.parametrize(("remat", "times"), [("none", 1), ("dots", 1), ("full", 2)])
def test_only_full_rematerialization_runs_attention_twice(remat, times):
    config = dataclasses.replace(preset("tiny-llama"), head_dim=64)
    index = jnp.zeros((1, 512), jnp.int32)
    compute = ComputeOptions(remat=remat, mesh=_MeshOf("tpu", data=1, fsdp=1, tensor=1))

    def loss(params):
        return hidden_states(params, config, index, index, index, compute).sum()

    # a recomputed kernel whose result has no name is dead code, which XLA removes
    assert str(jax.make_jaxpr(jax.grad(loss))(abstract_params(config))).count("name=attention_out") == times


@pytest.mark.parametrize("remat", ["full", "dots"])
def test_blocks_split_over_a_mesh_equal_dense_in_a_model(remat):
    config = dataclasses.replace(preset("tiny-llama"), windows=(0, 100), num_layers=2)
    params = init_params(config, 0)
    q, _, _, layout = random_inputs(8, 256 * 2, batch=4)
    token_ids = jnp.arange(q.shape[0] * q.shape[2], dtype=jnp.int32).reshape(q.shape[0], -1) % config.vocab_size
    mesh = jax.make_mesh((1, 2, 2), ("data", "fsdp", "tensor"), (jax.sharding.AxisType.Auto,) * 3)

    def grads(**options):
        def loss(params):
            return jnp.square(hidden_states(params, config, token_ids, *layout[:2], ComputeOptions(**options))).mean()

        return jax.jit(jax.grad(loss))(params)

    chex.assert_trees_all_close(grads(remat=remat, mesh=mesh), grads(attention="dense"), atol=1e-4)
