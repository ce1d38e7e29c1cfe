"""JSON that users give: read within bounds, every failure one error that says what is wrong and where.

Python's own reader is lenient where a file is most likely damaged (the last of two equal keys wins, NaN is a number),
and raises five kinds of exceptions. All readers of users' JSON go through here.
"""

from __future__ import annotations

import json
import math
import re
import stat
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from empathax.errors import EmpathaxError
from empathax.shown import quoted, shown

MAX_BYTES = 64 << 20  # of a settings file; the largest known, an index of 10,000 shards, has a few MB
MAX_DEPTH = 100  # of lists and objects inside each other
_MAX_DIGITS = 308  # of a whole number: the next power of ten is beyond every float
_BOMS = {
    b"\xff\xfe\x00\x00": "UTF-32",
    b"\x00\x00\xfe\xff": "UTF-32",
    b"\xff\xfe": "UTF-16",
    b"\xfe\xff": "UTF-16",
}
_HALF_PAIR = re.compile(r"\\u[dD][89a-fA-F]")  # perhaps: a whole pair begins like this too
# What Python raises where a file's values are not what the code that reads them takes for granted.
_MALFORMED = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    MemoryError,
    NotImplementedError,
    OSError,
    RecursionError,
    TypeError,
    ValueError,
)


class JsonError(ValueError):
    """Text that is no JSON, or none that is read here; the message says why, `line` where (0 if unknown)."""

    def __init__(self, reason: str, line: int = 0):
        super().__init__(reason)
        self.line = line


class _UnfitNumber(JsonError):
    """A number that is refused; also what stands for it where its field is looked for."""


def parse(source: str | bytes, *, half_pairs: bool = False, non_finite: bool = False) -> Any:
    """The value of a JSON text; bytes must be UTF-8, with or without a byte order mark.

    Refused, with a JsonError, is also what the standard forbids or leaves open: NaN and Infinity, equal keys in an
    object, numbers beyond a float, more than MAX_DEPTH levels, and halves of surrogate pairs. `half_pairs` and
    `non_finite` (NaN, Infinity) let those in that our own files may hold.
    """
    text = decoded(source) if isinstance(source, bytes) else source
    if not text.strip():
        raise JsonError("it is empty")
    try:
        value = (_LENIENT_DECODER if non_finite else _DECODER).decode(text)
    except _UnfitNumber as error:
        raise JsonError(f"{_field_of_unfit(text)}{error}") from None
    except json.JSONDecodeError as error:
        raise JsonError(f"not JSON: {error.msg} at column {error.colno}", error.lineno) from None
    except RecursionError:
        raise JsonError(f"nested too deeply, more than {MAX_DEPTH} levels") from None
    check_value(value, text, half_pairs=half_pairs)
    return value


def check_value(value: Any, text: str, *, half_pairs: bool = False) -> None:
    """Raises a JsonError for a value, parsed from `text` with `decoder()`, that is too deep or holds half pairs."""
    if text.count("[") + text.count("{") > MAX_DEPTH and _is_deeper(value, MAX_DEPTH):
        raise JsonError(f"nested too deeply, more than {MAX_DEPTH} levels")
    if not half_pairs and _HALF_PAIR.search(text) and _has_half_pairs(value):
        raise JsonError("a text in it holds half of a surrogate pair, which is no character")


def decoder() -> json.JSONDecoder:
    """The decoder behind `parse`, for texts of several values; `check_value` belongs to it."""
    return _DECODER


def decoded(source: bytes) -> str:
    """The text of UTF-8 bytes, without a byte order mark. Raises a JsonError that names the byte, or the encoding."""
    for mark, name in _BOMS.items():
        if source.startswith(mark):
            raise JsonError(f"it is {name}, expected UTF-8: save it as UTF-8")
    try:
        return source.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = source.count(b"\n", 0, error.start) + 1
        column = error.start - source.rfind(b"\n", 0, error.start)
        raise JsonError(f"not UTF-8: byte 0x{source[error.start]:02x} at column {column}", line) from None


def read_text(path: Path, kind: type[EmpathaxError], max_bytes: int = MAX_BYTES) -> str:
    """The text of a UTF-8 file. Raises a `kind` that names the file, and a FileNotFoundError if there is none."""
    try:
        return decoded(read_bytes(path, kind, max_bytes))
    except JsonError as error:
        raise kind(f"{_place(path, error)} cannot be read: {error}") from None


def read(
    path: Path,
    kind: type[EmpathaxError],
    *,
    max_bytes: int = MAX_BYTES,
    half_pairs: bool = False,
    non_finite: bool = False,
) -> Any:
    """The value in a JSON file. Raises a `kind` that names file and line; FileNotFoundError if there is no file."""
    try:
        return parse(read_bytes(path, kind, max_bytes), half_pairs=half_pairs, non_finite=non_finite)
    except JsonError as error:
        raise kind(f"{_place(path, error)} cannot be read as JSON: {error}") from None


def read_bytes(path: Path, kind: type[EmpathaxError], max_bytes: int = MAX_BYTES) -> bytes:
    """What an ordinary file of at most `max_bytes` holds. Raises a `kind`, and FileNotFoundError if there is none."""
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            what = "a directory" if stat.S_ISDIR(status.st_mode) else "no ordinary file"
            raise kind(f"{shown(str(path))} is {what}, expected a file")
        if status.st_size > max_bytes:
            raise kind(
                f"{path} has {status.st_size:,} bytes, expected at most {max_bytes:,}: it is another kind of file"
            )
        return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise FileNotFoundError(str(path)) from None
    except OSError as error:
        raise kind(f"{shown(str(path))} cannot be read: {error.strerror or error}") from None
    except ValueError as error:  # a NUL in the path
        raise kind(f"{quoted(str(path))} is no path: {error}") from None


def dumps(value: Any, **options: Any) -> str:
    """`json.dumps`, with null for a number that is NaN or infinite, which the standard does not know."""
    return json.dumps(_with_nulls(value), allow_nan=False, **options)


def _with_nulls(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _with_nulls(item) for key, item in value.items()}
    return [_with_nulls(item) for item in value] if isinstance(value, list | tuple) else value


def an_object(value: Any, name: str, kind: type[EmpathaxError]) -> dict[str, Any]:
    """`value`, an object of JSON; `name` is its file and place."""
    return value if isinstance(value, dict) else _refuse(value, name, "an object", kind)


def a_text(value: Any, name: str, kind: type[EmpathaxError]) -> str:
    """`value`, a string."""
    return value if isinstance(value, str) else _refuse(value, name, "text", kind)


def texts(value: Any, name: str, kind: type[EmpathaxError]) -> list[str]:
    """`value`, a list of strings."""
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        _refuse(value, name, "a list of texts", kind)
    return value


def whole_number(value: Any, name: str, kind: type[EmpathaxError], low: int = 0, high: int = 2**31 - 1) -> int:
    """`value`, a whole number from `low` to `high`."""
    if type(value) is not int or not low <= value <= high:
        _refuse(value, name, f"a whole number from {low:,} to {high:,}", kind)
    return value


@contextmanager
def content_of(path: Path | str, kind: type[EmpathaxError]) -> Iterator[None]:
    """Around the reading of a file: what nobody foresaw in it becomes a `kind` that names the file and the reason."""
    try:
        yield
    except EmpathaxError:
        raise
    except _MALFORMED as error:
        raise malformed(path, kind, error) from error
    except BaseException as error:
        # libraries written in Rust raise plain Exception, or what is none where they fail themselves
        if type(error) is not Exception and type(error).__name__ != "PanicException":
            raise
        raise malformed(path, kind, error) from error


def malformed(path: Path | str, kind: type[EmpathaxError], error: BaseException) -> EmpathaxError:
    """The error of a file whose content made the code that read it fail with `error`."""
    reason = " ".join(str(error).split())
    return kind(
        f"{shown(str(path))} is malformed ({type(error).__name__}{f': {shown(reason)}' if reason else ''}): "
        "copy or write it again"
    )


def _place(path: Path, error: JsonError) -> str:
    return f"{path}:{error.line}" if error.line > 1 else str(path)


def _refuse(value: Any, name: str, expected: str, kind: type[EmpathaxError]) -> NoReturn:
    raise kind(f"{name} = {quoted(value)}: expected {expected}")


def _is_deeper(value: Any, limit: int) -> bool:
    level = [value]
    for _ in range(limit):
        inside = (one.values() if isinstance(one, dict) else one for one in level)
        level = [item for items in inside for item in items if isinstance(item, dict | list)]
        if not level:
            return False
    return True


def _has_half_pairs(value: Any) -> bool:
    try:
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        return True
    return False


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise JsonError(f"the key {quoted(twice)} stands twice in one object: keep one of them")
    return found


def _field_of_unfit(text: str) -> str:
    """The name, with a colon, of the first field that holds a number that is refused; "" if it is in no object."""

    def replaced(read: Callable[[str], Any]) -> Callable[[str], Any]:
        def instead(digits: str) -> Any:
            try:
                return read(digits)
            except _UnfitNumber as error:
                return error

        return instead

    def look(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        for name, value in pairs:
            values = value if isinstance(value, list) else [value]
            if any(isinstance(one, _UnfitNumber) for one in values):
                raise JsonError(f"{shown(name)}: ")
        return dict(pairs)

    whole, real, constant = (replaced(read) for read in (_whole, _float, _no_constant))
    try:
        json.loads(text, object_pairs_hook=look, parse_int=whole, parse_float=real, parse_constant=constant)
    except (ValueError, RecursionError) as error:
        return str(error) if type(error) is JsonError else ""
    return ""


def _whole(digits: str) -> int:
    if len(digits) > _MAX_DIGITS:
        raise _UnfitNumber(f"a number of {len(digits):,} digits, expected at most {_MAX_DIGITS}")
    return int(digits)


def _float(text: str) -> float:
    value = float(text)
    if value in (float("inf"), float("-inf")):
        raise _UnfitNumber(f"the number {shown(text, 40)} is beyond what a float can hold")
    return value


def _no_constant(name: str) -> NoReturn:
    raise _UnfitNumber(f"found {name}, expected a finite number")


_DECODER = json.JSONDecoder(
    object_pairs_hook=_unique, parse_int=_whole, parse_float=_float, parse_constant=_no_constant
)
_LENIENT_DECODER = json.JSONDecoder(object_pairs_hook=_unique, parse_int=_whole, parse_float=_float)
