"""Runs the tiny config on one device and prints, for each stage, the compilations done before each of its steps.

python counted_run.py WORKDIR PACKING
"""

import json
import sys
from pathlib import Path

import jax
from tiny import tiny_config

from empathax.training import loop
from empathax.training.sweep import prepare, run

COMPILED = "/jax/core/compile/backend_compile_duration"


def main(workdir: Path, packing: str) -> None:
    compiled = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda name, seconds, **_: compiled.append(seconds) if name == COMPILED else None
    )
    stages: list[list[int]] = []
    before_step = loop.Recorder.before_step  # called once before each step

    def count(recorder, number):
        if number == 1:
            stages.append([])
        stages[-1].append(len(compiled))
        before_step(recorder, number)

    loop.Recorder.before_step = count
    limit = 2 if packing == "tree" else 0
    config = tiny_config(data__packing=packing, data__max_pairs_per_dialogue=limit, eval__every_steps=2)
    run(prepare({"": config}, workdir), workdir)
    print(json.dumps(stages))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
