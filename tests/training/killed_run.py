"""Runs the tiny config, killed at one step: `python killed_run.py WORKDIR STAGE STEP SIGNAL SEED`."""

import os
import signal
import sys
from pathlib import Path

from tiny import tiny_config

from empathax.errors import exit_on_error
from empathax.training import loop
from empathax.training.sweep import prepare, run

workdir, stage, step, name, seed = sys.argv[1:]
push = loop.Recorder.push


def push_and_die(self, number, metrics):
    push(self, number, metrics)
    if self.stage == stage and number == int(step):
        os.kill(os.getpid(), getattr(signal, name))


if name != "NONE":
    loop.Recorder.push = push_and_die
jobs = lambda: prepare({"": tiny_config(seed=int(seed))}, Path(workdir))  # noqa: E731
sys.exit(exit_on_error(lambda: print(run(jobs(), Path(workdir))))())
