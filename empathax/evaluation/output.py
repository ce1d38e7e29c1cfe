"""Result files: written whole or not at all, and known to be writable before any work is done."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from empathax import json_text
from empathax.atomic import whole_file
from empathax.errors import ConfigError


def check_writable(path: Path) -> None:
    """Raises a ConfigError if a file could not be put at `path`."""
    parent = path.absolute().parent
    if path.is_dir():
        raise ConfigError(f"--out={path} is a directory, expected a file to write to")
    if not parent.is_dir():
        raise ConfigError(f"--out={path} cannot be written: there is no directory {parent}; make it first")
    if not os.access(parent, os.W_OK):
        raise ConfigError(f"--out={path} cannot be written: no permission in {parent}; choose another place")


def write_json_lines(path: Path, rows: Iterable[Any]) -> None:
    """Writes one JSON value a line. Raises a ConfigError if the disk refuses; an old file then stays."""
    _write(path, (json_line(row) for row in rows))


def write_json(path: Path, value: Any) -> None:
    """Writes one indented JSON value; errors as `write_json_lines`."""
    _write(path, [json_text.dumps(value, indent=2, ensure_ascii=False) + "\n"])


def write_text(path: Path, text: str) -> None:
    """Writes a text; errors as `write_json_lines`."""
    _write(path, [text])


def make_directory(path: Path) -> None:
    """Makes `path` and what is above it. Raises a ConfigError if that is impossible, or nothing can be put there."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--out={path} cannot be made: {error.strerror}; choose another place") from error
    if not os.access(path, os.W_OK):
        raise ConfigError(f"--out={path} cannot be written: no permission; choose another place")


def json_line(row: Any) -> str:
    """One row of a JSON lines file."""
    return json_text.dumps(row, ensure_ascii=False) + "\n"


def _write(path: Path, parts: Iterable[str]) -> None:
    try:
        with whole_file(path) as file:
            file.writelines(parts)
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror}; choose another --out") from error
