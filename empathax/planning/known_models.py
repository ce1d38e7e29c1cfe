"""Architectures of hub models, from their public config.json, for planning where the hub cannot be reached."""

from __future__ import annotations

from typing import Any

_LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 128256,
    "num_key_value_heads": 8,
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
    "tie_word_embeddings": False,
}
_LLAMA_8B = {"num_hidden_layers": 32, "hidden_size": 4096, "intermediate_size": 14336, "num_attention_heads": 32}
_LLAMA_70B = {"num_hidden_layers": 80, "hidden_size": 8192, "intermediate_size": 28672, "num_attention_heads": 64}
_LLAMA_31 = {
    "max_position_embeddings": 131072,
    "rope_scaling": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
}
_LLAMA_32 = {
    "max_position_embeddings": 131072,
    "rope_scaling": {**_LLAMA_31["rope_scaling"], "factor": 32.0},  # type: ignore[dict-item]
    "tie_word_embeddings": True,
}
_MISTRAL_7B: dict[str, Any] = {
    "model_type": "mistral",
    "vocab_size": 32000,
    "num_hidden_layers": 32,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-5,
    "rope_theta": 1000000.0,
    "sliding_window": None,
    "tie_word_embeddings": False,
}
_GEMMA: dict[str, Any] = {
    "model_type": "gemma",
    "vocab_size": 256000,
    "head_dim": 256,
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "hidden_activation": "gelu_pytorch_tanh",
    "tie_word_embeddings": True,
}
_GEMMA_7B = {
    "num_hidden_layers": 28,
    "hidden_size": 3072,
    "intermediate_size": 24576,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
}
_GEMMA_2B = {
    "num_hidden_layers": 18,
    "hidden_size": 2048,
    "intermediate_size": 16384,
    "num_attention_heads": 8,
    "num_key_value_heads": 1,
}

_BY_NAMES: tuple[tuple[tuple[str, ...], dict[str, Any]], ...] = (
    (("meta-llama/Meta-Llama-3-8B", "meta-llama/Meta-Llama-3-8B-Instruct"), {**_LLAMA, **_LLAMA_8B}),
    (("meta-llama/Meta-Llama-3-70B", "meta-llama/Meta-Llama-3-70B-Instruct"), {**_LLAMA, **_LLAMA_70B}),
    (("meta-llama/Llama-3.1-8B", "meta-llama/Llama-3.1-8B-Instruct"), {**_LLAMA, **_LLAMA_8B, **_LLAMA_31}),
    (
        ("meta-llama/Llama-3.1-70B", "meta-llama/Llama-3.1-70B-Instruct", "meta-llama/Llama-3.3-70B-Instruct"),
        {**_LLAMA, **_LLAMA_70B, **_LLAMA_31},
    ),
    (
        ("meta-llama/Llama-3.2-1B", "meta-llama/Llama-3.2-1B-Instruct"),
        {
            **_LLAMA,
            **_LLAMA_32,
            "num_hidden_layers": 16,
            "hidden_size": 2048,
            "intermediate_size": 8192,
            "num_attention_heads": 32,
            "head_dim": 64,
        },
    ),
    (
        ("meta-llama/Llama-3.2-3B", "meta-llama/Llama-3.2-3B-Instruct"),
        {
            **_LLAMA,
            **_LLAMA_32,
            "num_hidden_layers": 28,
            "hidden_size": 3072,
            "intermediate_size": 8192,
            "num_attention_heads": 24,
            "head_dim": 128,
        },
    ),
    (
        ("mistralai/Mistral-7B-v0.1", "mistralai/Mistral-7B-Instruct-v0.1"),
        {**_MISTRAL_7B, "sliding_window": 4096, "rope_theta": 10000.0},
    ),
    (("mistralai/Mistral-7B-Instruct-v0.2",), _MISTRAL_7B),
    (
        ("mistralai/Mistral-7B-v0.3", "mistralai/Mistral-7B-Instruct-v0.3"),
        {**_MISTRAL_7B, "vocab_size": 32768},
    ),
    (("google/gemma-7b", "google/gemma-7b-it", "google/gemma-1.1-7b-it"), {**_GEMMA, **_GEMMA_7B}),
    (("google/gemma-2b", "google/gemma-2b-it", "google/gemma-1.1-2b-it"), {**_GEMMA, **_GEMMA_2B}),
)
KNOWN_MODELS = {name: settings for names, settings in _BY_NAMES for name in names}  # hub name -> config.json
