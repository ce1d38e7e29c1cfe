"""How far a command or a stage is, on stderr: a bar on a terminal, a line now and then in a log."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

LINE_SECONDS = 30.0  # between two lines in a log


class ProgressBar:
    """`done` of `total` pieces of `name`, with the time left. Use as a context manager.

    `status` is shown beside the bar until the first values are. A log gets the first values at once, then a line every
    30 seconds. One that is not `enabled` shows nothing.
    """

    def __init__(self, name: str, total: int, done: int = 0, *, enabled: bool = True, status: str = "") -> None:
        columns = (
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
            TextColumn("left"), TimeRemainingColumn(), TextColumn("{task.fields[status]}"),
        )  # fmt: skip
        console = Console(stderr=True)
        self._name, self._total = name, total
        self._is_logged = enabled and not console.is_terminal
        self._last_line, self._had_values = time.monotonic(), False
        self._progress = Progress(*columns, console=console, disable=not (enabled and console.is_terminal))
        self._task = self._progress.add_task(name, total=total, completed=done, status=status)

    def __enter__(self) -> ProgressBar:
        self._progress.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._progress.stop()

    def update(self, done: int, values: Mapping[str, float] | None = None) -> None:
        """Shows how many are `done`, and `values` ("loss", "tokens/s") by their names."""
        status = "  ".join(f"{name} {_short(value)}" for name, value in (values or {}).items())
        self._progress.update(self._task, completed=done, status=status)
        is_due = time.monotonic() - self._last_line >= LINE_SECONDS or (values and not self._had_values)
        self._had_values |= bool(values)
        if self._is_logged and is_due:
            self._last_line = time.monotonic()
            print(f"{self._name}: {done:,} of {self._total:,}  {status}".rstrip(), file=sys.stderr, flush=True)


def _short(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
