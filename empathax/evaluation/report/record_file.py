"""evaluation.json: an EvaluationRecord on disk, read strictly. docs/report.md is its specification."""

from __future__ import annotations

import functools
import json
import math
import types
import typing
from collections.abc import Mapping
from dataclasses import MISSING, asdict, fields, is_dataclass
from pathlib import Path
from typing import Any, NoReturn

from empathax.errors import DataError
from empathax.evaluation import output
from empathax.evaluation.report.record import EvaluationRecord
from empathax.evaluation.report.reply_statistics import KINDS
from empathax.evaluation.report.statistics import Statistic

FILE = "evaluation.json"
FORMAT = 1


def write_record(path: Path, record: EvaluationRecord) -> None:
    """Writes the file whole or not at all, one top-level entry a line. Raises a ConfigError if the disk refuses."""
    value = {"format": FORMAT, **asdict(record)}
    value["per_example"] = {
        name: {"kind": statistic.kind, **asdict(statistic)} for name, statistic in record.per_example.items()
    }
    lines = [f"{json.dumps(key)}: {json.dumps(entry, ensure_ascii=False)}" for key, entry in value.items()]
    text = "{\n" + ",\n".join(lines) + "\n}\n"
    # half a surrogate pair, which a model may emit, has no UTF-8 form but a JSON escape
    output.write_text(path, text.encode("utf-8", "backslashreplace").decode("utf-8"))


def read_record(path: Path) -> EvaluationRecord:
    """Reads `path`. Raises a DataError that names the entry, what was found there and what was expected."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"), parse_constant=_no_constant)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}; expected an evaluation's record") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is not JSON: {error}; evaluate the model again") from error
    if not isinstance(value, dict) or "format" not in value:
        raise DataError(f"{path} has no format number: expected an evaluation's record, see docs/report.md")
    if value.pop("format") != FORMAT:
        raise DataError(f"{path} is not of format {FORMAT}, the one this version reads: evaluate the model again")
    try:
        return typing.cast(EvaluationRecord, _decoded(EvaluationRecord, value, ""))
    except DataError as error:
        raise DataError(f"{path}: {error}") from error


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"found {name}, expected a finite number")


def _decoded(kind: Any, value: Any, where: str) -> Any:
    """`value` as JSON gave it, as the type `kind` of a dataclass's field."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if kind is Statistic:
        return _decoded_statistic(value, where)
    if is_dataclass(kind):
        return _decoded_fields(typing.cast(type, kind), _checked(dict, value, where), where)
    if origin is types.UnionType:
        return _decoded_union(arguments, value, where)
    if origin is tuple:
        rows = _checked(list, value, where)
        return tuple(_decoded(arguments[0], row, f"{where}[{number}]") for number, row in enumerate(rows))
    if origin is Mapping:
        entries = _checked(dict, value, where)
        return {key: _decoded(arguments[1], entry, f"{where}.{key}") for key, entry in entries.items()}
    return _checked(kind, value, where)


def _decoded_union(kinds: tuple[Any, ...], value: Any, where: str) -> Any:
    if value is None and types.NoneType in kinds:
        return None
    known = [kind for kind in kinds if kind is not types.NoneType]
    if len(known) == 1:
        return _decoded(known[0], value, where)
    if not isinstance(value, tuple(known)):
        _refuse("a string, a number or true or false", value, where)
    return value


def _decoded_fields(kind: type, value: dict[str, Any], where: str) -> Any:
    hints = _hints(kind)
    if unknown := sorted(value.keys() - hints.keys()):
        raise DataError(f"{where or 'the record'} has an unknown entry {unknown[0]!r}: expected {', '.join(hints)}")
    needed = [field.name for field in fields(kind) if field.default is field.default_factory is MISSING]
    if missing := [name for name in needed if name not in value]:
        raise DataError(f"{where or 'the record'} has no entry {missing[0]!r}: evaluate the model again")
    prefix = f"{where}." if where else ""
    return kind(**{name: _decoded(hints[name], entry, prefix + name) for name, entry in value.items()})


@functools.cache
def _hints(kind: type) -> dict[str, Any]:
    known = typing.get_type_hints(kind)
    return {field.name: known[field.name] for field in fields(kind)}


def _decoded_statistic(value: Any, where: str) -> Any:
    entries = dict(_checked(dict, value, where))
    kind = entries.pop("kind", None)
    if not isinstance(kind, str) or kind not in KINDS:
        raise DataError(f"{where}.kind is {kind!r}: expected one of {', '.join(KINDS)}")
    return _decoded_fields(KINDS[kind], entries, where)


def _checked(kind: type, value: Any, where: str) -> Any:
    if kind is float and type(value) in (int, float):
        if not math.isfinite(value):  # 1e999
            _refuse("a finite number", value, where)
        return float(value)
    if type(value) is not kind:
        _refuse(_IN_WORDS[kind], value, where)
    return value


_IN_WORDS = {str: "a string", int: "a whole number", float: "a number", list: "a list", dict: "an object"}


def _refuse(expected: str, value: Any, where: str) -> NoReturn:
    shown = json.dumps(value)
    raise DataError(f"{where} is {shown[:60]}{'...' if len(shown) > 60 else ''}: expected {expected}")
