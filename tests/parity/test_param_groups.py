"""Groups of parameters against torch and transformers: layer-wise rates, what decays, running means."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from torch.optim.swa_utils import get_ema_avg_fn

from empathax.config import StageOptions
from empathax.models.architecture.presets import preset
from empathax.models.transformer import abstract_params
from empathax.training.optimizer import decay_mask, make_optimizer
from empathax.training.step import _moved_mean

LAYERS, DECAY, RATE = 4, 0.65, 0.02


def test_layer_wise_adamw_equals_torch_with_a_group_a_layer():
    rng = np.random.default_rng(0)
    shapes = {"embedding/kernel": (6, 3), "layers/kernel": (LAYERS, 3, 3), "layers/norm": (LAYERS, 3), "final": (3,)}
    start, *grads = (
        {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()} for _ in "abcd"
    )
    tree = lambda x: {  # noqa: E731
        "embedding": {"kernel": x["embedding/kernel"]},
        "layers": {"kernel": x["layers/kernel"], "norm": {"scale": x["layers/norm"]}},
        "final_norm": {"scale": x["final"]},
    }
    options = StageOptions(learning_rate=RATE, b2=0.95, weight_decay=0.1, layerwise_decay=DECAY)
    tx, _ = make_optimizer(options, 4)
    params = jax.tree.map(jnp.asarray, tree(start))
    state = tx.init(params)
    for grad in grads:
        directions, state = tx.update(jax.tree.map(jnp.asarray, tree(grad)), state, params)
        params = jax.tree.map(lambda p, d: p - RATE * d, params, directions)
    groups, weights = [], {}
    for name, value in start.items():
        for layer in range(LAYERS) if name.startswith("layers") else [None]:
            weight = torch.nn.Parameter(torch.from_numpy(value if layer is None else value[layer]).clone())
            depth = LAYERS if name.startswith("embedding") else 0 if layer is None else LAYERS - 1 - layer
            decays = name.endswith("kernel")
            groups.append({"params": [weight], "lr": RATE * DECAY**depth, "weight_decay": 0.1 if decays else 0.0})
            weights[name, layer] = weight
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.95), eps=1e-8)
    for grad in grads:
        for (name, layer), weight in weights.items():
            weight.grad = torch.from_numpy(grad[name] if layer is None else grad[name][layer]).clone()
        optimizer.step()
    wanted = {
        name: np.stack([weight.detach().numpy() for (own, _), weight in weights.items() if own == name])
        for name in start
    }
    for got, value in zip(jax.tree.leaves(params), jax.tree.leaves(tree(wanted)), strict=True):
        np.testing.assert_allclose(got, value.reshape(got.shape), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma2"])
def test_as_many_parameters_decay_as_in_the_trainer(family):
    config = preset(f"tiny-{family}")
    theirs = {"llama": "Llama", "qwen2": "Qwen2", "gemma2": "Gemma2"}[family]
    model = getattr(transformers, f"{theirs}ForCausalLM")(
        getattr(transformers, f"{theirs}Config")(
            vocab_size=config.vocab_size,
            hidden_size=config.model_dim,
            intermediate_size=config.ff_dim,
            num_hidden_layers=config.num_layers,
            num_attention_heads=config.num_heads,
            num_key_value_heads=config.num_kv_heads,
            head_dim=config.head_dim,
            tie_word_embeddings=config.tied_embeddings,
        )
    )
    names = set(transformers.Trainer.get_decay_parameter_names(None, model))
    wanted = sum(parameter.numel() for name, parameter in model.named_parameters() if name in names)
    params = abstract_params(config)
    mask = decay_mask(params, StageOptions().no_decay)
    sizes = jax.tree.map(lambda leaf, decays: leaf.size if decays else 0, params, mask)
    assert sum(jax.tree.leaves(sizes)) == wanted
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == sum(p.numel() for p in model.parameters())


def test_a_running_mean_equals_torch():
    rng = np.random.default_rng(0)
    mean, theirs = jnp.ones(5), torch.ones(5)
    average = get_ema_avg_fn(0.97)
    for count in range(1, 20):
        value = rng.normal(size=5).astype(np.float32)
        mean = _moved_mean(mean, jnp.asarray(value), 0.97)
        theirs = average(theirs, torch.from_numpy(value), count)
    np.testing.assert_allclose(mean, theirs.numpy(), rtol=1e-6)
