"""Answers of a chat server on disk, by the content of the request: what was paid for once is not asked again.

DIR/responses.jsonl has a JSON object a line: `key` (`ChatRequest.key`), `url`, `request` (what was sent), `sample`,
`time` (seconds since 1970) and `outcome` (the fields of `ChatOutcome`). A line is appended in one write when an answer
arrives. What cannot be read, such as the half line of a killed process, is ignored and asked again.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from empathax import json_text
from empathax.errors import ConfigError, DataError
from empathax.evaluation.judging.chat_requests import FAILED, STATUSES, ChatOutcome, ChatRequest
from empathax.evaluation.typed_json import decode

FILE_NAME = "responses.jsonl"


class ResponseCache:
    """The answers kept in `directory`, which is made where it is missing. Several processes may append at once.

    Raises a ConfigError if the directory cannot be used.
    """

    def __init__(self, directory: Path, *, now: Callable[[], float] = time.time) -> None:
        self.path = directory / FILE_NAME
        self._now = now
        self._outcomes: dict[str, ChatOutcome] = {}
        self._times: dict[str, float] = {}
        try:
            directory.mkdir(parents=True, exist_ok=True)
            self._read()
        except OSError as error:
            raise ConfigError(
                f"{self.path}: answers cannot be kept there: {error.strerror}; choose another place"
            ) from None

    @property
    def num_answers(self) -> int:
        return len(self._outcomes)

    def get(self, key: str) -> ChatOutcome | None:
        """The answer kept under `key`, if there is one."""
        return self._outcomes.get(key)

    def time_of(self, key: str) -> float | None:
        """When the answer under `key` was kept, in seconds since 1970; None if it is not known."""
        return self._times.get(key)

    def put(self, key: str, url: str, model: str, request: ChatRequest, outcome: ChatOutcome) -> None:
        """Keeps an answer; failures are not kept. Raises a ConfigError if the disk refuses."""
        if outcome.status == FAILED:
            return
        fields = {name: value for name, value in asdict(outcome).items() if name != "attempts"}
        entry: dict[str, Any] = {
            "key": key,
            "url": url,
            "request": request.payload(model),
            "sample": request.sample,
            "time": self._now(),
            "outcome": fields,
        }
        try:
            self._append(json.dumps(entry).encode() + b"\n")
        except OSError as error:
            raise ConfigError(
                f"{self.path}: an answer cannot be kept: {error.strerror}; make room, then run the same again: "
                f"{self.num_answers} answers are kept"
            ) from None
        self._outcomes[key] = ChatOutcome(**fields)
        self._times[key] = entry["time"]

    def _read(self) -> None:
        if not self.path.exists():
            return
        with self.path.open("rb") as file:
            for line in file:
                if line == b"\n":  # written before an answer, for a half line that another process then finished
                    continue
                try:
                    key, outcome, when = _entry(json_text.parse(line, half_pairs=True))
                except (ValueError, KeyError, TypeError, DataError):
                    continue
                if key not in self._outcomes:
                    self._outcomes[key] = outcome
                    self._times |= {key: when} if when is not None else {}

    def _append(self, line: bytes) -> None:
        # Prompts are people's words: for the owner's eyes only.
        descriptor = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            size = os.fstat(descriptor).st_size
            is_whole = size == 0 or os.pread(descriptor, 1, size - 1) == b"\n"
            line = line if is_whole else b"\n" + line  # after a half line, on a line of its own
            if os.write(descriptor, line) != len(line):
                raise OSError(0, "the disk is full")
        finally:
            os.close(descriptor)


def _entry(value: Any) -> tuple[str, ChatOutcome, float | None]:
    """Key, outcome and time of a line. Raises ValueError, KeyError, TypeError or DataError for anything else."""
    outcome = decode(ChatOutcome, value["outcome"])
    if not isinstance(value["key"], str) or outcome.status not in STATUSES or outcome.status == FAILED:
        raise ValueError("not an answer")
    when = value.get("time")
    return value["key"], outcome, float(when) if isinstance(when, int | float) else None
