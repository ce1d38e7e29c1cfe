"""Greedy replies on the GPU, 64 new tokens to ESConv prompts in bfloat16: ours, or with --run=transformers theirs."""

from __future__ import annotations

import importlib
import statistics
from functools import partial

from tests.benchmarks.gpu.models import FolderTask
from tests.benchmarks.gpu.part import Part, Recorder, choice_from_argv, guarded
from tests.benchmarks.results import OURS, measured

NEW_TOKENS = 64
MODULES = {OURS: "our_generation", "transformers": "hf_generation"}


def run(part: Part, framework: str) -> None:
    """Tokens per second in each of the prepared batch sizes."""
    sizes = sorted(int(path.stem.split("_")[1]) for path in part.folder.glob("generation_*.jsonl"))
    for size in sizes:
        guarded(f"{framework}, batch {size}", partial(_measure, part, framework, size))


def _measure(part: Part, framework: str, size: int) -> None:
    new_tokens = 8 if part.quick else NEW_TOKENS
    options = {"batch": size, "new_tokens": new_tokens, "model": "weights"}
    task = FolderTask(f"generation_{size}", str(part.folder.absolute()), "", 0, options)
    recorder = Recorder()  # both modules return with the tokens on the host
    importlib.import_module(f"tests.benchmarks.{MODULES[framework]}").run(task, recorder)
    name = f"generation_batch_{size}"
    part.add(measured(name, framework, "tokens per second", "tokens/s", recorder.rates("tokens")))
    seconds = [seconds for seconds, _ in recorder.steps[1:]]
    part.add(measured(name, framework, "milliseconds a token", "ms", [1e3 * value / new_tokens for value in seconds]))
    print(f"{name}, {framework}: first {recorder.steps[0][0]:.1f} s, then {statistics.median(seconds):.3f} s")


if __name__ == "__main__":
    run(*choice_from_argv(__doc__, tuple(MODULES)))
