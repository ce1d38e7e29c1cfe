"""TRL's DPOTrainer on the GPU, on the pairs of train_steps.py, in several batch sizes.

Bfloat16 autocast, float32 weights, the reference's log-probs precomputed. It runs at its fastest:
no gradient checkpointing, torch's fused attention. Memory is the most that torch held.
"""

from __future__ import annotations

import os
from functools import partial

import torch

from tests.benchmarks import trl_train
from tests.benchmarks.gpu.models import LARGE, SMALL, FolderTask
from tests.benchmarks.gpu.part import Part, Recorder, guarded, part_from_argv
from tests.benchmarks.gpu.prepare import OPTIONS, WORK
from tests.benchmarks.results import measured

STEPS = 7  # the first is not measured


def run(part: Part) -> None:
    """SmolLM2-135M in several batch sizes, Llama-3.2-1B in those that fit."""
    settings = [("SmolLM2-135M", SMALL, batch) for batch in ((2,) if part.quick else (16, 32, 8))]
    settings += [] if part.quick else [("Llama-3.2-1B", LARGE, batch) for batch in (4, 8)]
    for title, model, batch in settings:
        name = f"{title}, trl, batch {batch}, precomputed reference"
        guarded(name, partial(_measure, part, name, model, batch))
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def _measure(part: Part, name: str, model: str, batch: int) -> None:
    choice = {"batch": batch, "precomputed": True}
    steps = 3 if part.quick else STEPS
    task = FolderTask(WORK, str(part.folder.absolute()), "", steps, {**OPTIONS, "model": model}, choice)
    on_gpu = torch.cuda.is_available()
    recorder = Recorder(torch.cuda.synchronize if on_gpu else lambda: None)
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    trl_train.run(task, recorder)
    part.add(measured(WORK, "trl", f"{name}: step", "s", [seconds for seconds, _ in recorder.steps[1:]]))
    part.add(measured(WORK, "trl", f"{name}: pairs per second", "pairs/s", recorder.rates("pairs")))
    if on_gpu:
        part.say(WORK, f"{name}: peak memory", torch.cuda.max_memory_allocated() / 1e9, "GB", "trl")


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    run(part_from_argv(__doc__))
