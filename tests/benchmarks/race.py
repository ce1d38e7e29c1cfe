"""Two contenders, each in a process of its own, that take turns: one steps while the other waits for a line."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from tests.benchmarks.results import Result, measured
from tests.benchmarks.task import Task

RATES = {  # amount of a step -> (metric, unit, amounts in one unit)
    "pairs": ("pairs per second", "pairs/s", 1.0),
    "dialogues": ("dialogues per second", "dialogues/s", 1.0),
    "tokens": ("tokens per second", "tokens/s", 1.0),
    "flops": ("arithmetic", "GFLOP/s", 1e9),
}
SHARE = "useful arithmetic, share of a dense matmul beside it"
LOG_LINES = 30


@dataclass(frozen=True)
class Contender:
    """A framework in one setting: `module` of tests.benchmarks is its child process, `choice` the setting.

    `python` is the interpreter of a framework that lives in an environment of its own.
    """

    framework: str
    module: str
    choice: dict[str, Any] = field(default_factory=dict)
    python: str = sys.executable


@dataclass
class Record:
    """What one contender answered: its steps without the first, and its last words."""

    first_seconds: float = 0.0
    steps: list[dict[str, Any]] = field(default_factory=list)
    last: dict[str, Any] = field(default_factory=dict)


class ChildFailed(Exception):
    """A child process ended early; the text holds the end of its log."""


def race(task: Task, contenders: Sequence[Contender]) -> list[Record]:
    """The records of `contenders`, which make their steps alternately."""
    records = [Record() for _ in contenders]
    with _children(task, contenders) as children:
        for step in range(task.steps):
            for child, record in zip(children, records, strict=True):
                answer = child.ask("step")
                if step:
                    record.steps.append(answer)
                else:
                    record.first_seconds = answer["seconds"]
        for child, record in zip(children, records, strict=True):
            record.last = child.ask("stop")
    return records


def results_of(work: str, contenders: Sequence[Contender], records: Sequence[Record]) -> list[Result]:
    """Rates, seconds and peak memory of two contenders."""
    names = [contender.framework for contender in contenders]
    both = zip(names, records, reversed(names), strict=True)
    return [row for name, record, other in both for row in _results(work, name, record, other)]


def shares_of_dense(work: str, framework: str, against: str, record: Record, dense: Record) -> list[Result]:
    """Each step's useful arithmetic as a share of the dense product's rate beside it, and that rate."""

    def rates(steps: Sequence[dict[str, Any]]) -> list[float]:
        return [step["amounts"]["flops"] / 1e9 / step["seconds"] for step in steps]

    ours, best = rates(record.steps), rates(dense.steps)
    shares = [100 * mine / beside for mine, beside in zip(ours, best, strict=True)]
    return [
        measured(work, framework, SHARE, "%", shares, against),
        measured(work, framework, "dense matmul beside it", "GFLOP/s", best, against),
    ]


def run_module(module: str, *arguments: str) -> None:
    """Runs `python -m tests.benchmarks.MODULE` to its end; its output is shown if it fails."""
    done = subprocess.run([*_command(module), *arguments], env=_environment(), capture_output=True, text=True)
    if done.returncode:
        raise ChildFailed(f"{module} failed:\n" + "\n".join(done.stderr.splitlines()[-LOG_LINES:]))


def _results(work: str, framework: str, record: Record, against: str) -> Iterator[Result]:
    seconds = sum(step["seconds"] for step in record.steps)
    for amount in record.steps[0]["amounts"]:
        metric, unit, size = RATES[amount]
        samples = [step["amounts"][amount] / size / step["seconds"] for step in record.steps]
        # steps differ in length: only all work over all time is a rate that two frameworks can be compared by
        overall = sum(step["amounts"][amount] for step in record.steps) / size / seconds
        yield dataclasses.replace(measured(work, framework, metric, unit, samples, against), value=overall)
    yield measured(work, framework, "step", "s", [step["seconds"] for step in record.steps], against)
    yield measured(work, framework, "first step (compiles, warms up)", "s", [record.first_seconds], against)
    yield measured(work, framework, "peak memory", "GB", [record.last["peak_bytes"] / 1e9], against)


class _Child:
    def __init__(self, task: Task, contender: Contender) -> None:
        self._name = f"{task.work}, {contender.framework}"
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115  closed by close()
        own = dataclasses.replace(task, choice=contender.choice)
        self._process = subprocess.Popen(
            [*_command(contender.module, contender.python), own.to_json()],
            env=_environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
        )

    def ask(self, word: str) -> dict[str, Any]:
        """Sends a line and returns the answer."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(f"{word}\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # the child has ended: reading says why
        return self.answer()

    def answer(self) -> dict[str, Any]:
        """The next answer."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._log.seek(0)
            raise ChildFailed(f"{self._name} ended early:\n" + "".join(self._log.readlines()[-LOG_LINES:]))
        return json.loads(line)

    def close(self) -> None:
        """Ends the process if it still runs."""
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._log):
            assert stream is not None
            stream.close()


@contextmanager
def _children(task: Task, contenders: Sequence[Contender]) -> Iterator[list[_Child]]:
    """The contenders, loaded one after another so that loading does not slow a neighbour."""
    children: list[_Child] = []
    try:
        for contender in contenders:
            children.append(_Child(task, contender))
            children[-1].answer()  # "ready"
        yield children
    finally:
        for child in children:
            child.close()


def _command(module: str, python: str = sys.executable) -> list[str]:
    return [python, "-m", f"tests.benchmarks.{module}"]


def _environment() -> dict[str, str]:
    quiet = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "TRL_EXPERIMENTAL_SILENCE": "1"}
    return {"JAX_PLATFORMS": "cpu", **os.environ, **quiet}
