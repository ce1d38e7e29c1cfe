"""The rope part of a Hugging Face config.json, in every spelling: rope_scaling with rope_theta, or rope_parameters."""

from __future__ import annotations

from typing import Any

from empathax.config.arguments import MAX_FLOAT
from empathax.models.rope import ROPE_TYPES, RopeConfig, yarn_attention_factor
from empathax.shown import quoted

# what transformers reads for each type; it ignores (and warns about) the other types' keys
_KEYS = {
    "default": (),
    "linear": ("factor",),
    "dynamic": ("factor",),
    "llama3": ("factor", "original_max_position_embeddings", "low_freq_factor", "high_freq_factor"),
    "yarn": (
        "factor",
        "original_max_position_embeddings",
        "attention_factor",
        "mscale",
        "mscale_all_dim",
        "beta_fast",
        "beta_slow",
        "truncate",
    ),
}
_REQUIRED = {
    "linear": ("factor",),
    "dynamic": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor"),
}
# "finetuned" is a note of early YaRN checkpoints, read by their own code for another type only
_COMMON_KEYS = ("type", "rope_type", "rope_theta", "partial_rotary_factor", "finetuned")
_KNOWN_KEYS = {*_COMMON_KEYS, *(key for keys in _KEYS.values() for key in keys)}
_LAYER_TYPES = ("full_attention", "sliding_attention")
_MAY_BE_ZERO = ("attention_factor", "mscale", "mscale_all_dim", "beta_fast", "beta_slow")  # then the default counts
LEGACY_KEYS = ("rope_scaling", "rope_theta", "rope_local_base_freq", "original_max_position_embeddings")


def read_rope(
    source: dict[str, Any], max_positions: int, has_local: bool, problems: list[str]
) -> tuple[RopeConfig, RopeConfig | None]:
    """The (global, local) rope of a config.json; adds what cannot be used to `problems`.

    `has_local`: the family has its own rope in layers with a sliding window (Gemma 3); None for the others.
    """
    scaling = _dict_of(source, "rope_scaling", problems)
    parameters = _dict_of(source, "rope_parameters", problems)
    if scaling and parameters and not has_local:
        problems.append("rope_scaling and rope_parameters are both set: expected one of them")
    context = source.get("original_max_position_embeddings")
    if has_local:
        return _read_two(source, scaling, parameters, max_positions, problems)
    if any(key in parameters for key in _LAYER_TYPES):
        problems.append("rope_parameters per layer type are read for gemma3 only: expected one set for all layers")
        return RopeConfig(), None
    name = "rope_scaling" if scaling else "rope_parameters"
    given = {"rope_theta": source.get("rope_theta")} | (scaling or parameters)
    if context is not None:  # a value beside the dict wins, as in transformers
        given["original_max_position_embeddings"] = context
    return _read_one(given, name, 10_000.0, max_positions, problems), None


def _read_two(
    source: dict[str, Any],
    scaling: dict[str, Any],
    parameters: dict[str, Any],
    max_positions: int,
    problems: list[str],
) -> tuple[RopeConfig, RopeConfig]:
    unknown = sorted(parameters.keys() - set(_LAYER_TYPES))
    problems.extend(f"rope_parameters.{key}: expected {' and '.join(_LAYER_TYPES)} in gemma3" for key in unknown)
    wide = {"rope_theta": source.get("rope_theta")} | (parameters.get("full_attention") or {}) | scaling
    local = {"rope_theta": source.get("rope_local_base_freq")} | (parameters.get("sliding_attention") or {})
    name = "rope_scaling" if scaling else "rope_parameters.full_attention"
    if wide.get("truncate") is False or local.get("truncate") is False:
        # transformers looks for it one level up and never finds it: readers would not agree
        problems.append(f"{name}.truncate = False is not supported in gemma3: expected true or none")
    return (
        _read_one(wide, name, 1_000_000.0, max_positions, problems),
        _read_one(local, "rope_parameters.sliding_attention", 10_000.0, max_positions, problems),
    )


def _read_one(
    given: dict[str, Any], name: str, default_theta: float, max_positions: int, problems: list[str]
) -> RopeConfig:
    given = {key: value for key, value in given.items() if value is not None}
    kind = given.get("rope_type", given.get("type", "default"))
    if kind not in ROPE_TYPES:
        problems.append(f"{name}.rope_type = {quoted(kind)}: expected one of {', '.join(ROPE_TYPES)}")
        return RopeConfig()
    unknown = sorted(given.keys() - _KNOWN_KEYS)
    problems.extend(f"{name}.{key} = {quoted(given[key])} is not known for rope type {quoted(kind)}" for key in unknown)
    if given.get("partial_rotary_factor", 1.0) != 1.0:
        problems.append(f"{name}.partial_rotary_factor = {quoted(given['partial_rotary_factor'])}: expected 1.0")
    missing = [key for key in _REQUIRED.get(kind, ()) if key not in given]
    problems.extend(f"{name}.{key} is missing: rope type {quoted(kind)} needs it" for key in missing)
    numbers = {key: given[key] for key in ("rope_theta", *_KEYS[kind]) if key in given and key != "truncate"}
    for key, value in numbers.items():
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not is_number or not 0 <= value <= MAX_FLOAT or (value == 0 and key not in _MAY_BE_ZERO):
            problems.append(f"{name}.{key} = {quoted(value)}: expected a positive number")
            numbers[key] = 1.0
    if kind == "llama3" and numbers.get("low_freq_factor", 1.0) >= numbers.get("high_freq_factor", 4.0):
        problems.append(f"{name}: expected low_freq_factor below high_freq_factor")
        numbers |= {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
    return _resolve(kind, numbers, given.get("truncate", True), default_theta, max_positions)


def _resolve(
    kind: str, numbers: dict[str, float], truncate: bool, default_theta: float, max_positions: int
) -> RopeConfig:
    """Fills in what transformers fills in for absent values."""
    theta = float(numbers.get("rope_theta", default_theta))
    if kind == "default":
        return RopeConfig(theta=theta)
    if kind == "linear":
        return RopeConfig(theta=theta, type=kind, factor=float(numbers.get("factor", 1.0)))
    if kind == "dynamic":
        factor = float(numbers.get("factor", 1.0))
        return RopeConfig(theta=theta, type=kind, factor=factor, original_max_positions=max_positions)
    context = int(numbers.get("original_max_position_embeddings", max_positions))
    if kind == "llama3":
        return RopeConfig(
            theta=theta,
            type=kind,
            factor=float(numbers.get("factor", 1.0)),
            original_max_positions=context,
            low_freq_factor=float(numbers.get("low_freq_factor", 1.0)),
            high_freq_factor=float(numbers.get("high_freq_factor", 4.0)),
        )
    factor = float(numbers.get("factor", max_positions / max(context, 1)))
    attention_factor = numbers.get("attention_factor")
    if attention_factor is None:
        attention_factor = yarn_attention_factor(factor, numbers.get("mscale"), numbers.get("mscale_all_dim"))
    return RopeConfig(
        theta=theta,
        type=kind,
        factor=factor,
        original_max_positions=context,
        attention_factor=float(attention_factor),
        beta_fast=float(numbers.get("beta_fast") or 32.0),
        beta_slow=float(numbers.get("beta_slow") or 1.0),
        truncate=bool(truncate),
    )


def _dict_of(source: dict[str, Any], key: str, problems: list[str]) -> dict[str, Any]:
    value = source.get(key)
    if value is None:
        return {}
    if not isinstance(value, dict):
        problems.append(f"{key} = {quoted(value)}: expected an object")
        return {}
    return value


def write_rope(rope: RopeConfig, local: RopeConfig | None) -> dict[str, Any]:
    """The fields of config.json that describe a rope: the older spelling, which every reader knows, where it can."""
    if local is None:
        return {"rope_theta": rope.theta, "rope_scaling": _scaling(rope)}
    if local.type == "default":
        return {"rope_theta": rope.theta, "rope_scaling": _scaling(rope), "rope_local_base_freq": local.theta}
    both = {"full_attention": rope, "sliding_attention": local}
    return {
        "rope_parameters": {
            layer_type: {"rope_theta": one.theta, **(_scaling(one) or {"rope_type": "default"})}
            for layer_type, one in both.items()
        }
    }


def _scaling(rope: RopeConfig) -> dict[str, Any] | None:
    if rope.type == "default":
        return None
    values: dict[str, Any] = {"rope_type": rope.type, "factor": rope.factor}
    if rope.type in ("llama3", "yarn"):
        values["original_max_position_embeddings"] = rope.original_max_positions
    if rope.type == "llama3":
        values |= {"low_freq_factor": rope.low_freq_factor, "high_freq_factor": rope.high_freq_factor}
    if rope.type == "yarn":
        values |= {"attention_factor": rope.attention_factor, "beta_fast": rope.beta_fast, "beta_slow": rope.beta_slow}
        values |= {} if rope.truncate else {"truncate": False}
    return values
