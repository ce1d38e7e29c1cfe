"""The table of docs/plan.md: `plan` for the ready configs on four topologies, one compile after another.

    python -m tests.benchmarks.plan_table              # the cells that plan_results.jsonl lacks, then the table
    python -m tests.benchmarks.plan_table --only-print

Steps of 32 rows of 2,048 tokens throughout (64 for the 70B model). Needs the extra `plan`, and for GPUs the packages
that `plan` names where they are missing.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from empathax.config import to_dict
from empathax.config.flags import load_config
from empathax.planning.child_process import Request, run_plan
from empathax.planning.plan_text import gib, markdown_table

ROOT = Path(__file__).parents[2]
RESULTS = Path(__file__).with_name("plan_results.jsonl")
TOPOLOGIES = ("v5e:4x4", "v5p:2x2x2", "v6e:4x2", "h100:8")
ROWS = ("data.row_length=2048", "sft.rows_per_batch=32", "dpo.rows_per_batch=32", "eval.rows_per_batch=32")
LARGE_ROWS = (ROWS[0], "dpo.rows_per_batch=64", "eval.rows_per_batch=64")
MOMENTS = ("dpo.first_moment_dtype=float32",)  # of every cell; llama8b_dpo alone would keep one in bfloat16
KEPT = (
    "topology", "num_devices", "num_parameters", "rows_per_batch", "row_length", "trained_slots", "units_per_step",
    "fits", "hbm_bytes", "missing_bytes", "bytes_per_device", "collectives", "model_flops_per_step", "roofline",
    "compile_seconds",
)  # fmt: skip


@dataclass(frozen=True)
class Cell:
    """One plan of the table; `changes` are settings beside the config's and ROWS."""

    config: str
    topology: str
    changes: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """What the results call it."""
        return " ".join([self.config, self.topology, *self.changes])


def cells() -> list[Cell]:
    """Every cell, the acceptance ones first."""
    first = [
        Cell("llama8b_dpo", "v5e:4x4"),
        Cell("llama8b_dpo", "v5e:4x4", ("dpo.reference=resident",)),
        Cell("llama70b_dpo", "v5p:4x4x4"),
        Cell("llama70b_lora_dpo", "v5p:4x4x4"),
    ]
    rest = [
        Cell(f"{model}_{stage}", topology)
        for stage in ("dpo", "sft")
        for topology in TOPOLOGIES
        for model in ("llama8b", "mistral7b", "gemma7b")
    ]
    return [*first, *(cell for cell in rest if cell not in first)]


def measure(cell: Cell) -> dict[str, Any]:
    """The plan of a cell's train step."""
    rows = LARGE_ROWS if cell.config.startswith("llama70b") else ROWS
    settings = [f"--config.{change}" for change in (*rows, *MOMENTS, *cell.changes)]
    config, _ = load_config([f"--config={ROOT}/configs/{cell.config}.py", *settings])
    request = Request(to_dict(config), config.stages[-1], cell.topology, ("train",))
    plan = run_plan(request, lambda text: print(text, file=sys.stderr, flush=True))
    train = plan["parts"]["train"]
    extra = {name: train[name] for name in ("collectives_of_logits", "attention_kernels", "refused_by_compiler")}
    return {"cell": cell.name, **{name: plan[name] for name in KEPT}, **extra}


def table(results: dict[str, dict[str, Any]]) -> str:
    """The cells that there are, as Markdown; the others named below."""
    rows = [_row(cell, results[cell.name]) for cell in cells() if cell.name in results]
    head = ["config", "topology", "state", "gradients", "temporaries", "total", "of", "fits", "sent", "compiled in"]
    missing = [cell.name for cell in cells() if cell.name not in results]
    note = f"\n\nNot run: {', '.join(missing)}." if missing else ""
    return markdown_table(head, rows) + note


def _row(cell: Cell, result: dict[str, Any]) -> list[str]:
    sizes = result["bytes_per_device"]
    state = sum(sizes.get(kind, 0) for kind in ("frozen", "parameters", "optimizer", "reference", "batch"))
    sent = sum(entry["bytes"] for entry in result["collectives"].values())
    return [
        " ".join([cell.config, *cell.changes]),
        cell.topology,
        *(gib(size) for size in (state, sizes["gradients"], sizes["temporaries"], sizes["total"], result["hbm_bytes"])),
        "yes" if result["fits"] else f"no, {gib(result['missing_bytes'])} missing",
        gib(sent) if sent else "-",
        f"{result['compile_seconds']:.0f} s",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only-print", action="store_true", help="compile nothing")
    parser.add_argument("--again", default="", help="compile cells with this in their name again")
    args = parser.parse_args()
    lines = RESULTS.read_text().splitlines() if RESULTS.exists() else []
    results = {result["cell"]: result for result in map(json.loads, lines)}
    for cell in cells():
        stale = bool(args.again) and args.again in cell.name
        if args.only_print or (cell.name in results and not stale):
            continue
        results[cell.name] = measure(cell)
        RESULTS.write_text("".join(json.dumps(result) + "\n" for result in results.values()))
    print(table(results))


if __name__ == "__main__":
    main()
