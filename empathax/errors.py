"""Every error a user can meet, and the exit code it ends a command with."""

from __future__ import annotations

import difflib
import functools
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import ParamSpec

P = ParamSpec("P")


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
    """Wraps a command: an EmpathaxError becomes one message on stderr and its exit code."""

    @functools.wraps(main)
    def run(*args: P.args, **kwargs: P.kwargs) -> int:
        try:
            return main(*args, **kwargs) or 0
        except EmpathaxError as error:
            return exit_code(error)

    return run


def exit_code(error: EmpathaxError) -> int:
    """Says what went wrong on stderr; returns what the command ends with."""
    print(f"error: {error}", file=sys.stderr)
    return error.exit_code
