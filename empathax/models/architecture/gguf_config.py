"""GGUF metadata -> ModelConfig, with what llama.cpp supplies for keys that a file leaves out."""

from __future__ import annotations

from typing import Any

import numpy as np

from empathax.config.arguments import MAX_COUNT, MAX_FLOAT
from empathax.errors import WeightsError, raise_all
from empathax.models.architecture.model_config import MAX_LAYERS, ModelConfig
from empathax.models.rope import RopeConfig
from empathax.shown import quoted

_HEADING = "the GGUF file's metadata cannot be used"
_ARCHITECTURES = ("llama", "gemma", "gemma2", "gemma3", "qwen2", "qwen3")
_REQUIRED: dict[str, type] = {
    "context_length": int,
    "embedding_length": int,
    "block_count": int,
    "feed_forward_length": int,
    "attention.head_count": int,
    "attention.layer_norm_rms_epsilon": float,
}
_OPTIONAL: dict[str, type] = {
    "vocab_size": int,
    "attention.head_count_kv": int,
    "attention.key_length": int,
    "attention.value_length": int,
    "attention.sliding_window": int,
    "attention.sliding_window_pattern": int,
    "attn_logit_softcapping": float,
    "final_logit_softcapping": float,
    "rope.dimension_count": int,
    "rope.freq_base": float,
    "rope.freq_base_swa": float,
    "rope.scaling.type": str,
    "rope.scaling.factor": float,
    "rope.scaling.original_context_length": int,
    "rope.scaling.attn_factor": float,
    "rope.scaling.yarn_beta_fast": float,
    "rope.scaling.yarn_beta_slow": float,
}
# keys that the other families' computation has no place for
_ONLY_IN: dict[str, tuple[str, ...]] = {
    "attention.sliding_window": ("llama", "gemma2", "gemma3"),
    "attention.sliding_window_pattern": ("gemma2", "gemma3"),
    "attn_logit_softcapping": ("gemma2",),
    "final_logit_softcapping": ("gemma2", "gemma3"),
    "rope.freq_base_swa": ("gemma3",),
}
# keys that leave the computation alone, or that do so at the given value
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "attention.causal": (True,),
    "expert_count": (0,),
    "expert_used_count": (0,),
    "rope.scaling.finetuned": (True, False),
    "tensor_data_layout": ("Meta AI original pth",),
    "use_parallel_residual": (False,),
}
_SLIDING_PATTERN = {"gemma2": 2, "gemma3": 6}
# the 27B models divide scores by sqrt(D / N), known to llama.cpp by their depth; all others by sqrt(H)
_LAYERS_OF_27B = {"gemma2": 46, "gemma3": 62}
_MAX = {int: MAX_COUNT, float: MAX_FLOAT}
_FILE_DTYPES = {0: "float32", 1: "float16", 32: "bfloat16"}  # general.file_type; the others are quantized


def from_gguf_metadata(metadata: dict[str, Any]) -> ModelConfig:
    """The architecture of a GGUF file; one WeightsError names every key that cannot be honoured.

    `metadata` maps keys to plain values; "tokenizer.vocab_size" stands in for a missing "<arch>.vocab_size". What GGUF
    leaves to the presence of tensors has the family's usual value here and is set by the reader of the file
    (models/weights/source.py): tied embeddings, biases, Llama 3's rope factors.
    """
    family = metadata.get("general.architecture")
    if family not in _ARCHITECTURES:
        raise WeightsError(
            f"{_HEADING}: general.architecture = {family!r}: expected one of {', '.join(_ARCHITECTURES)}"
        )
    problems: list[str] = []
    if metadata.get("general.type", "model") != "model":
        problems.append(f"general.type = {metadata['general.type']!r}: expected 'model'")
    values = _read_values(family, metadata, problems)
    raise_all(WeightsError, _HEADING, problems)
    config = _build(family, values, metadata, problems)
    raise_all(WeightsError, _HEADING, problems)
    return config


def _read_values(family: str, metadata: dict[str, Any], problems: list[str]) -> dict[str, Any]:
    prefix = f"{family}."
    values: dict[str, Any] = {}
    own = {key.removeprefix(prefix): value for key, value in metadata.items() if key.startswith(prefix)}
    for name, value in own.items():
        kind = _REQUIRED.get(name, _OPTIONAL.get(name))
        if kind is None or (value and family not in _ONLY_IN.get(name, _ARCHITECTURES)):
            if value not in _NEUTRAL.get(name, ()):
                problems.append(f"{prefix}{name} = {quoted(value)} is not supported: it may change the computation")
        elif _has_kind(value, kind) and (kind is str or 0 <= value <= _MAX[kind]):
            values[name] = _shortest(value) if kind is float else value
        else:
            expected = "" if kind is str else f" from 0 to {_MAX[kind]:g}"
            problems.append(f"{prefix}{name} = {quoted(value)}: expected {kind.__name__}{expected}")
    problems.extend(f"{prefix}{name} is missing" for name in _REQUIRED if name not in values)
    return values


def _has_kind(value: Any, kind: type) -> bool:
    return isinstance(value, (kind, int) if kind is float else kind) and not isinstance(value, bool)


def _shortest(value: float) -> float:
    """The decimal that a float32 was written as: 9.99999974e-06 -> 1e-05."""
    return float(str(np.float32(value)))


def _build(family: str, values: dict[str, Any], metadata: dict[str, Any], problems: list[str]) -> ModelConfig:
    num_layers, num_heads = values["block_count"], values["attention.head_count"]
    model_dim = values["embedding_length"]
    num_kv_heads = values.get("attention.head_count_kv", num_heads)
    head_dim = values.get("attention.key_length", model_dim // max(num_heads, 1))
    vocab_size = values.get("vocab_size", metadata.get("tokenizer.vocab_size"))
    if vocab_size is None:
        problems.append(f"{family}.vocab_size and the token list are missing: the vocabulary is unknown")
    sizes = (num_layers, num_heads, num_kv_heads, head_dim, model_dim, values["feed_forward_length"])
    if min(sizes) < 1 or num_layers > MAX_LAYERS or num_heads % max(num_kv_heads, 1) or head_dim % 2:
        problems.append(
            f"{num_layers} layers of width {model_dim} and {values['feed_forward_length']}, {num_heads} heads of "
            f"{head_dim} with {num_kv_heads} key heads: impossible"
        )
        num_layers = min(num_layers, 1)
    problems.extend(
        f"{family}.{name} = {values[name]}: expected the head size, {head_dim}"
        for name in ("attention.value_length", "rope.dimension_count")
        if values.get(name, head_dim) != head_dim
    )
    problems.extend(
        f"tokenizer.ggml.{name} = {quoted(metadata[f'tokenizer.ggml.{name}'])}: expected a token's id"
        for name in ("bos_token_id", "eos_token_id", "eot_token_id", "padding_token_id")
        if not _has_kind(metadata.get(f"tokenizer.ggml.{name}", 0), int)
    )
    is_gemma = family.startswith("gemma")
    is_27b = _LAYERS_OF_27B.get(family) == num_layers
    query_scalar = model_dim / max(num_heads, 1) if is_27b else head_dim
    windows = _windows(family, values, num_layers, problems)
    return ModelConfig(
        # GGUF calls Mistral a llama; what sets it apart is its window
        family="mistral" if family == "llama" and any(windows) else family,
        vocab_size=vocab_size or 0,
        num_layers=num_layers,
        model_dim=model_dim,
        ff_dim=values["feed_forward_length"],
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        max_positions=values["context_length"],
        norm_eps=values["attention.layer_norm_rms_epsilon"],
        activation="gelu_tanh" if is_gemma else "silu",
        tied_embeddings=True,
        windows=windows,
        rope=_rope(family, values, problems),
        local_rope=RopeConfig(theta=values.get("rope.freq_base_swa", 10_000.0)) if family == "gemma3" else None,
        attention_bias=family == "qwen2",
        qk_norm=family in ("gemma3", "qwen3"),
        unit_offset_norm=is_gemma,
        post_norms=family in ("gemma2", "gemma3"),
        embedding_scale=model_dim**0.5 if is_gemma else 1.0,
        query_scale=max(query_scalar, 1) ** -0.5,
        attention_softcap=values.get("attn_logit_softcapping", 50.0) if family == "gemma2" else 0.0,
        final_softcap=values.get("final_logit_softcapping", 30.0 if family == "gemma2" else 0.0),
        bos_token_id=metadata.get("tokenizer.ggml.bos_token_id"),
        eos_token_ids=_stop_ids(metadata),
        pad_token_id=metadata.get("tokenizer.ggml.padding_token_id"),
        file_dtype=_FILE_DTYPES.get(metadata.get("general.file_type", 0), "float32"),
    )


def _stop_ids(metadata: dict[str, Any]) -> tuple[int, ...]:
    keys = ("tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id")
    return tuple(dict.fromkeys(metadata[key] for key in keys if metadata.get(key) is not None))


def _windows(family: str, values: dict[str, Any], num_layers: int, problems: list[str]) -> tuple[int, ...]:
    """Every n-th layer is full, the others slide; a llama file with a window slides everywhere."""
    default = 4096 if family == "gemma2" else 0
    window = values.get("attention.sliding_window", default)
    if not window:
        if family == "gemma3":
            problems.append("gemma3.attention.sliding_window is missing")
        return (0,) * num_layers
    if family == "llama":
        return (window,) * num_layers
    pattern = max(values.get("attention.sliding_window_pattern", _SLIDING_PATTERN[family]), 1)
    return tuple(window if (layer + 1) % pattern else 0 for layer in range(num_layers))


def _rope(family: str, values: dict[str, Any], problems: list[str]) -> RopeConfig:
    theta = values.get("rope.freq_base", 10_000.0)
    kind = values.get("rope.scaling.type", "linear" if values.get("rope.scaling.factor", 1.0) != 1.0 else "none")
    factor = values.get("rope.scaling.factor", 1.0)
    if kind == "none" or (kind == "linear" and factor in (0.0, 1.0)):
        return RopeConfig(theta=theta)
    if kind == "linear":
        return RopeConfig(theta=theta, type="linear", factor=factor)
    if kind == "yarn":
        context = values.get("rope.scaling.original_context_length", values["context_length"])
        # llama.cpp multiplies by 1 + 0.1 ln(factor) and by attn_factor
        attention_factor = values.get("rope.scaling.attn_factor", 1.0) * (1.0 + 0.1 * float(np.log(max(factor, 1.0))))
        return RopeConfig(
            theta=theta,
            type="yarn",
            factor=factor,
            original_max_positions=context,
            attention_factor=attention_factor,
            beta_fast=values.get("rope.scaling.yarn_beta_fast", 32.0),
            beta_slow=values.get("rope.scaling.yarn_beta_slow", 1.0),
        )
    problems.append(f"{family}.rope.scaling.type = {kind!r}: expected one of none, linear, yarn")
    return RopeConfig(theta=theta)
