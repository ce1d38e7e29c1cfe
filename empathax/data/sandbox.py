"""The parent's side of template_worker.py: one child process per chat template, asked for a few texts at a time."""

from __future__ import annotations

import contextlib
import json
import selectors
import subprocess
import sys
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from empathax import json_text
from empathax.errors import DataError
from empathax.shown import shown

CPU_SECONDS = 5.0  # of one rendering; a dialogue takes about a ten-thousandth
WALL_SECONDS = 120.0  # for a machine so busy that CPU_SECONDS take this long
FREE_CHARACTERS = 200_000  # a template may print this much, and OUTPUT_RATIO times what it was given
OUTPUT_RATIO = 8
# Templates of Llama 3.1 and later print the day. A fixed one (their own default) keeps rows equal from day to day.
DEFAULT_DATE = "2024-07-26"


class TemplateRefused(DataError):
    """The template raised an exception of its own: it does not accept these messages."""


class TemplateProcess:
    """A compiled chat template in a process without access to ours, with limits on time, memory and output.

    `date` is what the template's `strftime_now` says: year-month-day, or "today".

    Raises:
        DataError: the template has a syntax error, or breaks a limit while rendering.
        TemplateRefused: the template called raise_exception.
    """

    def __init__(self, source: str, name: str, date: str = DEFAULT_DATE) -> None:
        self._name = name
        worker = Path(__file__).with_name("template_worker.py")
        # -P: the worker's folder must not shadow modules of the standard library.
        self._process = subprocess.Popen(
            [sys.executable, "-P", str(worker)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            encoding="utf-8",
        )
        self._close = weakref.finalize(self, _close, self._process)
        self._ask({"source": source, "date": date, "cpu_seconds": CPU_SECONDS})

    def render(self, requests: Sequence[Mapping[str, Any]]) -> list[str]:
        """The text for each set of variables; "messages" among them."""
        num_characters = sum(len(json.dumps(variables, ensure_ascii=False)) for variables in requests)
        limit = FREE_CHARACTERS + OUTPUT_RATIO * num_characters
        return self._ask({"requests": requests, "cpu_seconds": CPU_SECONDS, "max_characters": limit})["texts"]

    def close(self) -> None:
        """Ends the process; happens by itself when the object goes."""
        self._close()

    def _ask(self, request: Any) -> dict[str, Any]:
        result = _parsed(self._exchange(json.dumps(request)))
        if result is None:
            self.close()
            raise DataError(
                f"{self._name}: ended after {CPU_SECONDS:.0f} s of CPU time or out of memory (it loops, or builds "
                "a huge text); set data.chat_template to a family's name or to another .jinja file"
            )
        if result.get("kind") == "refused":
            raise TemplateRefused(f"{self._name} refuses the messages: {shown(result['error'])}")
        if "error" in result:
            raise DataError(
                f"{self._name} cannot be used: {shown(result['error'])}; set data.chat_template to a family's name or "
                "to another .jinja file"
            )
        return result

    def _exchange(self, line: str) -> str:
        """Sends one line, waits for one; "" if the process ended or took too long."""
        requests, answers = self._process.stdin, self._process.stdout
        assert requests is not None
        assert answers is not None
        with contextlib.suppress(BrokenPipeError, ValueError):
            requests.write(line + "\n")
            requests.flush()
            with selectors.DefaultSelector() as selector:
                selector.register(answers, selectors.EVENT_READ)
                if selector.select(WALL_SECONDS):
                    return answers.readline()
        return ""


def _parsed(answer: str) -> dict[str, Any] | None:
    """A line of the worker; None if there is none, or half of one: it ended."""
    with contextlib.suppress(json_text.JsonError):
        return json_text.parse(answer, half_pairs=True)
    return None


def _close(process: subprocess.Popen) -> None:
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        with contextlib.suppress(OSError):
            if pipe is not None:
                pipe.close()
