"""Speed and memory side by side with TRL, transformers and torch, in one run.

    python -m tests.benchmarks [--only=NAME,...] [--quick] [--steps=5] [--corpora=../shared/data]
                               [--out=tests/benchmarks/results.json or quick.json]

Names: the works of works.py and the measurements of our own in SCRIPTS; without --only, all of them. Corpora are read
from folders (esconv, empathy_by_design) under --corpora; a work whose corpus is not there is left out with a sentence,
and the command then ends with exit status 1, as it does when a work fails.
The results file keeps the works that this run did not measure. `python -m tests.benchmarks.table FILE` makes Markdown.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.benchmarks import results
from tests.benchmarks.race import ChildFailed, Record, race, results_of, run_module, shares_of_dense
from tests.benchmarks.results import OURS, Result
from tests.benchmarks.task import Task
from tests.benchmarks.works import DENSE, WORKS, Work

SCRIPTS = {  # name -> module and arguments; each writes results of its own
    "scaling": [
        ("scaling", "--curve=row_length"),
        ("scaling", "--curve=turns"),
        ("scaling", "--curve=vocabulary"),
        ("scaling", "--curve=attention"),
        ("scaling", "--curve=long_row"),
    ],
    "equality": [("equality",)],
}
CORPUS = {"equality": "esconv", **{work.name: work.corpus for work in WORKS}}  # name -> what it reads
NAMES = (*(work.name for work in WORKS), *SCRIPTS)


class LeftOut(Exception):
    """A work's corpus is missing."""


def main() -> None:
    """Runs what the flags name; writes and prints the results."""
    args = _arguments()
    names = NAMES if args.only is None else args.only.split(",")
    if unknown := sorted(set(names) - set(NAMES)):
        sys.exit(f"--only={','.join(unknown)}: no such work; there are {', '.join(NAMES)}")
    failed = False
    measured_now: list[Result] = []
    with tempfile.TemporaryDirectory(prefix="benchmarks-") as folder:
        for name in [name for name in NAMES if name in names]:
            print(f"{name} ...", flush=True)
            found: list[Result] = []
            try:
                for row in _run(name, args, folder):
                    found.append(row)  # noqa: PERF402  what came before a failure is kept
            except (ChildFailed, LeftOut) as error:
                failed = True
                print(error, file=sys.stderr)
            found = results.stamped(found)
            measured_now += found
            results.write(args.out, _in_order(results.merged(results.read(args.out), found)))
    print(results.as_text(_in_order(measured_now)))
    sys.exit(1 if failed else 0)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__.splitlines()[0])
    parser.add_argument("--only", help=f"some of {', '.join(NAMES)}")
    parser.add_argument("--quick", action="store_true", help="two measured steps, smaller sizes")
    parser.add_argument("--steps", type=int, default=0, help="measured steps of each side (5; with --quick 2)")
    parser.add_argument("--corpora", type=Path, default=Path("../shared/data"))
    parser.add_argument("--out", type=Path, help="default: results.json here, or quick.json with --quick")
    args = parser.parse_args()
    args.out = args.out or Path(__file__).parent / ("quick.json" if args.quick else "results.json")
    return args


def _run(name: str, args: argparse.Namespace, folder: str) -> Iterator[Result]:
    corpus = CORPUS.get(name)
    if corpus and not (args.corpora / corpus).is_dir():
        raise LeftOut(f"{name} is left out: there is no {args.corpora / corpus}; say --corpora=DIR")
    elif name in SCRIPTS:
        for module, *flags in SCRIPTS[name]:
            yield from _run_script(module, flags, args, folder)
    else:
        yield from _run_work(next(work for work in WORKS if work.name == name), args, folder)


def _run_script(module: str, flags: Sequence[str], args: argparse.Namespace, folder: str) -> list[Result]:
    out = Path(folder) / "script.json"
    out.unlink(missing_ok=True)
    quick = ["--quick"] if args.quick else []
    run_module(module, *flags, *quick, f"--corpora={args.corpora.absolute()}", f"--out={out}")
    return results.read(out)


def _run_work(work: Work, args: argparse.Namespace, folder: str) -> Iterator[Result]:
    """Our side against each rival in turn; only two are ever loaded at once."""
    options = {**work.options, **(work.also if args.quick else {}), "corpus": work.corpus}
    steps = 1 + (args.steps or (2 if args.quick else 5))
    task = Task(work.name, folder, str(args.corpora.absolute()), steps, options)
    if options["kind"] != "matmul":
        run_module("prepare", task.to_json())
    for rival in work.rivals:
        print(f"  against {rival.framework}", flush=True)
        sides = (work.ours, rival)
        trains = options["kind"] in ("sft", "dpo")
        *records, dense = race(task, (*sides, DENSE)) if trains else (*race(task, sides), None)
        yield from results_of(work.name, sides, records)
        if dense:
            yield from shares_of_dense(work.name, OURS, rival.framework, records[0], dense)
        if options["kind"] == "generation":
            yield from _token_gaps(task, rival.framework, records)


def _token_gaps(task: Task, rival: str, records: Sequence[Record]) -> list[Result]:
    prompts = json.loads(task.data_file.read_text())
    ours, theirs = (record.last["replies"] for record in records)
    cases = [
        case for batch in zip(prompts, ours, theirs, strict=True) for case in zip(*batch, strict=True)
    ]  # (prompt, our reply, their reply)
    cases_file, out = Path(task.folder) / "cases.json", Path(task.folder) / "gaps.json"
    cases_file.write_text(json.dumps(cases))
    flags = {"work": task.work, "rival": rival, "model": task.model_dir, "cases": cases_file, "out": out}
    run_module("token_gap", *(f"--{name}={value}" for name, value in flags.items()))
    return results.read(out)


def _in_order(rows: Sequence[Result]) -> list[Result]:
    return sorted(rows, key=lambda row: NAMES.index(row.work) if row.work in NAMES else len(NAMES))


if __name__ == "__main__":
    main()
