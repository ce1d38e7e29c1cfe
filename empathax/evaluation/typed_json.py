"""Values out of JSON as dataclasses, read strictly: an unknown, missing or mistyped entry is named and refused.

Settings, which people write, are read by config/fields.py: it lists every problem and forgives how tuples are written.
"""

from __future__ import annotations

import functools
import json
import types
import typing
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, NoReturn, TypeVar

from empathax.config.arguments import MAX_FLOAT
from empathax.errors import DataError
from empathax.shown import quoted, shown

Decoded = TypeVar("Decoded")
Kinds = Mapping[str, type]  # of a base class: its subclasses by the entry `kind` that names them
_IN_WORDS = {str: "a string", int: "a whole number", float: "a number", list: "a list", dict: "an object"}


def decode(
    cls: type[Decoded], value: Any, kinds: Mapping[type, Kinds] | None = None, remedy: str = "write it again"
) -> Decoded:
    """The dataclass `cls` of a JSON object. Fields with a default may be left out.

    Fields may hold strings, numbers, tuples, mappings, dataclasses, and unions of these with None. For a class in
    `kinds` the object's entry `kind` says which subclass it is. Raises a DataError that names the entry, what was found
    there and what was expected; `remedy` is what to do about a missing one.
    """
    return typing.cast(Decoded, _Decoder(kinds or {}, remedy).decode(cls, value, ""))


class _Decoder:
    def __init__(self, kinds: Mapping[type, Kinds], remedy: str) -> None:
        self._kinds, self._remedy = kinds, remedy

    def decode(self, hint: Any, value: Any, where: str) -> Any:
        """`value` as the type `hint` of a dataclass's field; `where` is its place, with dots between names."""
        origin, arguments = typing.get_origin(hint), typing.get_args(hint)
        if hint in self._kinds:
            return self._of_kind(self._kinds[hint], value, where)
        if is_dataclass(hint):
            return self._fields(typing.cast(type, hint), _checked(dict, value, where), where)
        if origin is types.UnionType:
            return self._union(arguments, value, where)
        if origin is tuple:
            rows = _checked(list, value, where)
            return tuple(self.decode(arguments[0], row, f"{where}[{number}]") for number, row in enumerate(rows))
        if origin is Mapping:
            entries = _checked(dict, value, where)
            return {key: self.decode(arguments[1], entry, f"{where}.{key}") for key, entry in entries.items()}
        return _checked(hint, value, where)

    def _fields(self, cls: type, value: dict[str, Any], where: str) -> Any:
        hints = _hints(cls)
        if unknown := sorted(value.keys() - hints.keys()):
            raise DataError(
                f"{shown(where) or 'the record'} has an unknown entry {quoted(unknown[0])}: expected {', '.join(hints)}"
            )
        needed = [field.name for field in fields(cls) if field.default is field.default_factory is MISSING]
        if missing := [name for name in needed if name not in value]:
            raise DataError(f"{shown(where) or 'the record'} has no entry {missing[0]!r}: {self._remedy}")
        prefix = f"{where}." if where else ""
        return cls(**{name: self.decode(hints[name], entry, prefix + name) for name, entry in value.items()})

    def _of_kind(self, kinds: Kinds, value: Any, where: str) -> Any:
        entries = dict(_checked(dict, value, where))
        kind = entries.pop("kind", None)
        if not isinstance(kind, str) or kind not in kinds:
            raise DataError(f"{where}.kind is {quoted(kind)}: expected one of {', '.join(kinds)}")
        return self._fields(kinds[kind], entries, where)

    def _union(self, hints: tuple[Any, ...], value: Any, where: str) -> Any:
        if value is None and types.NoneType in hints:
            return None
        known = [hint for hint in hints if hint is not types.NoneType]
        if len(known) == 1:
            return self.decode(known[0], value, where)
        if not isinstance(value, tuple(known)):
            _refuse("a string, a number or true or false", value, where)
        return value


@functools.cache
def _hints(cls: type) -> dict[str, Any]:
    known = typing.get_type_hints(cls)
    return {field.name: known[field.name] for field in fields(cls)}


def _checked(cls: type, value: Any, where: str) -> Any:
    if cls is float and type(value) in (int, float):
        if not abs(value) < MAX_FLOAT:
            _refuse("a number that float32 can hold", value, where)
        return float(value)
    if cls is int and type(value) is int and not abs(value) < 2**63:
        _refuse("a whole number of at most 64 bits", value, where)
    if type(value) is not cls:
        _refuse(_IN_WORDS[cls], value, where)
    return value


def _refuse(expected: str, value: Any, where: str) -> NoReturn:
    text = json.dumps(value)
    raise DataError(f"{shown(where)} is {text[:60]}{'...' if len(text) > 60 else ''}: expected {expected}")
