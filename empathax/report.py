"""`python -m empathax.report --runs=DIR[,DIR...] --out=DIR`: evaluated models as one comparison, beside the paper's."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from empathax.errors import exit_on_error


def _flags(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m empathax.report", description=__doc__)
    add = parser.add_argument
    add(
        "--runs", required=True, help="directories with evaluation.json in them or one level below, with commas between"
    )
    add("--out", type=Path, required=True, help="directory for table.md, table.tex, table.json and report.html")
    add("--paper", default="", help="llama8b, mistral7b or gemma7b, with commas between; left out: all three")
    add("--title", default="Base, SFT and DPO compared", help="heading of the tables and the page")
    add("--seed", type=int, default=0, help="of the bootstrap")
    flags = parser.parse_args(argv)
    if not flags.runs.strip(",") or flags.seed < 0:
        parser.error("--runs needs at least one directory, --seed a number that is not negative")
    return flags


@exit_on_error
def main(argv: Sequence[str]) -> int:
    """See docs/report.md. Returns the exit code."""
    flags = _flags(argv)
    from empathax.evaluation import output, report_files, report_text
    from empathax.evaluation.report_paper import paper_models

    papers = paper_models([name for name in flags.paper.split(",") if name])
    records = report_files.read_runs([Path(name) for name in flags.runs.split(",") if name])
    output.make_directory(flags.out)
    print(f"comparing {', '.join(record.label for record in records)}", file=sys.stderr, flush=True)
    report = report_files.write_report(flags.out, records, papers, flags.title, flags.seed)
    print(report_text.markdown(report), end="")
    print(f"wrote table.md, table.tex, table.json and report.html to {flags.out}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
