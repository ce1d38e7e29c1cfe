"""config.json of Hugging Face models, read into a ModelConfig and written from one."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from empathax.config.arguments import MAX_COUNT, MAX_FLOAT
from empathax.errors import WeightsError, raise_all
from empathax.models.architecture.hf_fields import (
    CLASS_OF_FAMILY,
    DEFAULTS,
    FAMILY_OF_MODEL_TYPE,
    FIXED,
    GEMMA3_WRAPPER,
    IGNORED,
    MODEL_TYPE_OF_FAMILY,
    TRAITS,
)
from empathax.models.architecture.hf_rope import LEGACY_KEYS, read_rope, write_rope
from empathax.models.architecture.model_config import MAX_LAYERS, ModelConfig
from empathax.shown import quoted

_HEADING = "the model's config.json cannot be used"
_ACTIVATIONS = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "relu": "relu",
}
_DTYPES = ("float32", "bfloat16", "float16", "float64")


def from_hf_config(source: dict[str, Any]) -> ModelConfig:
    """The architecture a config.json describes; one WeightsError names every field that cannot be honoured."""
    problems: list[str] = []
    if source.get("model_type") == "gemma3":
        source = _text_part(source, problems)
    model_type = source.get("model_type")
    if not isinstance(model_type, str) or model_type not in FAMILY_OF_MODEL_TYPE:
        known = ", ".join(FAMILY_OF_MODEL_TYPE)
        raise WeightsError(f"{_HEADING}: model_type = {quoted(model_type)}: expected one of {known}")
    family = FAMILY_OF_MODEL_TYPE[model_type]
    _check_fields(family, source, problems)
    config = _read(family, _Fields(DEFAULTS[family], source, problems), source, problems)
    raise_all(WeightsError, _HEADING, problems)
    return config


class _Fields:
    """Reads typed values of one config.json; a bad value becomes a problem and the default stands in for it."""

    def __init__(self, defaults: dict[str, Any], source: dict[str, Any], problems: list[str]):
        self._defaults = defaults
        self._source = source
        self._problems = problems

    def has(self, key: str) -> bool:
        """Whether the family reads this field."""
        return key in self._defaults

    def default(self, key: str) -> Any:
        """What an absent field means."""
        return self._defaults[key]

    def raw(self, key: str) -> Any:
        """The value as written, null included; the default if the field is absent."""
        return self._source[key] if key in self._source else self._defaults.get(key)

    def integer(self, key: str, low: int = 1, high: int = MAX_COUNT) -> int:
        """A whole number; null means the default."""
        value = self.raw(key)
        value = self._defaults[key] if value is None else value
        if isinstance(value, bool) or not isinstance(value, int) or value < low:
            return self._reject(key, value, f"a whole number >= {low}", self._defaults[key] or low)
        if value > high:
            return self._reject(key, value, f"a whole number <= {high:,}", self._defaults[key] or low)
        return value

    def number(self, key: str) -> float:
        value = self.raw(key)
        value = self._defaults[key] if value is None else value
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= MAX_FLOAT:
            return self._reject(key, value, "a number > 0", 1.0)
        return float(value)

    def softcap(self, key: str) -> float:
        """0 (off) where the family has no such field, or the file says null."""
        return self.number(key) if key in self._defaults and self.raw(key) is not None else 0.0

    def flag(self, key: str) -> bool:
        """False where the family has no such field."""
        value = self.raw(key)
        if value is None or key not in self._defaults:
            return bool(self._defaults.get(key))
        return value if isinstance(value, bool) else self._reject(key, value, "true or false", False)

    def token_ids(self, key: str) -> tuple[int, ...]:
        """One id or a list of them; null and -1 mean none."""
        value = self.raw(key)
        ids = value if isinstance(value, list) else [] if value is None else [value]
        if any(isinstance(one, bool) or not isinstance(one, int) or one > MAX_COUNT for one in ids):
            return self._reject(key, value, "a token id or a list of them", ())
        return tuple(one for one in ids if one >= 0)

    def token_id(self, key: str) -> int | None:
        """The first id, or None."""
        return next(iter(self.token_ids(key)), None)

    def _reject(self, key: str, value: Any, expected: str, instead: Any) -> Any:
        self._problems.append(f"{key} = {quoted(value)}: expected {expected}")
        return instead


def _text_part(source: dict[str, Any], problems: list[str]) -> dict[str, Any]:
    """The text model inside a multimodal Gemma 3 file; the wrapper's token ids and tying go first."""
    text = source.get("text_config")
    if not isinstance(text, dict):
        raise WeightsError(
            f"{_HEADING}: text_config = {quoted(text)}: expected the object that describes the text model"
        )
    fixed = FIXED["gemma3"]
    problems.extend(
        f"{key} = {quoted(value)} beside text_config is not supported"
        for key, value in source.items()
        if value is not None and key not in GEMMA3_WRAPPER | IGNORED and (key not in fixed or value != fixed[key])
    )
    outer = ("bos_token_id", "eos_token_id", "pad_token_id", "tie_word_embeddings", "torch_dtype", "dtype")
    return {"model_type": "gemma3_text"} | text | {key: source[key] for key in outer if source.get(key) is not None}


def _check_fields(family: str, source: dict[str, Any], problems: list[str]) -> None:
    read, fixed = DEFAULTS[family], FIXED[family]
    if "sliding_window" in read:  # the first Gemma 2 files name it twice
        fixed = fixed | {"sliding_window_size": source.get("sliding_window", read["sliding_window"])}
    for key, value in source.items():
        if key in read or key in IGNORED or key in LEGACY_KEYS or key == "rope_parameters":
            continue
        if key in fixed:
            if value is not None and value != fixed[key]:
                problems.append(f"{key} = {quoted(value)} is not supported in {family} models: expected {fixed[key]!r}")
        elif value is not None:
            problems.append(
                f"{key} = {quoted(value)} is not a known field of {family} models: it may change the computation"
            )


def _read(family: str, fields: _Fields, source: dict[str, Any], problems: list[str]) -> ModelConfig:
    num_layers, num_heads = fields.integer("num_hidden_layers", high=MAX_LAYERS), fields.integer("num_attention_heads")
    model_dim, max_positions = fields.integer("hidden_size"), fields.integer("max_position_embeddings")
    num_kv_heads = num_heads if fields.raw("num_key_value_heads") is None else fields.integer("num_key_value_heads")
    head_dim = _head_dim(fields, model_dim, num_heads, problems)
    if num_heads % num_kv_heads:
        problems.append(f"num_attention_heads = {num_heads} is not a multiple of num_key_value_heads = {num_kv_heads}")
    rope, local_rope = read_rope(source, max_positions, family == "gemma3", problems)
    query_scalar = fields.number("query_pre_attn_scalar") if fields.has("query_pre_attn_scalar") else head_dim
    is_gemma = family in ("gemma", "gemma2", "gemma3")
    config = ModelConfig(
        family=family,
        vocab_size=fields.integer("vocab_size"),
        num_layers=num_layers,
        model_dim=model_dim,
        ff_dim=fields.integer("intermediate_size"),
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        max_positions=max_positions,
        norm_eps=fields.number("rms_norm_eps"),
        activation=_activation(family, fields, problems),
        tied_embeddings=fields.flag("tie_word_embeddings"),
        windows=_windows(family, fields, num_layers, problems),
        rope=rope,
        local_rope=local_rope,
        attention_bias=fields.flag("attention_bias"),
        output_bias=fields.flag("attention_bias"),
        mlp_bias=fields.flag("mlp_bias"),
        embedding_scale=model_dim**0.5 if is_gemma else 1.0,
        query_scale=query_scalar**-0.5,
        attention_softcap=fields.softcap("attn_logit_softcapping"),
        final_softcap=fields.softcap("final_logit_softcapping"),
        bos_token_id=fields.token_id("bos_token_id"),
        eos_token_ids=fields.token_ids("eos_token_id"),
        pad_token_id=fields.token_id("pad_token_id"),
        file_dtype=_file_dtype(source, problems),
        initializer_range=fields.number("initializer_range"),
    )
    return dataclasses.replace(config, **TRAITS[family])


def _head_dim(fields: _Fields, model_dim: int, num_heads: int, problems: list[str]) -> int:
    has_own = fields.raw("head_dim") is not None or fields.default("head_dim") is not None
    head_dim = fields.integer("head_dim") if has_own else model_dim // num_heads
    if head_dim < 2 or head_dim % 2:
        problems.append(f"head_dim = {head_dim}: expected an even number, rope rotates pairs")
    return head_dim


def _activation(family: str, fields: _Fields, problems: list[str]) -> str:
    """Gemma 1 reads hidden_act, where "gelu" has always meant the tanh form; Gemma 2 and 3 hidden_activation."""
    key = "hidden_activation" if family in ("gemma2", "gemma3") else "hidden_act"
    name = fields.default(key) if fields.raw(key) is None else fields.raw(key)
    if not isinstance(name, str) or name not in _ACTIVATIONS:
        problems.append(f"{key} = {quoted(name)}: expected one of {', '.join(_ACTIVATIONS)}")
        return "silu"
    if family != "gemma":
        return _ACTIVATIONS[name]
    other = fields.raw("hidden_activation")
    if other is not None and {name, str(other)} - {"gelu"} != {"gelu_pytorch_tanh"} and name != other:
        problems.append(f"hidden_act = {quoted(name)} but hidden_activation = {quoted(other)}: expected one activation")
    return "gelu_tanh" if name == "gelu" else _ACTIVATIONS[name]


def _windows(family: str, fields: _Fields, num_layers: int, problems: list[str]) -> tuple[int, ...]:
    """The window of each layer, 0 for full attention."""
    has_windows = fields.has("sliding_window") and fields.raw("sliding_window") is not None
    if fields.has("use_sliding_window"):
        has_windows = has_windows and fields.flag("use_sliding_window")
    window = fields.integer("sliding_window") if has_windows else 0
    is_sliding = _usual_layers(family, fields, num_layers, bool(window))
    types = fields.raw("layer_types")
    if types is not None:
        known = {"sliding_attention": True, "full_attention": False}
        if not isinstance(types, list) or len(types) != num_layers or any(str(kind) not in known for kind in types):
            expected = f"{num_layers} of {' and '.join(map(repr, known))}"
            problems.append(f"layer_types = {quoted(types)}: expected {expected}")
        elif family in ("llama", "mistral", "gemma") and [known[kind] for kind in types] != is_sliding:
            problems.append(
                f"layer_types = {quoted(types)}: {family} models have no per-layer choice; remove the field"
            )
        else:
            is_sliding = [known[kind] for kind in types]
    if any(is_sliding) and not window:
        problems.append("layer_types has sliding_attention but sliding_window is off: expected a number of tokens")
    return tuple(window if sliding else 0 for sliding in is_sliding)


def _usual_layers(family: str, fields: _Fields, num_layers: int, has_window: bool) -> list[bool]:
    """Which layers slide when layer_types does not say so."""
    if family == "gemma2":
        return [(layer + 1) % 2 != 0 for layer in range(num_layers)]
    if family == "gemma3":
        pattern = fields.integer("sliding_window_pattern")
        return [(layer + 1) % pattern != 0 for layer in range(num_layers)]
    if fields.has("max_window_layers"):
        first = fields.integer("max_window_layers", low=0)
        return [has_window and layer >= first for layer in range(num_layers)]
    return [has_window] * num_layers


def _file_dtype(source: dict[str, Any], problems: list[str]) -> str:
    name = next((source[key] for key in ("dtype", "torch_dtype") if source.get(key) is not None), "float32")
    if name not in _DTYPES:
        problems.append(f"dtype = {quoted(name)}: expected one of {', '.join(_DTYPES)}")
    return name


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
