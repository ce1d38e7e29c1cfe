"""What a contender is asked to do, and how it answers: one measured step for each line it is sent."""

from __future__ import annotations

import dataclasses
import json
import os
import resource
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Task:
    """A contender's orders, the same for both sides but for `choice`.

    `options` describe the work (see works.py), `choice` the contender's own settings. `steps` counts the first one,
    which is not measured. `folder` holds what prepare.py wrote: the model, and the data that both sides read.
    """

    work: str
    folder: str
    corpora: str
    steps: int
    options: dict[str, Any] = field(default_factory=dict)
    choice: dict[str, Any] = field(default_factory=dict)

    @property
    def model_dir(self) -> Path:
        """The weights in Hugging Face's format, float32."""
        return Path(self.folder) / "model"

    @property
    def data_file(self) -> Path:
        """The work's rows in TRL's format (JSONL), or its prompts (JSON)."""
        return Path(self.folder) / f"{self.work}.jsonl"

    def to_json(self) -> str:
        """For a command line."""
        return json.dumps(dataclasses.asdict(self))


def task_from_argv() -> Task:
    """The task that the parent gave as the only argument."""
    return Task(**json.loads(sys.argv[1]))


class Turns:
    """The child's end of the pipe. `begin` waits for the parent's word, `end` answers with what the step did.

    Everything the child prints goes to stderr: stdout carries answers only, a JSON object a line.
    """

    def __init__(self) -> None:
        self._answers = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)
        self._is_ready = False
        self._started = 0.0

    def begin(self) -> bool:
        """True when the next step is to be made, False when there are no more. The clock starts here."""
        if not self._is_ready:
            self._is_ready = True
            self._answer(ready=True)
        line = sys.stdin.readline().strip()
        self._started = time.perf_counter()
        return line == "step"

    def end(self, **amounts: float) -> None:
        """Answers with the step's seconds and with how much was done in it, by unit."""
        self._answer(seconds=time.perf_counter() - self._started, amounts=amounts)

    def finish(self, **extra: Any) -> None:
        """The last answer: this process's peak memory in bytes, and what else the work compares."""
        self._answer(peak_bytes=peak_bytes(), **extra)

    def _answer(self, **values: Any) -> None:
        print(json.dumps(values), file=self._answers, flush=True)


def peak_bytes() -> int:
    """The largest resident size of this process so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # Linux counts in KiB
