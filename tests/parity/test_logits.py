"""Logits against transformers' own models (eager attention, float32) for every family and every variation.

Each case is a random tiny model: every parameter, norms and biases included, is drawn anew, so that nothing is one
or zero by accident. Positions start at 0 in one row and beyond 8,192 in the other.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import torch
import transformers

from empathax.models.transformer import logits
from empathax.models.weights.source import resolve_model
from tests.parity.random_weights import randomized

NUM_TOKENS = 24
FAR = 9000
TOLERANCE = 1e-4  # the bar; rounding of angles at position 9,000 takes a tenth of it

_SMALL = {
    "vocab_size": 128,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 16384,
    "rms_norm_eps": 1e-5,
    "pad_token_id": None,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
_YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 2048}
_GEMMA = {"head_dim": 16, "num_attention_heads": 4, "hidden_size": 48}
_GEMMA3 = _GEMMA | {"num_hidden_layers": 4, "sliding_window": 7, "sliding_window_pattern": 3}

# name -> (config class, changes to _SMALL)
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {}),
    "llama-one-kv-head": ("Llama", {"num_key_value_heads": 1}),
    "llama-no-groups": ("Llama", {"num_key_value_heads": 6}),
    "llama-tied": ("Llama", {"tie_word_embeddings": True}),
    "llama-head-dim": ("Llama", {"head_dim": 20}),
    "llama-biases": ("Llama", {"attention_bias": True, "mlp_bias": True}),
    "llama-gelu": ("Llama", {"hidden_act": "gelu"}),
    "llama-gelu-tanh": ("Llama", {"hidden_act": "gelu_pytorch_tanh"}),
    "llama-relu": ("Llama", {"hidden_act": "relu"}),
    "llama-theta": ("Llama", {"rope_theta": 500_000.0}),
    "llama-linear": ("Llama", {"rope_scaling": {"type": "linear", "factor": 4.0}}),
    "llama-dynamic": ("Llama", {"rope_scaling": {"type": "dynamic", "factor": 2.0}, "max_position_embeddings": 4096}),
    "llama-dynamic-short": ("Llama", {"rope_scaling": {"type": "dynamic", "factor": 2.0}}),
    "llama-llama3": ("Llama", {"rope_scaling": _LLAMA3, "rope_theta": 500_000.0, "head_dim": 32}),
    "llama-llama3-8192": (
        "Llama",
        {
            "rope_scaling": _LLAMA3 | {"factor": 32.0, "original_max_position_embeddings": 8192},
            "rope_theta": 500_000.0,
            "head_dim": 64,
        },
    ),
    "llama-yarn": ("Llama", {"rope_scaling": _YARN}),
    "llama-yarn-attention-factor": ("Llama", {"rope_scaling": _YARN | {"attention_factor": 0.8}}),
    "llama-yarn-mscale": ("Llama", {"rope_scaling": _YARN | {"mscale": 0.7, "mscale_all_dim": 1.3}}),
    "llama-yarn-betas": ("Llama", {"rope_scaling": _YARN | {"beta_fast": 16, "beta_slow": 2}, "head_dim": 32}),
    "llama-yarn-no-truncate": ("Llama", {"rope_scaling": _YARN | {"truncate": False}, "head_dim": 32}),
    "llama-yarn-no-factor": ("Llama", {"rope_scaling": _YARN | {"factor": None}}),
    "llama-rope-parameters": ("Llama", {"rope_parameters": _LLAMA3 | {"rope_theta": 500_000.0}}),
    "mistral": ("Mistral", {"sliding_window": 7}),
    "mistral-no-window": ("Mistral", {"sliding_window": None, "rope_theta": 1e6, "tie_word_embeddings": True}),
    "mistral-head-dim": ("Mistral", {"head_dim": 24, "sliding_window": 3}),
    "mistral-yarn": ("Mistral", {"rope_scaling": _YARN, "sliding_window": None}),
    "gemma": ("Gemma", _GEMMA),
    "gemma-legacy-gelu": ("Gemma", _GEMMA | {"hidden_act": "gelu", "num_key_value_heads": 1}),
    "gemma-untied-bias": ("Gemma", _GEMMA | {"tie_word_embeddings": False, "attention_bias": True}),
    "gemma2": ("Gemma2", _GEMMA | {"num_hidden_layers": 3, "sliding_window": 7, "query_pre_attn_scalar": 24}),
    "gemma2-caps": (
        "Gemma2",
        _GEMMA | {"sliding_window": 5, "attn_logit_softcapping": 0.5, "final_logit_softcapping": 2.0},
    ),
    "gemma2-no-caps": ("Gemma2", _GEMMA | {"attn_logit_softcapping": None, "final_logit_softcapping": None}),
    "gemma2-layer-types": (
        "Gemma2",
        _GEMMA | {"layer_types": ["full_attention", "sliding_attention"], "sliding_window": 4, "attention_bias": True},
    ),
    "gemma3": ("Gemma3Text", _GEMMA3),
    "gemma3-theta": ("Gemma3Text", _GEMMA3 | {"rope_theta": 2e5, "rope_local_base_freq": 5e3}),
    "gemma3-linear": ("Gemma3Text", _GEMMA3 | {"rope_scaling": {"rope_type": "linear", "factor": 8.0}}),
    "gemma3-layer-types": (
        "Gemma3Text",
        _GEMMA | {"layer_types": ["full_attention", "sliding_attention"], "sliding_window": 4, "attention_bias": True},
    ),
    "gemma3-rope-parameters": (
        "Gemma3Text",
        _GEMMA3
        | {
            "rope_parameters": {
                "full_attention": _YARN | {"rope_theta": 1e6},
                "sliding_attention": {"rope_type": "linear", "factor": 2.0, "rope_theta": 2e4},
            },
            "final_logit_softcapping": 3.0,
            "tie_word_embeddings": False,
        },
    ),
    "qwen2": ("Qwen2", {}),
    "qwen2-tied": ("Qwen2", {"tie_word_embeddings": True, "rope_theta": 1e6}),
    "qwen2-window": ("Qwen2", {"use_sliding_window": True, "sliding_window": 7, "max_window_layers": 1}),
    "qwen2-layer-types": (
        "Qwen2",
        {
            "use_sliding_window": True,
            "sliding_window": 4,
            "layer_types": ["sliding_attention", "full_attention"],
        },
    ),
    "qwen2-unused-window": ("Qwen2", {"use_sliding_window": False, "sliding_window": 4, "max_window_layers": 0}),
    "qwen2-yarn": ("Qwen2", {"rope_scaling": _YARN, "rope_theta": 1e6}),
    "qwen3": ("Qwen3", {"head_dim": 16}),
    "qwen3-bias": ("Qwen3", {"head_dim": 8, "attention_bias": True, "tie_word_embeddings": True}),
    "qwen3-window": (
        "Qwen3",
        {"head_dim": 16, "use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1},
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_logits_equal_transformers(name: str, tmp_path: Path) -> None:
    model = _random_model(*CASES[name])
    difference = _difference(model, tmp_path)
    print(f"{name}: {difference:.1e}")
    assert difference <= TOLERANCE


def test_text_part_of_multimodal_gemma3_equals_transformers(tmp_path: Path) -> None:
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision |= {"image_size": 28, "patch_size": 14, "model_type": "siglip_vision_model"}
    text = _SMALL | _GEMMA3 | {"model_type": "gemma3_text"}
    config = transformers.Gemma3Config(
        text_config=text, vision_config=vision, mm_tokens_per_image=4, image_token_index=127, eos_token_id=[2, 3]
    )
    model = randomized(transformers.Gemma3ForConditionalGeneration._from_config(config, attn_implementation="eager"))
    assert _difference(model, tmp_path) <= TOLERANCE


def _difference(model: transformers.PreTrainedModel, directory: Path) -> float:
    """The largest difference of any logit, by way of the files that transformers saves."""
    model.save_pretrained(directory)
    source = resolve_model(str(directory))
    token_ids, positions = _inputs(source.config.vocab_size - 1)  # the last id stands for an image
    forward = jax.jit(logits, static_argnums=1)
    ours = forward(source.load_params(), source.config, token_ids, positions, np.full_like(positions, NUM_TOKENS))
    return float(np.abs(np.asarray(ours) - _reference_logits(model, token_ids, positions)).max())


def _random_model(kind: str, changes: dict[str, Any]) -> transformers.PreTrainedModel:
    config = getattr(transformers, f"{kind}Config")(**json.loads(json.dumps(_SMALL | changes)))
    config._attn_implementation = "eager"
    model = getattr(transformers, f"{kind.removesuffix('Text')}ForCausalLM")(config)
    return randomized(model)


def _inputs(vocab_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Two rows of tokens; the second stands beyond the position where angles are small and rounding is kind."""
    token_ids = np.random.default_rng(1).integers(0, vocab_size, (2, NUM_TOKENS))
    return token_ids, np.arange(NUM_TOKENS) + np.array([[0], [FAR]])


def _reference_logits(model: transformers.PreTrainedModel, token_ids: np.ndarray, positions: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        out = model(input_ids=torch.from_numpy(token_ids), position_ids=torch.from_numpy(positions), use_cache=False)
    return out.logits.numpy()
