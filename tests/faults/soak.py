"""Random faults on real runs: `python -m tests.faults.soak checkpoints|kills --count=N --seed=S`.

`checkpoints`: a run of the tiny model with three steps of each stage is copied, one file of its newest checkpoint is
damaged at random (a bit flipped, bytes overwritten, the end cut off, emptied, deleted, lengthened), and it is read as
resume, --model and export read it. Wrong is: other values than those saved at the step that is named, an error of
another kind than CheckpointError, or no fallback to the older step, which is whole.

`kills`: the real command is killed with SIGKILL at random moments, by one process or two, until it ends; metrics.jsonl
without timings and the final parameters must be those of a run that was not killed, bit for bit.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import dataclasses
import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jax
import numpy as np
import optax

from empathax.errors import CheckpointError
from empathax.models.weights.source import resolve_model
from empathax.models.weights.steps import find_steps, open_step
from empathax.training import export
from empathax.training.checkpoint import StageCheckpoints, newest_checkpoint, restore_state
from empathax.training.state import TrainState, init_state
from tests.launch.dry_runs import ROOT
from tests.parallel.job_config import write_data
from tests.parallel.processes import run as run_processes
from tests.parallel.processes import start

MODEL = "random:tiny-llama"
STEPS = ["--config.sft.max_steps=10", "--config.dpo.max_steps=10"]
TIMINGS = ("tokens_per_second", "pairs_per_second", "memory_gb")


def _flip(content: bytearray, rng: random.Random) -> bytearray:
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    return content


def _overwrite(content: bytearray, rng: random.Random) -> bytearray:
    start = rng.randrange(len(content))
    size = min(rng.choice([1, 8, 64, 512]), len(content) - start)
    content[start : start + size] = bytes(rng.randrange(256) for _ in range(size))
    return content


DAMAGES = {
    "bit flipped": _flip,
    "overwritten": _overwrite,
    "cut off": lambda content, rng: content[: rng.randrange(len(content))],
    "emptied": lambda content, rng: bytearray(),
    "lengthened": lambda content, rng: content + bytes(rng.randrange(1, 100)),
}


def damage(path: Path, rng: random.Random) -> str:
    """Damages one file; says how."""
    name = rng.choice([*DAMAGES, "bit flipped", "bit flipped", "deleted"])
    if name == "deleted":
        path.unlink()
        return name
    before = path.read_bytes()
    if before:
        path.write_bytes(bytes(DAMAGES[name](bytearray(before), rng)))
    return name if path.read_bytes() != before else "unchanged"


def checkpoint_faults(count: int, seed: int) -> collections.Counter:
    """How `count` single faults ended, by way of reading and outcome."""
    rng, outcomes = random.Random(seed), collections.Counter()
    with tempfile.TemporaryDirectory() as folder:
        whole = Path(folder) / "whole"
        states = _saved_run(whole)
        stage = Path("checkpoints") / "dpo"
        files = [path.relative_to(whole) for path in sorted((whole / stage / "3").rglob("*")) if path.is_file()]
        for number in range(count):
            copy = Path(folder) / f"{number}"
            shutil.copytree(whole, copy)
            name = rng.choice(files)
            how = damage(copy / name, rng)
            way = ("resume", "--model", "export")[number % 3]
            said = io.StringIO()
            try:
                with contextlib.redirect_stderr(said):
                    outcome = WAYS[way](copy, states)
            except CheckpointError as error:
                outcome = f"refused: {error}"
            except Exception as error:  # what is looked for
                outcome = f"TRACEBACK {type(error).__name__}: {error}"
            expected = "step 3 as saved" if how == "unchanged" else "step 2 as saved"
            outcomes[way, outcome if outcome == expected else f"{name} {how}: {outcome}"] += 1
            shutil.rmtree(copy)
    return outcomes


def _saved_run(workdir: Path) -> dict[int, TrainState]:
    """A run's directory with steps 1 to 3 of dpo, each of other parameters; the states by step."""
    source, states = resolve_model(MODEL), {}
    meta = {"model_path": MODEL, "tokenizer_path": MODEL, "model_config": dataclasses.asdict(source.config)}
    with StageCheckpoints(workdir / "checkpoints" / "dpo", keep=3) as checkpoints:
        for number in (1, 2, 3):
            params = jax.tree.map(lambda leaf, number=number: leaf + 0.25 * number, source.load_params())
            states[number] = init_state(params, optax.adamw(0.1)).replace(step=np.int32(number))
            checkpoints.save(states[number], {**meta, "finished": True})
        checkpoints.wait()
    return states


def _resume(workdir: Path, states: dict) -> str:
    found = newest_checkpoint(workdir / "checkpoints" / "dpo", lambda step: restore_state(step, states[1]))
    step, state = found
    return _compared(step.number, state, states[step.number])


def _model(workdir: Path, states: dict) -> str:
    params = resolve_model(workdir).load_params()
    return _which(params, states)


def _export(workdir: Path, states: dict) -> str:
    checkpoint = export.open_checkpoint(workdir)
    directory = export.export_checkpoint(checkpoint, workdir / "out", "float32")
    return _which(resolve_model(directory).load_params(), states)


WAYS = {"resume": _resume, "--model": _model, "export": _export}


def _compared(number: int, found: object, wanted: object) -> str:
    same = jax.tree.all(jax.tree.map(lambda a, b: bool(np.array_equal(a, b)), found, wanted))
    return f"step {number} as saved" if same else f"step {number} SILENTLY WRONG"


def _which(params: object, states: dict) -> str:
    for number, state in states.items():
        if jax.tree.all(jax.tree.map(lambda a, b: bool(np.array_equal(a, b)), params, state.params)):
            return f"step {number} as saved"
    return "SILENTLY WRONG"


def kills(count: int, seed: int, processes: int) -> collections.Counter:
    """How runs that are killed over and over ended: `count` kills in all."""
    rng, outcomes, done = random.Random(seed), collections.Counter(), 0
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        cache = {"JAX_COMPILATION_CACHE_DIR": str(place / "cache"), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
        command = ["-m", "empathax.train", "--config=tests/parallel/job_config.py", *write_data(place), *STEPS]
        whole = place / "whole"
        seconds = time.monotonic()
        _run([*command, f"--workdir={whole}"], place / "log", processes, cache)
        started = time.monotonic()
        _run([*command, f"--workdir={place / 'again'}"], place / "log", processes, cache)
        seconds = time.monotonic() - started
        outcomes[f"two runs {_difference(whole, place / 'again')}"] += 1
        while done < count:
            workdir = place / f"run{done}"
            for _ in range(min(rng.randint(2, 6), count - done)):
                _killed(
                    [*command, f"--workdir={workdir}"], place / "log", processes, cache, rng.uniform(0, seconds), rng
                )
                done += 1
            _run([*command, f"--workdir={workdir}"], place / "log", processes, cache)
            outcomes[_difference(whole, workdir)] += 1
            print(f"{done} kills: {dict(outcomes)}", flush=True)
            shutil.rmtree(workdir)
    return outcomes


def _run(arguments: list[str], log: Path, processes: int, cache: dict[str, str]) -> None:
    more = ["--multihost"] if processes > 1 else []
    codes, outputs = run_processes([*arguments, *more], log, count=processes, devices=8 // processes, **cache)
    if any(codes):
        raise SystemExit(f"a run ended with {codes}:\n{outputs[0][-3000:]}")


def _killed(
    arguments: list[str], log: Path, processes: int, cache: dict[str, str], seconds: float, rng: random.Random
) -> None:
    """Starts it, and kills one process of it after `seconds`; the others end by themselves, or are killed later."""
    more = ["--multihost"] if processes > 1 else []
    started = start([*arguments, *more], log, count=processes, devices=8 // processes, **cache)
    time.sleep(seconds)
    rng.choice(started).send_signal(signal.SIGKILL)
    for process in started:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=20 if processes > 1 else 5)
        process.kill()
        process.wait()


def _difference(whole: Path, other: Path) -> str:
    records = [_records(workdir) for workdir in (whole, other)]
    if records[0] != records[1]:
        return "WRONG: metrics.jsonl differs"
    for stage in ("sft", "dpo"):
        one, two = (open_step(find_steps(workdir / "checkpoints" / stage)[0]) for workdir in (whole, other))
        if one.leaves != two.leaves:
            return f"WRONG: the parameters of {stage} differ"
    return "bitwise equal"


def _records(workdir: Path) -> list[dict]:
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in TIMINGS} for line in lines]


def main() -> int:
    """Prints how often what happened; 1 if anything was wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("checkpoints", "kills"))
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=1)
    flags = parser.parse_args()
    os.chdir(ROOT)
    if flags.what == "checkpoints":
        outcomes = checkpoint_faults(flags.count, flags.seed)
        is_right = all(outcome.endswith("as saved") and ":" not in outcome for _, outcome in outcomes)
    else:
        outcomes = kills(flags.count, flags.seed, flags.processes)
        is_right = all("WRONG" not in outcome for outcome in outcomes)
    for outcome, number in sorted(outcomes.items(), key=str):
        print(f"{number:5}  {' '.join(outcome) if isinstance(outcome, tuple) else outcome}")
    print("all right" if is_right else "SOMETHING IS WRONG")
    return 0 if is_right else 1


if __name__ == "__main__":
    sys.exit(main())
