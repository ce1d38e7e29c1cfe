"""What an argument of a command may be, and a path in the settings: refused before anything opens or counts with it."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from empathax.shown import quoted

MAX_COUNT = 2**31 - 1  # steps, rows and tokens are counted in 32 bits
MAX_FLOAT = 3.4028234663852886e38  # the largest of float32, in which settings are computed with
_MAX_PATH_BYTES, _MAX_NAME_BYTES = 4095, 255  # of Linux; macOS has less


def path_problem(text: str) -> str:
    """Why no file system can have the path `text`; "" if one can."""
    if "\0" in text:
        return "it holds a NUL character"
    try:
        encoded = os.fsencode(text)
    except UnicodeEncodeError:
        return "it holds half of a surrogate pair, which is no character"
    if len(encoded) > _MAX_PATH_BYTES:
        return f"it has {len(encoded):,} bytes, and paths have at most {_MAX_PATH_BYTES:,}"
    longest = max(map(len, encoded.split(b"/")))
    if longest > _MAX_NAME_BYTES:
        return f"a name in it has {longest:,} bytes, and names have at most {_MAX_NAME_BYTES}"
    return ""


def path_text(text: str) -> str:
    """An argument that names a file, a model or data."""
    if problem := path_problem(text):
        raise argparse.ArgumentTypeError(f"{quoted(text)} cannot be a path: {problem}")
    return text


def file_path(text: str) -> Path:
    """An argument that names a file or a directory."""
    return Path(path_text(text))


def whole_number(low: int = 0, high: int = MAX_COUNT) -> Callable[[str], int]:
    """The type of an argument that is a whole number from `low` to `high`."""
    return _reader(int, "a whole number", low, high, MAX_COUNT)


def number(low: float = 0.0, high: float = MAX_FLOAT) -> Callable[[str], float]:
    """The type of an argument that is a number from `low` to `high`."""
    return _reader(float, "a number", low, high, MAX_FLOAT)


def _reader(kind: type, what: str, low: float, high: float, most: float) -> Callable[[str], Any]:
    def read(text: str) -> Any:
        try:
            value = kind(text)
        except ValueError:  # no number, or one of 5,000 digits
            value = None
        if value is None or not low <= value <= high:
            is_too_high = value is not None and value > high
            top = " on" if high == most and not is_too_high else f" to {high:,}" if kind is int else f" to {high:g}"
            raise argparse.ArgumentTypeError(f"{quoted(text)}: expected {what} from {low:g}{top}")
        return value

    return read
