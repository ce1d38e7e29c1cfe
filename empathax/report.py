"""`python -m empathax.report --runs=DIR[,DIR...] --out=DIR`: evaluated models as one comparison, beside the paper's."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from empathax.config.arguments import file_path, path_problem, whole_number
from empathax.errors import exit_on_error
from empathax.shown import quoted


def _flags(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m empathax.report", description=__doc__)
    add = parser.add_argument
    add(
        "--runs", required=True, help="directories with evaluation.json in them or one level below, with commas between"
    )
    add("--out", type=file_path, required=True, help="directory for table.md, table.tex, table.json and report.html")
    add("--paper", default="", help="llama8b, mistral7b or gemma7b, with commas between; left out: all three")
    add("--title", default="Base, SFT and DPO compared", help="heading of the tables and the page")
    add("--seed", type=whole_number(), default=0, help="of the bootstrap")
    add("--judge", default="", metavar="URL", help="an OpenAI-compatible server that compares every row with the first")
    add("--judge-model", default="", help="the judge's name there")
    add("--judge-key-variable", default="OPENAI_API_KEY", help="the environment variable with its API key")
    add("--response-cache", type=file_path, help="directory in which the judge's answers are kept")
    flags = parser.parse_args(argv)
    if not flags.runs.strip(","):
        parser.error("--runs needs at least one directory")
    for name in flags.runs.split(","):
        if problem := path_problem(name):
            parser.error(f"--runs={quoted(name)} cannot be a path: {problem}")
    return flags


@exit_on_error
def main(argv: Sequence[str]) -> int:
    """See docs/report.md. Returns the exit code."""
    flags = _flags(argv)
    from empathax.evaluation import output
    from empathax.evaluation.judging.chat_server import server_of_flags
    from empathax.evaluation.report import files, text
    from empathax.evaluation.report.paper import paper_models

    judge = server_of_flags("judge", vars(flags))
    papers = paper_models([name for name in flags.paper.split(",") if name])
    records = files.read_runs([Path(name) for name in flags.runs.split(",") if name])
    output.make_directory(flags.out)
    print(f"comparing {', '.join(record.label for record in records)}", file=sys.stderr, flush=True)
    if judge:
        records = files.judged(judge, records)
        print(judge.tally.in_words(), file=sys.stderr)
    report = files.write_report(flags.out, records, papers, flags.title, flags.seed)
    print(text.markdown(report), end="")
    print(f"wrote table.md, table.tex, table.json and report.html to {flags.out}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
