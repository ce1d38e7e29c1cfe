"""The Llama-3-8B DPO step at equal pairs in the three packings, compiled for a TPU or GPU topology on any machine.

    python -m tests.benchmarks.compile_only --topology=v5e:4x4 --packing=tree --pairs=296 --json=rows.jsonl

The same number of preference pairs is laid out in rows of 2,048 tokens. Prompts that pairs share are stored once in a
tree, once per pair, or once per reply: fewer rows for the same step, and less memory for activations. Parameters and
Adam's moments are float32 and fully sharded, activations bfloat16 with full rematerialization, the reference's
log-probs come with the batch. `plan` does the same for any config.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
from pathlib import Path
from typing import Any

from empathax.config.hardware import GIB, Topology, parse_hardware
from empathax.planning.topology import child_environment

ROW_TOKENS = 2048
TOKENS_PER_PAIR = {"none": 978, "pair": 518, "tree": 110}  # ESConv packed, docs/prefix_tree.md
TRAINED_TOKENS_PER_PAIR = 70  # both replies
MODEL = "meta-llama/Meta-Llama-3-8B-Instruct"


def rows_for(packing: str, pairs: int, num_devices: int) -> int:
    """Rows that hold `pairs` pairs, rounded up to a multiple of the devices."""
    full_rows = math.ceil(pairs * TOKENS_PER_PAIR[packing] / ROW_TOKENS)
    return math.ceil(full_rows / num_devices) * num_devices


def compile_step(topology: Topology, packing: str, pairs: int, attention: str) -> dict[str, Any]:
    """Compiles one DPO step whose rows hold equal shares of the pairs; the row of the table."""
    from empathax.config import Config, DpoOptions, EvalOptions, ModelOptions
    from empathax.data.packing import RowSizes
    from empathax.planning.compile import Subject, compile_plan
    from empathax.planning.model import find_model
    from empathax.planning.rows import Rows

    num_rows = rows_for(packing, pairs, topology.num_devices)
    P = math.ceil(pairs / num_rows)
    sizes = RowSizes(ROW_TOKENS, math.ceil(P * TRAINED_TOKENS_PER_PAIR / 128) * 128, 2 * P, P)
    rows = Rows(sizes, ROW_TOKENS, P * TRAINED_TOKENS_PER_PAIR, ROW_TOKENS**2 / 2, P)
    config = Config(
        stages=("dpo",),
        model=ModelOptions(path=MODEL, remat="full", attention=attention),
        dpo=DpoOptions(rows_per_batch=num_rows, reference="precomputed"),
        eval=EvalOptions(rows_per_batch=topology.num_devices),
    )
    subject = Subject(config, "dpo", find_model(MODEL), rows, "a benchmark")
    plan = compile_plan(subject, topology, ("train",), lambda text: None)
    sizes_of = plan["bytes_per_device"]
    arguments = sum(sizes_of[kind] for kind in ("parameters", "optimizer", "reference", "batch")) / GIB
    return {
        "topology": str(topology),
        "packing": packing,
        "pairs": pairs,
        "rows": num_rows,
        "rows_per_device": num_rows // topology.num_devices,
        "tokens": num_rows * ROW_TOKENS,
        "attention_kernels": plan["parts"]["train"]["attention_kernels"],
        "arguments_gib": round(arguments, 3),
        "temporaries_gib": round(sizes_of["total"] / GIB - arguments, 3),
        "total_gib": round(sizes_of["total"] / GIB, 3),
        "fits": plan["fits"],
        "device_gib": round(plan["hbm_bytes"] / GIB, 2),
        "compile_seconds": plan["compile_seconds"],
    }


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as Markdown."""
    head = (
        "| topology | packing | pairs | rows (a device) "
        "| arguments GiB | temporaries GiB | total GiB | fits | compiled in |"
    )

    lines = [
        f"| {row['topology']} | {row['packing']} | {row['pairs']} | {row['rows']} ({row['rows_per_device']}) "
        f"| {row['arguments_gib']:.1f} | {row['temporaries_gib']:.1f} | {row['total_gib']:.1f} of "
        f"{row['device_gib']} | {'yes' if row['fits'] else 'no'} | {row['compile_seconds']} s |"
        for row in rows
    ]
    return "\n".join([head, "|---" * 9 + "|", *lines])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--topology", default="v5e:4x4", help="v5e:4x4, v5p:2x2x4, h100:8, ...")
    parser.add_argument("--packing", action="append", choices=sorted(TOKENS_PER_PAIR), help="repeatable; default all")
    parser.add_argument("--pairs", type=int, default=296, help="preference pairs of one step, over all devices")
    parser.add_argument("--attention", default="auto")
    parser.add_argument("--json", type=Path, help="append one JSON object a row to this file")
    args = parser.parse_args()
    topology = parse_hardware(args.topology)
    # before jax is imported: this machine's own accelerators, if any, stay out of it
    os.environ.update(child_environment(topology.kind, topology.num_devices, os.environ))
    rows = []
    for packing in args.packing or ["tree", "pair", "none"]:
        row = compile_step(topology, packing, args.pairs, args.attention)
        rows.append(row)
        if args.json:
            with args.json.open("a") as file:
                file.write(json.dumps(row) + "\n")
        print(f"{packing}: {row['attention_kernels']} kernels, compiled in {row['compile_seconds']} s", file=sys.stderr)
    print(table(rows))


if __name__ == "__main__":
    main()
