"""Runs DPO of an adapter on the tiny config: `python lora_run.py WORKDIR SFT_ADAPTER ALPHA`."""

import sys
from pathlib import Path

from tiny import tiny_config

from empathax.errors import exit_on_error
from empathax.training.sweep import prepare, run

workdir, sft_adapter, alpha = sys.argv[1:]
settings = {
    "stages": ("dpo",),
    "lora__rank": 4,
    "lora__alpha": float(alpha),
    "lora__dropout": 0.1,
    "lora__after_sft": "keep",
    "lora__path": sft_adapter,
    "dpo__num_epochs": 1.0,
    "eval__num_replies": 0,
}
jobs = lambda: prepare({"": tiny_config(**settings)}, Path(workdir))  # noqa: E731
sys.exit(exit_on_error(lambda: print(run(jobs(), Path(workdir))))())
