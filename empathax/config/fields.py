"""Settings as frozen dataclasses: what a field may hold, and nested dicts checked against it, all problems at once."""

from __future__ import annotations

import dataclasses
import json
import math
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import field
from typing import Any

from empathax.errors import did_you_mean, nearest


def option(
    default: Any,
    choices: tuple[Any, ...] = (),
    low: float | None = None,
    high: float | None = None,
    verbatim: bool = False,
    json: bool = False,
) -> Any:
    """A field with its allowed values: a set of `choices`, or a closed range [low, high].

    A tuple of strings is split at commas, its names stripped, unless `verbatim`; so is a tuple of numbers. A `json`
    field is given as a dict or as JSON, and kept as JSON text.
    """
    checks = {"choices": choices, "low": low, "high": high, "verbatim": verbatim, "json": json}
    return field(default=default, metadata=checks)


def plain(value: Any) -> Any:
    """A dataclass as nested dicts; any other value as it is."""
    if dataclasses.is_dataclass(value):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    return value


def flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by their dotted names: {"dpo": {"beta": 0.1}} is {"dpo.beta": 0.1}."""
    found: dict[str, Any] = {}
    for key, value in settings.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value}
    return found


def build(cls: type, values: dict[str, Any], prefix: str, problems: list[str]) -> Any:
    """A `cls` of nested `values`; unknown keys and bad values are added to `problems`, their names after `prefix`."""
    hints = typing.get_type_hints(cls)
    fields = {f.name: f for f in dataclasses.fields(cls)}
    for key in values.keys() - fields.keys():
        near = nearest_name(key, fields)
        hint = f"did you mean {prefix}{near}?" if near else f"known: {', '.join(fields)}"
        problems.append(f"unknown key {prefix}{key}; {hint}")
    built = {}
    for key in fields.keys() & values.keys():
        if dataclasses.is_dataclass(hints[key]):
            built[key] = build(hints[key], values[key], f"{prefix}{key}.", problems)
        else:
            built[key] = _checked(values[key], hints[key], fields[key], f"{prefix}{key}", problems)
    return cls(**built)


def nearest_name(name: str, known: Iterable[str]) -> str:
    """The setting that `name` may stand for: one spelled like it, of its initials (lr), or with it as a part."""
    names = list(known)
    initials = (other for other in names if len(name) > 1 and "".join(part[0] for part in other.split("_")) == name)
    parts = (other for other in names if name in other.split("_"))
    return nearest(name, names) or next(initials, "") or next(parts, "")


def nearest_setting(name: str, known: Iterable[str]) -> str:
    """The dotted name in `known` that `name` may stand for: in its own block first, then in any other."""
    names = list(known)
    block, _, key = name.rpartition(".")
    own = [other.rpartition(".")[2] for other in names if other.rpartition(".")[0] == block]
    if near := nearest_name(key, own):
        return f"{block}.{near}".lstrip(".")
    elsewhere = [other for other in names if other.rpartition(".")[2] == key]
    return next(iter(elsewhere), "") or nearest(name, names)


def _checked(value: Any, hint: Any, spec: dataclasses.Field, name: str, problems: list[str]) -> Any:
    if hint == tuple[float, ...]:
        return _numbers(value, name, problems)
    if spec.metadata.get("json"):
        return _json_text(value, name, problems)
    if isinstance(hint, types.GenericAlias):  # tuple[str, ...]
        items = (value,) if isinstance(value, str) else value
        if isinstance(items, tuple | list) and all(isinstance(item, str) for item in items):
            if spec.metadata.get("verbatim"):
                return tuple(items)
            items = [name.strip() for item in items for name in item.split(",")]  # --config.stages=sft,dpo
        if not isinstance(items, tuple | list) or not all(isinstance(item, str) for item in items):
            problems.append(f"{name} = {value!r}: expected a tuple of names")
            return spec.default
        return tuple(items)
    if hint is float and type(value) is int:
        value = float(value)
    if type(value) is not hint:
        problems.append(f"{name} = {value!r} is {type(value).__name__}: expected {hint.__name__}")
        return spec.default
    choices, low, high = (spec.metadata.get(key) for key in ("choices", "low", "high"))
    if choices and value not in choices:
        near = did_you_mean(str(value), map(str, choices))
        problems.append(f"{name} = {value!r}: expected one of {', '.join(map(repr, choices))}{near}")
    if (low is not None and value < low) or (high is not None and value > high) or _is_not_finite(value):
        problems.append(
            f"{name} = {value!r}: expected a value {'>= ' + str(low) if high is None else f'in [{low}, {high}]'}"
        )
    return value


def _is_not_finite(value: Any) -> bool:
    return isinstance(value, float) and not math.isfinite(value)


def _numbers(value: Any, name: str, problems: list[str]) -> tuple[float, ...]:
    items = value.split(",") if isinstance(value, str) else value if isinstance(value, tuple | list) else (value,)
    try:
        if any(isinstance(item, bool) for item in items):
            raise ValueError
        return tuple(float(item) for item in items)
    except (TypeError, ValueError):
        problems.append(f"{name} = {value!r}: expected a tuple of numbers")
        return ()


def _json_text(value: Any, name: str, problems: list[str]) -> str:
    """A dict, or JSON text of one, as JSON in the order of its names; "" where it is empty."""
    try:
        found = json.loads(value or "{}") if isinstance(value, str) else value
        if found is None or isinstance(found, Mapping):
            return json.dumps(dict(found), sort_keys=True) if found else ""
    except (TypeError, ValueError):
        pass
    problems.append(f"{name} = {value!r}: expected names and values, such as {{'enable_thinking': True}}, or JSON")
    return ""
