"""empathax on one GPU: the attention kernel checked and timed, train steps and generation beside TRL and transformers.

    python -m tests.benchmarks.gpu.prepare --corpora=DIR --folder=FOLDER     (any machine)
    python -m tests.benchmarks.gpu --folder=FOLDER [--only=PART,...] [--out=FILE] [--quick] [--limit=300]

Each part is a process of its own, ended after --limit seconds; one that fails does not stop the others, and what it had
found is kept. Results are rows as those of tests/benchmarks/results.json with the device's name.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

PARTS = {  # name -> module and flags
    "environment": ("environment",),
    "attention_check": ("attention", "--run=check"),
    "attention_time": ("attention", "--run=time"),
    "attention_tiles": ("attention", "--run=tiles"),
    "train_steps": ("train_steps",),
    "weights": ("weights",),
    "train_command": ("train_command",),
    "trl_steps": ("trl_steps",),
    "generation": ("generation",),
    "generation_hf": ("generation", "--run=transformers"),
}


def main() -> None:
    """Runs the parts in order and merges their results."""
    args = _arguments()
    names = list(PARTS) if args.only is None else args.only.split(",")
    if unknown := sorted(set(names) - set(PARTS)):
        sys.exit(f"--only={','.join(unknown)}: no such part; there are {', '.join(PARTS)}")
    failed = []
    for name in [name for name in PARTS if name in names]:
        if not _run(name, args):
            failed.append(name)
        _merge(args.out)
    if failed:
        sys.exit(f"failed or ended early: {', '.join(failed)}")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.gpu", description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True, help="what tests.benchmarks.gpu.prepare wrote")
    parser.add_argument("--only", help=f"some of {', '.join(PARTS)}")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent.parent / "gpu_results.json")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, on CPU too: does everything run?")
    parser.add_argument("--limit", type=float, default=300.0, help="seconds that a part may take")
    return parser.parse_args()


def _run(name: str, args: argparse.Namespace) -> bool:
    module, *flags = PARTS[name]
    command = [sys.executable, "-m", f"tests.benchmarks.gpu.{module}", *flags]
    command += [f"--folder={args.folder}", f"--out={_part_file(args.out, name)}", *(["--quick"] if args.quick else [])]
    # all of the card's memory for the one process that runs; no lookups on a hub
    environment = {"XLA_PYTHON_CLIENT_MEM_FRACTION": "0.92", "HF_HUB_OFFLINE": "1", **os.environ}
    print(f"== {name}", flush=True)
    started = time.perf_counter()
    try:
        code = subprocess.run(command, env=environment, timeout=args.limit).returncode
    except subprocess.TimeoutExpired:
        code = 124
    print(f"== {name}: exit code {code}, {time.perf_counter() - started:.0f} s", flush=True)
    return code == 0


def _part_file(out: Path, name: str) -> Path:
    return out.with_name(f"{out.stem}.{name}.json")


def _merge(out: Path) -> None:
    """All rows of the parts' own files, in the order of the parts, into `out`."""
    files = [path for name in PARTS if (path := _part_file(out, name)).exists()]
    rows = [row for path in files for row in json.loads(path.read_text())]
    out.write_text("[\n" + ",\n".join(map(json.dumps, rows)) + "\n]\n", encoding="utf-8")


if __name__ == "__main__":
    main()
