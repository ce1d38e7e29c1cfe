"""Adapters: what they add, what they leave alone, and their gradients against those of the kernels they stand for."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from empathax.config import MeshOptions
from empathax.config.lora import PRESETS, TARGETS, LoraSpec
from empathax.errors import ConfigError
from empathax.evaluation.generation.prompt_tree import lay_out_prompts, prefill_tree
from empathax.models.architecture.presets import preset
from empathax.models.kv_cache import decode_step, split_layers
from empathax.models.lora.adapters import (
    Adapter,
    abstract_adapter,
    adapters_of,
    check_rank,
    init_adapter,
    merged,
    overlay,
    with_adapters,
    without_adapters,
)
from empathax.models.lora.low_rank import add_adapters, direction_norms
from empathax.models.transformer import abstract_params, init_params, logical_axes, logits, placed
from empathax.parallel.mesh import make_mesh
from empathax.parallel.rules import param_shardings

MODEL = preset("tiny-llama")
IDS = np.random.default_rng(0).integers(3, MODEL.vocab_size, (2, 12)).astype(np.int32)
ROWS = (IDS, np.broadcast_to(np.arange(12), (2, 12)), np.full((2, 12), 12))
SPECS = {
    "lora": LoraSpec(4, 8.0),
    "rslora": LoraSpec(4, 8.0, rslora=True, targets=PRESETS["attention"]),
    "dora": LoraSpec(3, 6.0, dora=True),
    "patterns": LoraSpec(4, 8.0, rank_pattern={"layers.1.mlp.down_proj": 2}, alpha_pattern={"q_proj": 2.0}),
}


@jax.jit
def _logits(params):
    return logits(params, MODEL, *ROWS)


@pytest.fixture(scope="module")
def base():
    return init_params(MODEL, 0)


def _trained(base, spec, seed=1):
    """An adapter in which nothing is zero, but for the columns that a layer's rank leaves out."""
    adapter = init_adapter(base, spec, seed)
    rng = np.random.default_rng(seed)
    noise = lambda leaf: leaf + 0.05 * rng.normal(size=leaf.shape).astype(np.float32)  # noqa: E731
    return jax.tree.map(noise, adapter) if not spec.rank_pattern else _noisy_b(adapter, rng)


def _noisy_b(adapter, rng):
    def add(path, leaf):
        noise = 0.05 * rng.normal(size=leaf.shape).astype(np.float32)
        return leaf + noise if path[-1].key == "lora_b" else leaf

    return jax.tree_util.tree_map_with_path(add, adapter)


def _bytes(tree):
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(tree)]


def _dense(kernel, adapter, scale):
    """The kernel that one layer's adapter makes of it, by the papers' formulas, in float64."""
    kernel, a, b = (np.asarray(x, np.float64) for x in (kernel, adapter["lora_a"], adapter["lora_b"]))
    whole = kernel + scale * a @ b
    if "lora_magnitude" in adapter:
        whole = whole / np.linalg.norm(whole, axis=0) * np.asarray(adapter["lora_magnitude"], np.float64)
    return whole


@pytest.mark.parametrize("kind", SPECS)
def test_adapted_products_are_those_of_the_kernels_they_stand_for(base, kind):
    spec = SPECS[kind]
    adapter = _trained(base, spec)
    params = overlay(base, adapter, spec)
    kernels = jax.tree.map(np.array, base)
    for target in spec.targets:
        block, name = TARGETS[target]
        for layer in range(MODEL.num_layers):
            module = f"model.layers.{layer}.{'mlp' if block == 'mlp' else 'self_attn'}.{target}"
            own = jax.tree.map(lambda leaf, layer=layer: leaf[layer], adapter["layers"][block][name])
            stack = kernels["layers"][block][name]["kernel"]
            stack[layer] = _dense(stack[layer], own, spec.scale_of(module))
    wanted = _logits(kernels)
    assert np.abs(wanted - _logits(base)).max() > 0.05
    np.testing.assert_allclose(_logits(params), wanted, atol=2e-5)
    jax.tree.map(lambda got, leaf: np.testing.assert_allclose(got, leaf, atol=1e-6), merged(params), kernels)


@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_a_new_adapter_changes_nothing_and_taken_off_leaves_every_bit(base, kind):
    fresh = overlay(base, init_adapter(base, SPECS[kind], 0), SPECS[kind])
    np.testing.assert_allclose(_logits(fresh), _logits(base), atol=1e-5)
    params = overlay(base, _trained(base, SPECS[kind]), SPECS[kind])
    off = without_adapters(params)
    assert _bytes(_logits(off)) == _bytes(_logits(base))
    (again,) = adapters_of(params)
    assert _bytes(again) == _bytes(_trained(base, SPECS[kind]))


def test_several_adapters_add_up(base):
    first, second = _trained(base, SPECS["lora"]), _trained(base, SPECS["rslora"], seed=2)
    both = overlay(overlay(base, first, SPECS["lora"]), second, SPECS["rslora"])
    one_by_one = with_adapters(
        jax.tree.map(jnp.copy, base), [Adapter(first, SPECS["lora"]), Adapter(second, SPECS["rslora"])]
    )
    np.testing.assert_allclose(_logits(both), _logits(one_by_one), atol=1e-5)
    assert [jax.tree.structure(tree) for tree in adapters_of(both)] == [
        jax.tree.structure(first), jax.tree.structure(second),
    ]  # fmt: skip


def test_gradients_are_the_chain_rule_over_the_kernels(base):
    spec = SPECS["lora"]
    adapter = _trained(base, spec)
    target = np.random.default_rng(1).normal(size=(2, 12, MODEL.vocab_size)).astype(np.float32)
    loss = lambda params: (_logits(params) * target).sum()  # noqa: E731
    found = jax.grad(lambda adapter: loss(overlay(base, adapter, spec)))(adapter)
    of_kernels = jax.grad(loss)(merged(overlay(base, adapter, spec)))
    for block, name in TARGETS.values():
        grad, own = (np.asarray(of_kernels["layers"][block][name]["kernel"]), adapter["layers"][block][name])
        wanted = {
            "lora_a": 2.0 * grad @ np.swapaxes(own["lora_b"], 1, 2),
            "lora_b": 2.0 * np.swapaxes(own["lora_a"], 1, 2) @ grad,
        }
        for factor, value in wanted.items():
            got = found["layers"][block][name][factor]
            assert np.linalg.norm(got - value) < 1e-4 * np.linalg.norm(value), (name, factor)


def test_norms_of_directions_are_those_of_the_sum():
    rng = np.random.default_rng(0)
    kernel, a, b = (rng.normal(size=size).astype(np.float32) for size in ((2, 9, 5), (2, 9, 3), (2, 3, 5)))
    wanted = np.linalg.norm(kernel + np.array([0.5, 2.0])[:, None, None] * (a @ b), axis=1)
    found = direction_norms(*map(jnp.asarray, (kernel, a, b, np.float32([0.5, 2.0]))))
    np.testing.assert_allclose(found, wanted, rtol=1e-5)


def test_dropout_is_new_with_each_key_and_gone_without_one(base):
    spec = SPECS["dora"]
    adapter = _trained(base, spec)

    def with_key(seed, rate):
        return np.asarray(_logits(overlay(base, adapter, spec, (jax.random.key(seed), rate))))

    plain = np.asarray(_logits(overlay(base, adapter, spec)))
    assert np.array_equal(with_key(0, 0.0), plain)
    assert np.array_equal(with_key(0, 0.5), with_key(0, 0.5))
    assert np.abs(with_key(0, 0.5) - with_key(1, 0.5)).max() > 1e-3


def test_dropout_leaves_the_mean_where_it_is():
    rng = np.random.default_rng(0)
    x, kernel, a, b = (rng.normal(size=size).astype(np.float32) for size in ((3, 8), (8, 5), (8, 2), (2, 5)))
    adapter = {"lora_a": a, "lora_b": b, "scale": np.float32(0.5), "lora_magnitude": np.linalg.norm(kernel, axis=0)}

    def adapted(**dropout):
        return add_adapters(x @ kernel, {"kernel": kernel, "lora": ({**adapter, **dropout},)}, x)

    keys = jax.random.split(jax.random.key(0), 4000)
    found = jax.jit(jax.vmap(lambda key: adapted(dropout_key=key, dropout_rate=jnp.float32(0.25))))(keys)
    error = found.std(axis=0) / np.sqrt(len(keys))
    assert np.abs((found.mean(axis=0) - adapted()) / error).max() < 4.5
    assert error.min() > 0.0


def test_decoding_with_adapters(base):
    params = overlay(base, _trained(base, SPECS["dora"]), SPECS["dora"])
    wanted = _logits(params)[:, -1]
    _, cache = jax.jit(prefill_tree, static_argnums=(1, 3))(params, MODEL, lay_out_prompts(IDS[:, :-1]), 1)
    hidden_BD, _ = jax.jit(decode_step, static_argnums=1)(
        split_layers(params, MODEL, jnp.float32, "cpu"), MODEL, IDS[:, -1], cache
    )
    kernel_VD = base["embedding" if MODEL.tied_embeddings else "output"]["kernel"]
    np.testing.assert_allclose(hidden_BD @ kernel_VD.T, wanted, atol=1e-4)


def test_factors_lie_as_the_kernels_do():
    mesh = make_mesh(MeshOptions(2, 2, 2))
    shapes = abstract_params(MODEL)
    shardings = param_shardings(mesh, shapes, logical_axes(MODEL))
    adapter = abstract_adapter(placed(shapes, shardings), SPECS["dora"])["layers"]
    spec = lambda leaf: leaf.sharding.spec  # noqa: E731
    query, down = adapter["attention"]["query"], adapter["mlp"]["down"]
    assert spec(query["lora_a"]) == PartitionSpec(None, "fsdp", None)
    assert spec(query["lora_b"]) == PartitionSpec(None, None, "tensor")
    assert spec(down["lora_a"]) == PartitionSpec(None, "tensor", None)
    assert spec(down["lora_magnitude"]) == PartitionSpec(None, "fsdp")


@pytest.mark.parametrize(("rank", "refused"), [(32, ()), (33, ("k_proj", "v_proj")), (10**9, tuple(TARGETS))])
def test_ranks_above_what_a_kernel_can_have(rank, refused):
    """tiny-llama: 64 wide, 32 of keys and values, 128 of the MLP."""
    base, spec = abstract_params(preset("tiny-llama")), LoraSpec(rank, 1.0)
    if not refused:
        check_rank(base, spec)
        return
    with pytest.raises(ConfigError) as caught:
        check_rank(base, spec)
    assert [target for target in TARGETS if f"kernel of {target} is" in str(caught.value)] == list(refused)
