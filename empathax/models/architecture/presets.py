"""Small architectures with every trait of their family, for tests and `random:<name>`."""

from __future__ import annotations

from typing import Any

from empathax.errors import WeightsError
from empathax.models.architecture.model_config import ModelConfig
from empathax.models.rope import RopeConfig


def _tiny(family: str, **changes: Any) -> ModelConfig:
    values: dict[str, Any] = {
        "family": family,
        "vocab_size": 512,
        "num_layers": 2,
        "model_dim": 64,
        "ff_dim": 128,
        "num_heads": 4,
        "num_kv_heads": 2,
        "head_dim": 16,
        "max_positions": 4096,
        "norm_eps": 1e-5,
        "activation": "silu",
        "tied_embeddings": True,
        "windows": (0, 0),
        "rope": RopeConfig(),
        "query_scale": 16**-0.5,
        "bos_token_id": 1,
        "eos_token_ids": (2,),
        "pad_token_id": 0,
        "initializer_range": 0.08,
    }
    return ModelConfig(**(values | changes))


_GEMMA: dict[str, Any] = {
    "activation": "gelu_tanh",
    "unit_offset_norm": True,
    "embedding_scale": 64**0.5,
    "norm_eps": 1e-6,
}

PRESETS: dict[str, ModelConfig] = {
    "tiny-llama": _tiny("llama"),
    "tiny-mistral": _tiny("mistral", tied_embeddings=False, windows=(8, 8)),
    "tiny-gemma": _tiny("gemma", num_kv_heads=1, **_GEMMA),
    "tiny-gemma2": _tiny(
        "gemma2",
        windows=(8, 0),
        post_norms=True,
        attention_softcap=50.0,
        final_softcap=30.0,
        **_GEMMA,
    ),
    "tiny-gemma3": _tiny(
        "gemma3",
        num_layers=6,
        windows=(8, 8, 8, 8, 8, 0),
        rope=RopeConfig(theta=1_000_000.0),
        local_rope=RopeConfig(),
        post_norms=True,
        qk_norm=True,
        **_GEMMA,
    ),
    "tiny-qwen2": _tiny("qwen2", attention_bias=True, rope=RopeConfig(theta=1_000_000.0)),
    "tiny-qwen3": _tiny("qwen3", qk_norm=True, rope=RopeConfig(theta=1_000_000.0)),
}


def preset(name: str) -> ModelConfig:
    """The architecture that `name` stands for; its vocabulary has 512 tokens."""
    if name not in PRESETS:
        raise WeightsError(f"random:{name} does not exist: choose one of {', '.join(PRESETS)}")
    return PRESETS[name]
