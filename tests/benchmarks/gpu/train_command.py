"""`python -m empathax.train` from beginning to end on the GPU: stopped by SIGTERM in its middle, then gone on.

Ten SFT and six DPO steps of the prepared model's shape, random weights, on the packaged samples.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

from tests.benchmarks.gpu.models import weights_dir
from tests.benchmarks.gpu.part import Part, part_from_argv

WORK = "train_command"
STOP_AFTER = 4  # steps of the first stage


def run(part: Part) -> None:
    """Runs the command twice; what is not as it should be is printed and ends the part."""
    workdir = part.folder / "run"
    started = time.perf_counter()
    process = subprocess.Popen(_command(part, workdir), text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    steps_file = workdir / "metrics.jsonl"
    while process.poll() is None and len(_losses(steps_file, "sft")) < STOP_AFTER:
        time.sleep(0.1)
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
    first_output = process.communicate()[0]
    part.say(WORK, "until SIGTERM took effect", time.perf_counter() - started, "s")
    print(first_output[-4000:])
    _expect("exit code after SIGTERM", process.returncode, 75)
    before = len(_losses(steps_file, "sft"))
    started = time.perf_counter()
    again = subprocess.run(_command(part, workdir), text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    part.say(WORK, "the same command again, to the end", time.perf_counter() - started, "s")
    print(again.stdout[-6000:])
    _expect("exit code of the second run", again.returncode, 0)
    _check(part, steps_file, workdir, before)


def _command(part: Part, workdir: Path) -> list[str]:
    settings = {
        "model.path": weights_dir(part.folder).absolute(),
        "sft.max_steps": 10,
        "dpo.max_steps": 6,
        "sft.learning_rate": 1e-3,
        "checkpoint.every_steps": 5,
        "eval.max_new_tokens": 16,
        "tracking.progress": False,
        **({"data.max_train_dialogues": 12, "data.max_eval_dialogues": 2} if part.quick else {}),
    }
    flags = [f"--config.{name}={value}" for name, value in settings.items()]
    command = [sys.executable, "-m", "empathax.train", "--config=configs/demo.py", f"--workdir={workdir}"]
    os.environ.setdefault("XDG_CACHE_HOME", str(part.folder.absolute() / "cache"))
    return command + flags


def _check(part: Part, steps_file: Path, workdir: Path, before: int) -> None:
    losses = _losses(steps_file, "sft")
    print(f"SFT losses by step: {losses}\nDPO losses by step: {_losses(steps_file, 'dpo')}")
    _expect("SFT steps", sorted(losses), list(range(1, 11)))
    _expect("DPO steps", sorted(_losses(steps_file, "dpo")), list(range(1, 7)))
    _expect("loss falls", losses[10] < losses[1] - 0.5, True)
    _expect("went on instead of starting again", before < 10, True)
    for name in ("report.md", "config.json", "checkpoints/sft", "checkpoints/dpo"):
        _expect(f"{name} exists", (workdir / name).exists(), True)
    part.say(WORK, "SFT loss at step 1", losses[1], "nats")
    part.say(WORK, "SFT loss at step 10", losses[10], "nats")
    print((workdir / "report.md").read_text()[:1500])


def _losses(path: Path, stage: str) -> dict[int, float]:
    """Training losses by step."""
    if not path.exists():
        return {}
    rows = [json.loads(line) for line in path.read_text().splitlines() if re.fullmatch(r"\{.*\}", line)]
    return {
        row["step"]: row["loss"] for row in rows if row["stage"] == stage and row["split"] == "train" and "loss" in row
    }


def _expect(what: str, found: object, expected: object) -> None:
    if found != expected:
        raise SystemExit(f"WRONG: {what}: {found}, expected {expected}")
    print(f"ok: {what}")


if __name__ == "__main__":
    run(part_from_argv(__doc__))
