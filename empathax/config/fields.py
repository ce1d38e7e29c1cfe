"""Settings as frozen dataclasses: what a field may hold, and nested dicts checked against it, all problems at once."""

from __future__ import annotations

import dataclasses
import json
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import field
from typing import Any

from empathax.config.arguments import MAX_COUNT, MAX_FLOAT, path_problem
from empathax.errors import did_you_mean, nearest
from empathax.shown import quoted, shown

_MAX_TEXT = 1 << 20  # characters of a setting that is text


def option(
    default: Any,
    choices: tuple[Any, ...] = (),
    low: float | None = None,
    high: float | None = None,
    verbatim: bool = False,
    json: bool = False,
) -> Any:
    """A field with its allowed values: a set of `choices`, or a closed range [low, high].

    Without `high` a whole number has at most 31 bits and a number fits float32, in which settings are computed with.
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
        near = nearest_name(str(key)[:100], fields)
        hint = f"did you mean {prefix}{near}?" if near else f"known: {', '.join(fields)}"
        problems.append(f"unknown key {prefix}{shown(str(key))}; {hint}")
    built = {}
    for key in fields.keys() & values.keys():
        name = f"{prefix}{key}"
        if not dataclasses.is_dataclass(hints[key]):
            built[key] = _checked(values[key], hints[key], fields[key], name, problems)
        elif isinstance(values[key], Mapping):
            built[key] = build(hints[key], dict(values[key]), f"{name}.", problems)
        else:
            problems.append(f"{name} = {quoted(values[key])}: expected settings by name")
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
        return _names(value, spec, name, problems)
    if hint is float and type(value) is int and abs(value) <= MAX_FLOAT:
        value = float(value)
    if type(value) is not hint:
        problems.append(f"{name} = {quoted(value)} is {type(value).__name__}: expected {hint.__name__}")
        return spec.default
    choices = spec.metadata.get("choices")
    if choices and value not in choices:
        near = did_you_mean(str(value)[:100], map(str, choices))
        problems.append(f"{name} = {quoted(value)}: expected one of {', '.join(map(repr, choices))}{near}")
    elif hint is str:
        problems += [f"{name} = {quoted(value)}: {problem}" for problem in _text_problems(value, spec)]
    elif expected := _out_of_range(value, spec):
        problems.append(f"{name} = {quoted(value)}: expected {expected}")
    return value


def _out_of_range(value: Any, spec: dataclasses.Field) -> str:
    """What was expected of a number that is outside its range; "" if it is inside (and for true and false)."""
    if isinstance(value, bool):
        return ""
    low, high = (spec.metadata.get(key) for key in ("low", "high"))
    most = MAX_COUNT if isinstance(value, int) else MAX_FLOAT
    bottom, top = -most if low is None else low, most if high is None else high
    if bottom <= value <= top:
        return ""
    if high is not None:
        return f"a value in [{low}, {high}]"
    if value < bottom and low is not None:
        return f"a value >= {low}"
    return f"a value from {bottom:,} to {top:,}" if isinstance(value, int) else f"a value from {bottom:g} to {top:g}"


def _text_problems(text: str, spec: dataclasses.Field) -> list[str]:
    """Why a text cannot be a setting: it could not be written down again, or is a path that nothing can have."""
    is_path = spec.name.endswith("path") or spec.name == "compilation_cache"
    if is_path and (problem := path_problem(text)):
        return [f"{problem}; expected a path"]
    if "\0" in text or not _is_unicode(text):
        return ["expected text without NUL characters and halves of surrogate pairs"]
    return [f"expected at most {_MAX_TEXT:,} characters"] if len(text) > _MAX_TEXT else []


def _is_unicode(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _names(value: Any, spec: dataclasses.Field, name: str, problems: list[str]) -> tuple[str, ...]:
    items = (value,) if isinstance(value, str) else value
    if not isinstance(items, tuple | list) or not all(isinstance(item, str) for item in items):
        problems.append(f"{name} = {quoted(value)}: expected a tuple of names")
        return typing.cast(tuple[str, ...], spec.default)
    if not spec.metadata.get("verbatim"):
        items = [part.strip() for item in items for part in item.split(",")]  # --config.stages=sft,dpo
    problems += [f"{name}: {quoted(item)}: {problem}" for item in items for problem in _text_problems(item, spec)]
    return tuple(items)


def _numbers(value: Any, name: str, problems: list[str]) -> tuple[float, ...]:
    items = value.split(",") if isinstance(value, str) else value if isinstance(value, tuple | list) else (value,)
    try:
        if any(isinstance(item, bool) for item in items):
            raise ValueError
        numbers = tuple(float(item) for item in items)
        if not all(abs(number) <= MAX_FLOAT for number in numbers):
            raise ValueError
        return numbers
    except (OverflowError, TypeError, ValueError):
        problems.append(f"{name} = {quoted(value)}: expected a tuple of numbers")
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
