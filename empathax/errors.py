"""Every error a user can meet, and the exit code it ends a command with."""

from __future__ import annotations

import difflib
import functools
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import ParamSpec

from empathax.shown import shown

P = ParamSpec("P")
_LINE_CHARACTERS = 2000
_trace_directory: Path | None = None
# what stands in an error of a library or the machine -> what to do
_ADVICE = (
    ("RESOURCE_EXHAUSTED", "The device has too little memory: lower rows_per_batch or data.row_length, or shard over "
     "more devices; python -m empathax.plan says what fits"),
    ("MemoryError", "This machine has too little memory: lower rows_per_batch or data.row_length, or take a smaller "
     "model"),
    ("No space left on device", "The disk is full: make room, then run the same command again"),
    ("Disk quota exceeded", "Your disk quota is used up: make room, then run the same command again"),
    ("PermissionError", "Change the permissions, or choose another place"),
)  # fmt: skip
_NO_ADVICE = "This was not foreseen; if the settings and files look right, it is a fault of empathax: report it"


class EmpathaxError(Exception):
    """Base of all errors whose message is meant for the user; says what was found, expected, and what to do."""

    exit_code = 1


class ConfigError(EmpathaxError):
    """A setting, flag or mesh that cannot work."""

    exit_code = 2


class DataError(EmpathaxError):
    """A data file, row, dialogue or chat template that cannot be used."""

    exit_code = 3


class WeightsError(EmpathaxError):
    """Model files that are missing, damaged or of another architecture."""

    exit_code = 4


class CheckpointError(EmpathaxError):
    """A checkpoint that cannot be written, read or continued."""

    exit_code = 5


class DamagedCheckpoint(CheckpointError):
    """A checkpoint that is not what was saved: an older one may be."""


class NonFiniteError(EmpathaxError):
    """Training met NaN or Inf too often to go on."""

    exit_code = 6


class Preempted(EmpathaxError):
    """The run was asked to stop and saved its state; run the same command again to go on."""

    exit_code = 75


class Interrupted(EmpathaxError):
    """Ctrl-C; says what is kept."""

    exit_code = 130


def nearest(name: str, known: Iterable[str], cutoff: float = 0.6) -> str:
    """The name in `known` that is most like `name`; "" where none is (by difflib's ratio, at least `cutoff`)."""
    return next(iter(difflib.get_close_matches(name, list(known), n=1, cutoff=cutoff)), "")


def did_you_mean(name: str, known: Iterable[str], otherwise: str = "") -> str:
    """ "; did you mean 'x'?" of the nearest name in `known`; `otherwise` where none is near."""
    near = nearest(name, known)
    return f"; did you mean {near!r}?" if near else otherwise


def raise_all(kind: type[EmpathaxError], heading: str, problems: Sequence[str], limit: int = 20) -> None:
    """Raises one `kind` that lists every problem (the first `limit` in full); returns if there is none."""
    if not problems:
        return
    if len(problems) == 1:
        raise kind(f"{heading}: {problems[0]}")
    shown = "".join(f"\n  - {problem}" for problem in problems[:limit])
    rest = f"\n  ... and {len(problems) - limit} more" if len(problems) > limit else ""
    raise kind(f"{heading}: {len(problems)} problems{shown}{rest}")


def exit_on_error(main: Callable[P, int | None]) -> Callable[P, int]:
    """Wraps a command: an EmpathaxError becomes one message on stderr and its exit code.

    Any other error becomes one paragraph and exit code 1, with its traceback in a file.
    """

    @functools.wraps(main)
    def run(*args: P.args, **kwargs: P.kwargs) -> int:
        try:
            return main(*args, **kwargs) or 0
        except EmpathaxError as error:
            return exit_code(error)
        except Exception as error:
            return unexpected(error)

    return run


def exit_code(error: EmpathaxError) -> int:
    """Says what went wrong on stderr; returns what the command ends with."""
    lines = str(error).split("\n")  # names from files are in it
    print("error: " + "\n".join(shown(line, _LINE_CHARACTERS) for line in lines), file=sys.stderr)
    return error.exit_code


def keep_traces_in(directory: Path) -> None:
    """Names the directory whose error.log takes the tracebacks of unexpected errors from now on."""
    global _trace_directory
    _trace_directory = directory


def unexpected(error: BaseException) -> int:
    """Says what went wrong on stderr in one paragraph, with the traceback in a file; returns the exit code, 1."""
    text = "".join(traceback.format_exception(error))
    reason = shown(next(iter(str(error).strip().splitlines()), ""), 300)
    advice = next((advice for words, advice in _ADVICE if words in f"{type(error).__name__} {text}"), _NO_ADVICE)
    place = keep_trace(text)
    where = f"the traceback is in {place}" if place else f"the traceback follows\n{text}"
    print(f"error: {type(error).__name__}: {reason.rstrip('.')}. {advice}; {where}", file=sys.stderr)
    return 1


def keep_trace(text: str) -> str:
    """Appends a traceback to error.log, or writes a temporary file; returns its path, "" if neither can be written."""
    try:
        if _trace_directory is not None:
            with (_trace_directory / "error.log").open("a", encoding="utf-8") as log:
                log.write(f"{time.strftime('%Y-%m-%dT%H:%M:%S')} {' '.join(sys.argv)}\n{text}\n")
            return str(_trace_directory / "error.log")
        with tempfile.NamedTemporaryFile("w", prefix="empathax-", suffix=".log", delete=False) as file:
            file.write(text)
        return file.name
    except OSError:
        return ""
