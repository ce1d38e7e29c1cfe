"""Adapters against PEFT: logits, gradients, and files that each side reads of the other."""

from __future__ import annotations

import jax
import numpy as np
import peft
import pytest
import torch
import transformers

from empathax.config.lora import TARGETS, LoraSpec
from empathax.models.architecture.hf_config import to_hf_config
from empathax.models.architecture.presets import preset
from empathax.models.lora import adapters as lora
from empathax.models.lora.files import read_adapter, write_adapter
from empathax.models.transformer import abstract_params, logits
from empathax.models.weights.names import hf_naming, stored_parameters
from tests.parity.random_weights import randomized

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing. is deprecated:FutureWarning")  # PEFT 0.21

KINDS = {
    "lora": {"r": 4, "lora_alpha": 8, "target_modules": "all-linear"},
    "rslora": {"r": 4, "lora_alpha": 8, "use_rslora": True, "target_modules": ["q_proj", "v_proj"]},
    "dora": {"r": 4, "lora_alpha": 8, "use_dora": True, "target_modules": ["q_proj", "o_proj", "up_proj", "down_proj"]},
    "patterns": {
        "r": 4, "lora_alpha": 8, "target_modules": ["k_proj", "gate_proj"],
        "rank_pattern": {"layers.1.mlp.gate_proj": 2}, "alpha_pattern": {"k_proj": 3},
    },
}  # fmt: skip
# gemma3 norms after the blocks too, qwen2 has biases on query, key and value
CASES = [*(("llama", kind) for kind in KINDS), ("gemma3", "lora"), ("qwen2", "dora")]
IDS = np.random.default_rng(0).integers(3, 200, (2, 14))
WEIGHTS = np.random.default_rng(1).normal(size=(2, 14, 1)).astype(np.float32)


def _torch_model(family):
    """A fresh model with weights of seed 0, ours and torch's."""
    config = preset(f"tiny-{family}")
    hf_config = transformers.AutoConfig.for_model(**to_hf_config(config))
    model = randomized(transformers.AutoModelForCausalLM.from_config(hf_config, attn_implementation="eager"))
    weights = {name: weight.detach().numpy() for name, weight in model.named_parameters()}
    params = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), abstract_params(config))
    for stored in stored_parameters(config, hf_naming(set(weights))):
        node = params
        for key in stored.path[:-1]:
            node = node[key]
        values = [weights[name].T if stored.transposed else weights[name] for name in stored.names]
        node[stored.path[-1]] = np.stack(values) if stored.stacked else values[0]
    return config, params, model


def _with_adapter(model, settings):
    adapted = peft.get_peft_model(model, peft.LoraConfig(task_type="CAUSAL_LM", **settings)).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, weight in adapted.named_parameters():
            if "lora_" in name:
                weight.add_(0.1 * torch.randn(weight.shape, generator=generator))
    return adapted


def _torch_logits(model):
    return model(torch.from_numpy(IDS)).logits


def _our_logits(params, config):
    return logits(params, config, IDS.astype(np.int32), np.broadcast_to(np.arange(14), (2, 14)), np.full((2, 14), 14))


def _relative(got, wanted):
    return np.linalg.norm(got - wanted) / np.linalg.norm(wanted)


@pytest.mark.parametrize(("family", "kind"), CASES)
def test_logits_and_gradients_of_an_adapter_that_peft_wrote(tmp_path, family, kind):
    config, params, model = _torch_model(family)
    plain = _torch_logits(model).detach().numpy()
    adapted = _with_adapter(model, KINDS[kind])
    adapted.save_pretrained(tmp_path)
    adapter = read_adapter(tmp_path, config)

    wanted = _torch_logits(adapted)
    (torch.log_softmax(wanted, -1)[..., :1] * torch.from_numpy(WEIGHTS)).sum().backward()

    def loss(tree):
        found = _our_logits(lora.overlay(params, tree, adapter.spec), config)
        return (jax.nn.log_softmax(found)[..., :1] * WEIGHTS).sum(), found

    grads, found = jax.jit(jax.grad(loss, has_aux=True))(adapter.tree)
    wanted = wanted.detach().numpy()
    assert np.abs(wanted - plain).max() > 0.05
    np.testing.assert_allclose(found, wanted, atol=1e-4)
    merged = _our_logits(lora.merged(lora.overlay(params, adapter.tree, adapter.spec)), config)
    np.testing.assert_allclose(merged, wanted, atol=1e-4)
    errors = dict(_gradient_errors(grads["layers"], adapted, adapter.spec))
    assert len(errors) == sum("lora_" in name for name, _ in adapted.named_parameters())
    print(f"logits {np.abs(found - wanted).max():.1e}, gradients <= {max(errors.values()):.1e}")
    assert max(errors.values()) < 1e-4, max(errors, key=errors.get)


def _gradient_errors(grads, adapted, spec):
    """(name, relative error) of the gradient of each of PEFT's parameters."""
    parts = {"lora_A": "lora_a", "lora_B": "lora_b", "lora_magnitude_vector": "lora_magnitude"}
    for name, weight in adapted.named_parameters():
        if "lora_" not in name:
            continue
        words = name.split(".")
        layer, part = int(words[words.index("layers") + 1]), parts[words[-3]]
        block, product = TARGETS[words[-4]]
        ours = np.asarray(grads[block][product][part][layer]).T
        wanted = weight.grad.numpy()
        yield name, _relative(ours[tuple(slice(size) for size in wanted.shape)], wanted)


@pytest.mark.parametrize("spec", [
    LoraSpec(4, 6.0, rslora=True), LoraSpec(3, 6.0, dora=True, targets=("q_proj", "down_proj")),
    LoraSpec(4, 8.0, targets=("k_proj", "up_proj"), rank_pattern={"layers.0.mlp.up_proj": 2}),
])  # fmt: skip
def test_peft_loads_what_is_written_here(tmp_path, spec):
    config, params, model = _torch_model("llama")
    rng = np.random.default_rng(0)
    shapes = lora.abstract_adapter(abstract_params(config), spec)
    tree = jax.tree.map(lambda leaf: 0.1 * rng.normal(size=leaf.shape).astype(np.float32), shapes)
    write_adapter(tmp_path, lora.Adapter(tree, spec), "random:tiny-llama")
    written = read_adapter(tmp_path, config)  # without the columns beyond a layer's rank
    wanted = _our_logits(lora.overlay(params, written.tree, spec), config)
    loaded = peft.PeftModel.from_pretrained(model, tmp_path).eval()
    found = _torch_logits(loaded).detach().numpy()
    assert np.abs(found - np.asarray(_our_logits(params, config))).max() > 0.05
    np.testing.assert_allclose(found, wanted, atol=1e-4)
