"""Hugging Face config.json <-> ModelConfig.

Defaults for absent fields are those of transformers 5.23's config classes (a Gemma 3 4B file, for one, leaves most
fields out). A field that neither this module reads nor is known to leave the computation alone is an error.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from empathax.errors import WeightsError, raise_all
from empathax.models.hf_rope import LEGACY_KEYS, read_rope, write_rope
from empathax.models.model_config import FAMILIES, ModelConfig

_FAMILY_OF = {family: family for family in FAMILIES} | {"gemma3_text": "gemma3"}

_SHARED: dict[str, Any] = {
    "attention_bias": False,
    "mlp_bias": False,
    "head_dim": None,
    "hidden_act": "silu",
    "hidden_size": 4096,
    "initializer_range": 0.02,
    "rms_norm_eps": 1e-6,
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "tie_word_embeddings": False,
    "sliding_window": None,
    "layer_types": None,
    "attn_logit_softcapping": None,
    "final_logit_softcapping": None,
    "query_pre_attn_scalar": None,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
_GEMMA: dict[str, Any] = _SHARED | {
    "vocab_size": 256_000,
    "head_dim": 256,
    "hidden_act": "gelu_pytorch_tanh",
    "tie_word_embeddings": True,
    "max_position_embeddings": 8192,
    "bos_token_id": 2,
    "eos_token_id": 1,
    "pad_token_id": 0,
}
_GEMMA2: dict[str, Any] = _GEMMA | {
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "hidden_activation": "gelu_pytorch_tanh",
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
    "attn_logit_softcapping": 50.0,
    "final_logit_softcapping": 30.0,
}
_QWEN: dict[str, Any] = _SHARED | {
    "vocab_size": 151_936,
    "intermediate_size": 22_016,
    "num_key_value_heads": 32,
    "max_position_embeddings": 32_768,
    "sliding_window": 4096,
    "use_sliding_window": False,
    "max_window_layers": 28,
}
# family -> field -> the value an absent field has
_DEFAULTS: dict[str, dict[str, Any]] = {
    "llama": _SHARED
    | {
        "vocab_size": 32_000,
        "intermediate_size": 11_008,
        "num_key_value_heads": None,
        "max_position_embeddings": 2048,
        "bos_token_id": 1,
        "eos_token_id": 2,
    },
    "mistral": _SHARED
    | {
        "vocab_size": 32_000,
        "intermediate_size": 14_336,
        "num_key_value_heads": 8,
        "max_position_embeddings": 131_072,
        "sliding_window": 4096,
        "bos_token_id": 1,
        "eos_token_id": 2,
    },
    "gemma": _GEMMA
    | {
        "hidden_size": 3072,
        "intermediate_size": 24_576,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "num_key_value_heads": 16,
        "hidden_activation": None,
    },
    "gemma2": _GEMMA2,
    "gemma3": _GEMMA2
    | {
        "vocab_size": 262_208,
        "max_position_embeddings": 131_072,
        "attn_logit_softcapping": None,
        "final_logit_softcapping": None,
        "sliding_window_pattern": None,
        "_sliding_window_pattern": None,
    },
    "qwen2": _QWEN | {"attention_bias": True},
    "qwen3": _QWEN | {"head_dim": 128},
}
# family -> fields of other families that it may carry, but only with the value it computes with anyway
_FIXED: dict[str, tuple[str, ...]] = {
    "llama": ("sliding_window", "layer_types", "attn_logit_softcapping", "final_logit_softcapping"),
    "mistral": ("attention_bias", "mlp_bias", "attn_logit_softcapping", "final_logit_softcapping"),
    "gemma": ("mlp_bias", "sliding_window", "layer_types", "attn_logit_softcapping", "final_logit_softcapping"),
    "gemma2": ("mlp_bias",),
    "gemma3": ("mlp_bias", "attn_logit_softcapping"),
    "qwen2": ("attention_bias", "mlp_bias", "attn_logit_softcapping", "final_logit_softcapping"),
    "qwen3": ("mlp_bias", "attn_logit_softcapping", "final_logit_softcapping"),
}
