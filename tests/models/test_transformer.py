"""The decoder: its parameter tree, trees against their paths, remat, dtypes."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from empathax.config.mesh import LOGICAL_AXES
from empathax.config.options import REMAT_POLICIES
from empathax.errors import ConfigError
from empathax.models.architecture.presets import PRESETS, preset
from empathax.models.layers import embed
from empathax.models.rope import RopeConfig
from empathax.models.transformer import (
    ComputeOptions,
    Transformer,
    abstract_params,
    hidden_states,
    init_params,
    logical_axes,
    logits,
    output_projection,
)

NUM_TOKENS = 20
_FORWARD = jax.jit(logits, static_argnums=1)


@functools.cache
def _random_params(config):
    """Every leaf random, norms and biases included."""
    leaves, treedef = jax.tree.flatten(init_params(config, 0))
    rng = np.random.default_rng(0)
    return treedef.unflatten([leaf + 0.2 * rng.standard_normal(leaf.shape).astype(np.float32) for leaf in leaves])


def _forest(rng, num_tokens, branching):
    """(parent, depth, subtree_end) of a random forest in depth-first preorder; parent -1 is a root."""
    parent = np.full(num_tokens, -1)
    depth, end = np.zeros(num_tokens, int), np.arange(1, num_tokens + 1)
    for token in range(1, num_tokens):
        parent[token] = token - 1
        while parent[token] >= 0 and rng.random() < branching:
            parent[token] = parent[parent[token]]
        depth[token] = depth[parent[token]] + 1 if parent[token] >= 0 else 0
    for token in reversed(range(num_tokens)):
        if parent[token] >= 0:
            end[parent[token]] = max(end[parent[token]], end[token])
    return parent, depth, end


def _path(parent, token):
    return [*_path(parent, parent[token]), token] if token >= 0 else []


def _chain(token_ids):
    """A row without branches, padded at its end."""
    ids = np.zeros((1, NUM_TOKENS), int)
    ids[0, : len(token_ids)] = token_ids
    return ids, np.arange(NUM_TOKENS)[None], np.full((1, NUM_TOKENS), len(token_ids))


@pytest.mark.parametrize("name", PRESETS)
@settings(max_examples=4, deadline=None)
@given(seed=st.integers(0, 10**6), branching=st.floats(0.05, 0.6))
def test_a_forest_equals_its_paths_one_by_one(name, seed, branching):
    config, rng = preset(name), np.random.default_rng(seed)
    params = _random_params(config)
    parent, depth, end = _forest(rng, NUM_TOKENS, branching)
    token_ids = rng.integers(0, config.vocab_size, NUM_TOKENS)
    packed = _FORWARD(params, config, token_ids[None], depth[None], end[None])[0]
    for leaf in set(range(NUM_TOKENS)) - set(parent):
        path = _path(parent, leaf)
        alone = _FORWARD(params, config, *_chain(token_ids[path]))[0, : len(path)]
        np.testing.assert_allclose(packed[np.array(path)], alone, atol=1e-4)


@pytest.mark.parametrize("name", PRESETS)
def test_windows_matter_where_they_should(name):
    config = preset(name)
    open_config = dataclasses.replace(config, windows=(0,) * config.num_layers, local_rope=None)
    params, inputs = _random_params(config), _chain(np.arange(NUM_TOKENS))
    moved = np.abs(np.asarray(_FORWARD(params, config, *inputs) - _FORWARD(params, open_config, *inputs)))
    moved = moved[0].max(axis=-1) > 1e-4
    assert moved[-1] == (config.sliding_window > 0)
    if config.local_rope is None:  # before the window is full nothing is hidden
        assert not moved[: config.sliding_window].any()


@pytest.mark.parametrize("name", PRESETS)
def test_one_declaration_gives_shapes_axes_and_values(name):
    config = preset(name)
    abstract, axes, params = abstract_params(config, jnp.bfloat16), logical_axes(config), init_params(config, 0)
    is_axes = lambda leaf: isinstance(leaf, tuple)  # noqa: E731
    assert jax.tree.structure(abstract) == jax.tree.structure(axes, is_leaf=is_axes) == jax.tree.structure(params)
    for shape, names, value in zip(
        jax.tree.leaves(abstract), jax.tree.leaves(axes, is_leaf=is_axes), jax.tree.leaves(params), strict=True
    ):
        assert shape.shape == value.shape
        assert shape.dtype == jnp.bfloat16
        assert len(names) == len(shape.shape)
        assert set(names) <= set(LOGICAL_AXES)


def test_parameters_are_created_in_their_shardings():
    config = preset("tiny-llama")
    mesh = Mesh(np.array(jax.devices()[:2]), ("fsdp",))
    spread = NamedSharding(mesh, PartitionSpec(None, "fsdp"))
    shardings = jax.tree.map(lambda leaf: NamedSharding(mesh, PartitionSpec()), abstract_params(config))
    shardings["layers"]["mlp"]["gate"]["kernel"] = spread
    params = init_params(config, 3, jnp.float32, shardings)
    assert params["layers"]["mlp"]["gate"]["kernel"].sharding == spread
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(params), jax.device_get(init_params(config, 3)))


def test_initial_values():
    llama, gemma = init_params(preset("tiny-llama"), 0), init_params(preset("tiny-gemma2"), 0)
    assert float(llama["embedding"]["kernel"].std()) == pytest.approx(0.08, rel=0.05)
    assert np.all(llama["final_norm"]["scale"] == 1)
    assert np.all(gemma["layers"]["post_mlp_norm"]["scale"] == 0)  # multiplies by 1 + scale
    assert np.all(init_params(preset("tiny-qwen2"), 0)["layers"]["attention"]["query"]["bias"] == 0)


def test_the_module_computes_what_the_functions_compute():
    config = preset("tiny-gemma3")
    model = Transformer(config, rngs=nnx.Rngs(0))
    inputs = [jnp.asarray(part) for part in _chain(np.arange(NUM_TOKENS))]
    params = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    by_module = jax.jit(lambda *inputs: model(*inputs))(*inputs)
    np.testing.assert_allclose(by_module, _FORWARD(params, config, *inputs), atol=1e-5)


def test_remat_changes_no_value_and_no_gradient():
    config = preset("tiny-llama")
    params, inputs = _random_params(config), _chain(np.arange(NUM_TOKENS))

    def loss(params, remat):
        return (hidden_states(params, config, *inputs, ComputeOptions(remat=remat)) ** 2).sum()

    run = jax.jit(jax.value_and_grad(loss), static_argnums=1)
    plain = run(params, "none")
    for remat in REMAT_POLICIES[1:]:
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), run(params, remat), plain)
    with pytest.raises(ConfigError, match="dots"):
        hidden_states(params, config, *inputs, ComputeOptions(remat="some"))


def test_output_projection_is_the_embedding_only_if_tied():
    tied, untied = preset("tiny-llama"), preset("tiny-mistral")
    params = init_params(tied, 0)
    assert output_projection(params, tied) is params["embedding"]["kernel"]
    params = init_params(untied, 0)
    assert output_projection(params, untied) is params["output"]["kernel"]


def test_final_softcap_bounds_the_logits():
    config = dataclasses.replace(preset("tiny-gemma2"), final_softcap=0.5)
    out = _FORWARD(_random_params(config), config, *_chain(np.arange(NUM_TOKENS)))
    assert 0.3 < float(jnp.abs(out).max()) <= 0.5


def test_embedding_scale_is_rounded_to_the_compute_dtype():
    config = dataclasses.replace(preset("tiny-gemma"), model_dim=48, embedding_scale=48**0.5)
    params = {"embedding": {"kernel": jnp.ones((512, 48))}}
    assert float(embed(params, config, jnp.array([3]), jnp.bfloat16)[0, 0]) == 6.9375  # sqrt(48) = 6.9282
    assert float(embed(params, config, jnp.array([3]), jnp.float32)[0, 0]) == pytest.approx(48**0.5, rel=1e-6)


def test_an_id_outside_the_vocabulary_is_nan_not_another_token():
    config = preset("tiny-llama")
    params = init_params(config, 0)
    assert bool(jnp.isfinite(embed(params, config, jnp.array([config.vocab_size - 1]), jnp.float32)).all())
    assert bool(jnp.isnan(embed(params, config, jnp.array([config.vocab_size]), jnp.float32)).all())


def test_bfloat16_compute_stays_near_float32():
    config = preset("tiny-gemma3")
    params, inputs = init_params(config, 0), _chain(np.arange(NUM_TOKENS))
    run = jax.jit(hidden_states, static_argnums=1, static_argnames="compute")
    narrow = run(params, config, *inputs, compute=ComputeOptions(jnp.bfloat16))
    wide = run(params, config, *inputs)
    assert narrow.dtype == jnp.bfloat16
    assert float(jnp.abs(narrow.astype(jnp.float32) - wide).mean()) < 0.05


def test_local_rope_turns_only_the_layers_with_a_window():
    config = preset("tiny-gemma3")
    params, inputs = _random_params(config), _chain(np.arange(NUM_TOKENS))
    all_full = dataclasses.replace(config, windows=(0,) * 6)
    other_local = dataclasses.replace(all_full, local_rope=RopeConfig(theta=77.0))
    np.testing.assert_allclose(_FORWARD(params, all_full, *inputs), _FORWARD(params, other_local, *inputs), atol=1e-5)
    far_window = dataclasses.replace(config, windows=(1000,) * 5 + (0,))
    moved = _FORWARD(params, far_window, *inputs) - _FORWARD(
        params, dataclasses.replace(far_window, local_rope=RopeConfig(theta=77.0)), *inputs
    )
    assert float(jnp.abs(moved).max()) > 1e-2


def test_a_random_model_is_the_same_in_every_dtype():
    exact, rounded = (init_params(preset("tiny-llama"), 3, dtype) for dtype in (jnp.float32, jnp.bfloat16))
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a.astype(jnp.bfloat16), b), exact, rounded)
