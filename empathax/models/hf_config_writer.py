"""ModelConfig -> Hugging Face config.json."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from empathax.errors import WeightsError, raise_all
from empathax.models.hf_config import from_hf_config
from empathax.models.hf_fields import CLASS_OF_FAMILY, DEFAULTS, MODEL_TYPE_OF_FAMILY
from empathax.models.hf_rope import write_rope
from empathax.models.model_config import ModelConfig

_ACTIVATION_NAMES = {"silu": "silu", "gelu": "gelu", "gelu_tanh": "gelu_pytorch_tanh", "relu": "relu"}


def to_hf_config(config: ModelConfig) -> dict[str, Any]:
    """The config.json that transformers and vLLM load; raises if the family's files cannot express `config`."""
    written = {
        "architectures": [CLASS_OF_FAMILY[config.family]],
        "model_type": MODEL_TYPE_OF_FAMILY[config.family],
        "vocab_size": config.vocab_size,
        "hidden_size": config.model_dim,
        "intermediate_size": config.ff_dim,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "max_position_embeddings": config.max_positions,
        "rms_norm_eps": config.norm_eps,
        "initializer_range": config.initializer_range,
        "tie_word_embeddings": config.tied_embeddings,
        "bos_token_id": config.bos_token_id,
        "eos_token_id": _one_or_many(config.eos_token_ids),
        "pad_token_id": config.pad_token_id,
        "torch_dtype": config.file_dtype,
        "use_cache": True,
        **write_rope(config.rope, config.local_rope),
        **_write_family_fields(config),
    }
    _check_round_trip(config, written)
    return written


def _write_family_fields(config: ModelConfig) -> dict[str, Any]:
    activation = _ACTIVATION_NAMES[config.activation]
    first_window = next((layer for layer, window in enumerate(config.windows) if window), config.num_layers)
    values = {
        "hidden_act": activation,
        "hidden_activation": activation,
        "attention_bias": config.attention_bias,
        "mlp_bias": config.mlp_bias,
        "query_pre_attn_scalar": round(config.query_scale**-2),
        "attn_logit_softcapping": config.attention_softcap or None,
        "final_logit_softcapping": config.final_softcap or None,
        "sliding_window": config.sliding_window or None,
        "use_sliding_window": config.sliding_window > 0,
        "max_window_layers": first_window,
    }
    if config.family not in ("llama", "mistral", "gemma"):
        values["layer_types"] = ["sliding_attention" if window else "full_attention" for window in config.windows]
    return {key: value for key, value in values.items() if key in DEFAULTS[config.family]}


def _check_round_trip(config: ModelConfig, written: dict[str, Any]) -> None:
    again = from_hf_config(written)
    problems = [
        f"{field.name} = {getattr(config, field.name)!r} would be read back as {getattr(again, field.name)!r}"
        for field in dataclasses.fields(config)
        if not _same(getattr(config, field.name), getattr(again, field.name))
    ]
    raise_all(
        WeightsError, f"a config.json of the {config.family} family cannot say what this model computes", problems
    )


def _same(one: Any, other: Any) -> bool:
    return math.isclose(one, other, rel_tol=1e-12) if isinstance(one, float) else one == other


def _one_or_many(ids: tuple[int, ...]) -> int | list[int] | None:
    return list(ids) if len(ids) > 1 else ids[0] if ids else None
