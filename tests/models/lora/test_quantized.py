"""Frozen kernels in 4 and 8 bits against the published definition, written down here in NumPy."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from empathax.config import Config, LoraOptions, MeshOptions, ModelOptions
from empathax.config.lora import LoraSpec
from empathax.models.architecture.presets import preset
from empathax.models.lora import files
from empathax.models.lora.adapters import abstract_adapter, init_adapter
from empathax.models.lora.quantized import (
    abstract_quantized,
    dequantize,
    product,
    quantize,
    quantized_parameter,
    rounded_parameter,
)
from empathax.models.transformer import abstract_params, logits
from empathax.models.weights.source import resolve_model
from empathax.models.weights.steps import Step
from empathax.parallel.mesh import make_mesh
from empathax.training.optimizer import make_optimizer
from empathax.training.state import init_state
from empathax.training.step import make_train_step
from tests.training.tiny_rows import dialogue_batch, with_steps

MODEL = preset("tiny-llama")
# QLoRA, appendix E
PUBLISHED = """
-1.0 -0.6961928009986877 -0.5250730514526367 -0.39491748809814453 -0.28444138169288635 -0.18477343022823334
-0.09105003625154495 0.0 0.07958029955625534 0.16093020141124725 0.24611230194568634 0.33791524171829224
0.44070982933044434 0.5626170039176941 0.7229568362236023 1.0"""
NF4 = np.array([float(value) for value in PUBLISHED.split()], np.float32)


def _reference(kernel_IO, kind):
    """bitsandbytes' way: the weight as [out, in] in one line, cut into runs of 64; the nearest value of each."""
    line = np.ascontiguousarray(kernel_IO.T).reshape(-1, 64)
    absmax = np.abs(line).max(axis=1, keepdims=True)
    scaled = line / np.where(absmax > 0, absmax, 1)
    nearest = NF4[np.abs(scaled[..., None] - NF4).argmin(-1)]
    values = nearest if kind == "nf4" else np.round(127 * scaled) / 127
    return (values * absmax).reshape(kernel_IO.shape[::-1]).T


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_every_weight_is_the_nearest_value_of_its_block(kind):
    kernel = np.random.default_rng(0).normal(size=(192, 40)).astype(np.float32)
    kernel[64:128, 3] = 0.0
    codes = quantize(jnp.asarray(kernel), kind)
    np.testing.assert_allclose(dequantize(codes, 192), _reference(kernel, kind), atol=1e-6)
    num_bytes = sum(leaf.size * leaf.dtype.itemsize for leaf in codes.values())
    assert num_bytes / kernel.size == {"nf4": 0.5625, "int8": 1.0625}[kind]


def test_inputs_that_are_no_whole_block_and_stacks_of_layers():
    kernel = np.random.default_rng(0).normal(size=(2, 70, 6)).astype(np.float32)
    found = dequantize(quantize(jnp.asarray(kernel), "nf4"), 70)
    for layer in range(2):
        padded = np.pad(kernel[layer], ((0, 58), (0, 0)))
        np.testing.assert_allclose(found[layer], _reference(padded, "nf4")[:70], atol=1e-6)


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_products_and_gradients_are_those_of_the_rounded_kernel(kind):
    rng = np.random.default_rng(0)
    x, kernel = rng.normal(size=(5, 70)).astype(np.float32), rng.normal(size=(70, 6)).astype(np.float32)
    codes = quantize(jnp.asarray(kernel), kind)
    dense = dequantize(codes, 70)
    np.testing.assert_allclose(product(codes, x), x @ dense, rtol=1e-5, atol=1e-5)
    grad = jax.grad(lambda x: jnp.sin(product(codes, x)).sum())(x)
    np.testing.assert_allclose(grad, jax.grad(lambda x: jnp.sin(x @ dense).sum())(x), rtol=1e-4, atol=1e-5)


def _quantized(kind):
    return resolve_model("random:tiny-llama").load_params(finish=lambda *args: quantized_parameter(kind, *args))


def test_a_model_on_codes_is_the_model_on_rounded_kernels():
    rounded = resolve_model("random:tiny-llama").load_params(finish=lambda *args: rounded_parameter("nf4", *args))
    plain = resolve_model("random:tiny-llama").load_params()
    kernel = plain["layers"]["mlp"]["down"]["kernel"]
    for layer in range(MODEL.num_layers):
        wanted = _reference(np.asarray(kernel[layer]), "nf4")
        np.testing.assert_allclose(rounded["layers"]["mlp"]["down"]["kernel"][layer], wanted, atol=1e-6)
    forward = jax.jit(lambda params: logits(params, MODEL, *_rows()))
    np.testing.assert_allclose(forward(_quantized("nf4")), forward(rounded), atol=2e-5)
    assert np.abs(forward(rounded) - forward(plain)).max() > 1e-3
    shapes = jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), _quantized("nf4"))
    abstract = abstract_quantized(abstract_params(MODEL), "nf4")
    assert shapes == jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), abstract)


def _rows():
    return np.arange(3, 11)[None], np.arange(8)[None], np.full((1, 8), 8)


def test_an_adapter_is_trained_on_codes():
    config = Config(model=ModelOptions(vocab_chunk=512), lora=LoraOptions(rank=4, dora=True))
    spec, base = LoraSpec(4, 16.0, dora=True, targets=("o_proj",)), _quantized("nf4")
    tx, schedule = make_optimizer(config.sft, 10)
    step = make_train_step("sft", MODEL, config, tx, schedule, spec=spec)
    state = init_state(init_adapter(base, spec, 0, abstract_adapter(abstract_params(MODEL), spec)), tx)
    for _ in range(2):
        state, scalars = step(state, with_steps(dialogue_batch(2), 1), base=base)
    assert float(scalars["skipped"]) == 0.0
    assert float(scalars["grad_norm"]) > 0.0


def test_codes_lie_as_the_kernel_does_where_the_mesh_divides_them():
    mesh = make_mesh(MeshOptions(1, 4, 2))
    sharding = NamedSharding(mesh, PartitionSpec(None, "fsdp", "tensor"))
    kernel = jax.device_put(np.random.default_rng(0).normal(size=(2, 128, 8)).astype(np.float32), sharding)
    codes = quantized_parameter("nf4", ("layers", "mlp", "up", "kernel"), kernel)
    assert codes["codes"].sharding.spec == PartitionSpec(None, "fsdp", "tensor")
    assert codes["absmax"].sharding.spec == PartitionSpec(None, None, "tensor")  # two blocks, four devices
    wanted = quantize(jax.device_get(kernel), "nf4")
    jax.tree.map(np.testing.assert_array_equal, codes, wanted)


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_a_checkpoints_base_is_rounded_as_in_training(monkeypatch, kind):
    """In the dtype that it was trained in: float32 weights that were bfloat16 then have other codes."""
    monkeypatch.setattr(files, "checkpoint_adapters", lambda *args: [])
    base = resolve_model("random:tiny-llama")
    trained = base.load_params(jnp.bfloat16, finish=lambda *args: rounded_parameter(kind, *args))
    meta = {"lora": {"quantization": kind, "param_dtype": "bfloat16"}}
    found = files.adapted_params(base, Step(Path(), meta), jnp.float32)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b.astype(jnp.float32)), found, trained)
