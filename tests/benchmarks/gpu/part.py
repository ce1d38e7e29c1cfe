"""What every part of the GPU benchmark shares: its flags, its results file, the clock, and compiling side by side."""

from __future__ import annotations

import argparse
import concurrent.futures
import dataclasses
import json
import os
import shutil
import subprocess
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax

from tests.benchmarks.results import OURS, Result, measured

UNTUNED = {"xla_gpu_autotune_level": 0}
COMPILERS = max(1, (os.cpu_count() or 1) - 1)


@dataclass
class Part:
    """A part's orders, and the results it has found so far; each is written at once, so that a failure loses none."""

    folder: Path  # what prepare.py wrote
    out: Path
    quick: bool  # tiny sizes: does it run at all?
    device: str
    rows: list[dict[str, Any]] = field(default_factory=list)

    def add(self, result: Result) -> None:
        """Writes one more result, and prints it."""
        self.rows.append({**dataclasses.asdict(result), "device": self.device})
        self.out.write_text("[\n" + ",\n".join(map(json.dumps, self.rows)) + "\n]\n", encoding="utf-8")
        print(f"{result.work} | {result.framework} | {result.metric} | {result.value:.4g} {result.unit}", flush=True)

    def say(self, work: str, metric: str, value: float, unit: str, framework: str = OURS) -> None:
        """Adds one number."""
        self.add(measured(work, framework, metric, unit, [float(value)]))


def part_from_argv(description: str | None) -> Part:
    """The part's flags, and the card's name."""
    return choice_from_argv(description)[0]


def choice_from_argv(description: str | None, choices: Sequence[str] = ("",)) -> tuple[Part, str]:
    """The part's flags, and which of `choices` it is to run (--run; the first one where it does not say)."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--run", choices=choices, default=choices[0])
    args = parser.parse_args()
    return Part(args.folder, args.out, args.quick, _device_name()), args.run


def _device_name() -> str:
    """The card's name, asked of the driver: jax would take its memory, which a child process may need."""
    if not shutil.which("nvidia-smi"):
        return "cpu"
    query = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    return subprocess.run(query, capture_output=True, text=True, check=True).stdout.splitlines()[0].strip()


def compiled_together(lowerings: Mapping[Any, Callable[[], Any]], tuned: bool = True) -> dict[Any, Any]:
    """Compiles what each function lowers, on all cores at once; by name, without those that failed.

    The failures are printed and left out: a tile too large for the device must not stop the others. Without `tuned`
    XLA does not try out kernels for its own matrix products, which takes most of its time.
    """

    def compile_one(item: tuple[Any, Callable[[], Any]]) -> tuple[Any, Any]:
        name, lower = item
        try:
            return name, lower().compile(None if tuned else UNTUNED)
        except Exception as error:
            print(f"{name} does not compile: {type(error).__name__}: {str(error)[:500]}", flush=True)
            return name, None

    started = time.perf_counter()
    with concurrent.futures.ThreadPoolExecutor(COMPILERS) as pool:
        done = dict(pool.map(compile_one, lowerings.items()))
    print(f"compiled {len(done)} programs in {time.perf_counter() - started:.1f} s", flush=True)
    return {name: program for name, program in done.items() if program is not None}


def seconds_per_call(run: Callable[..., Any], *arrays: Any, calls: int = 10, samples: int = 5) -> list[float]:
    """Seconds of one call, from several runs of many calls that follow each other on the device; the first is not
    counted."""
    jax.block_until_ready(run(*arrays))
    found = []
    for _ in range(samples):
        started = time.perf_counter()
        for _ in range(calls):
            last = run(*arrays)
        jax.block_until_ready(last)
        found.append((time.perf_counter() - started) / calls)
    return found


def guarded(name: str, run: Callable[[], None]) -> None:
    """Runs one measurement; a failure is printed and the next one goes on."""
    started = time.perf_counter()
    try:
        run()
    except Exception:
        print(f"{name} failed:\n{traceback.format_exc(limit=8)[-3000:]}", flush=True)
    print(f"[{name}: {time.perf_counter() - started:.1f} s]", flush=True)


class Recorder:
    """Takes the place of task.Turns where a framework runs alone: keeps each step's seconds and amounts.

    `wait` blocks until the device has done all it was given.
    """

    def __init__(self, wait: Callable[[], None] = lambda: None) -> None:
        self.steps: list[tuple[float, dict[str, float]]] = []
        self._wait = wait
        self._started = 0.0

    def begin(self) -> bool:
        """Starts the clock."""
        self._wait()
        self._started = time.perf_counter()
        return True

    def end(self, **amounts: float) -> None:
        """Stops it."""
        self._wait()
        self.steps.append((time.perf_counter() - self._started, amounts))

    def finish(self, **extra: Any) -> None:
        """The end of the work."""

    def rates(self, amount: str) -> list[float]:
        """`amount` per second of every step but the first, which compiles and warms up."""
        return [amounts[amount] / seconds for seconds, amounts in self.steps[1:]]
