"""`make faults`: the tests of every row of matrix.py, then once more with the row's detectors disabled.

Prints a line a row. Ends with 1 if a row's tests fail, or if one of those that need a detector passes without it.
FLAGS="--rows=4,9 --why" runs some rows, and says what each test failed with.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tests.faults import disabled, outcomes
from tests.faults.matrix import ROWS, Detector, Row

ROOT = Path(__file__).parent.parent.parent
AT_ONCE = 2
LIMIT_SECONDS = 900
ALONE = ("parallel/test_processes.py", "training/test_run.py")  # minutes each: they begin first


@dataclass(frozen=True)
class Ran:
    """One pytest process: outcome and message of each test, seconds, and the end of its output."""

    tests: dict[str, tuple[str, str]]
    seconds: float
    output: str

    def of(self, name: str) -> dict[str, str]:
        """Outcomes of the tests that `name` (a file, a function or one case of it) stands for."""
        wanted = f"tests/{name}"
        return {
            test: outcome
            for test, (outcome, _) in self.tests.items()
            if test == wanted or test.startswith((f"{wanted}[", f"{wanted}::"))
        }


def run(names: Sequence[str], detector: Detector | None = None) -> Ran:
    """Runs tests in a process of their own, with `detector` disabled."""
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "outcomes.jsonl"
        log.touch()
        environment = os.environ | {
            outcomes.VARIABLE: str(log),
            "JAX_PLATFORMS": "cpu",
            "PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH")))),
        }
        plugins = ["-p", "tests.faults.outcomes", "-p", "no:cacheprovider"]
        if detector:
            environment[disabled.VARIABLE] = f"{detector.target}={detector.replacement}"
            plugins += ["-p", "tests.faults.disabled"]
        command = [sys.executable, "-m", "pytest", *plugins, f"--basetemp={folder}/tests", *_arguments(names)]
        started = time.monotonic()
        try:
            done = subprocess.run(
                command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=LIMIT_SECONDS
            )
            output = (done.stdout + done.stderr)[-1500:]
        except subprocess.TimeoutExpired:
            output = f"not done within {LIMIT_SECONDS} s"
        lines = [json.loads(line) for line in log.read_text().splitlines()]
        tests: dict[str, tuple[str, str]] = {}
        for line in lines:  # a test that failed and then fails to clean up too has failed
            failed_before = tests.get(line["test"], ("", ""))[0] == "failed"
            kind = line["outcome"] if line["when"] == "call" or line["outcome"] != "failed" else "error"
            tests[line["test"]] = tests[line["test"]] if failed_before else (kind, line["message"])
        return Ran(tests, time.monotonic() - started, output)


def _arguments(names: Sequence[str]) -> list[str]:
    """Without what is part of another argument."""
    kept = dict.fromkeys(names)
    for name in names:
        file, _, _ = name.partition("::")
        function, _, case = name.partition("[")
        if (name != file and file in kept) or (case and function in kept):
            kept.pop(name, None)
    return [f"tests/{name}" for name in kept]


def without(ran: Ran, detector: Detector) -> list[str]:
    """The tests that need `detector` and did not fail without it, with what they did."""
    unmoved = []
    for name in detector.tests:
        found = ran.of(name)
        if "failed" not in found.values():
            unmoved.append(f"{name}: {', '.join(sorted(set(found.values()))) or 'not run'}")
    return unmoved


def _on(row: Row, ran: Sequence[Ran]) -> list[str]:
    """The row's tests that did not pass, with what they did."""
    problems = []
    for name in row.all_tests:
        found = {test: outcome for part in ran for test, outcome in part.of(name).items()}
        bad = [f"{test}: {outcome}" for test, outcome in found.items() if outcome != "passed"]
        problems += bad if found else [f"{name}: not run"]
    return problems


def main(argv: Sequence[str]) -> int:
    """Returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--rows", default="", help="names of rows, with commas; all by default")
    parser.add_argument("--why", action="store_true", help="what the tests fail with when a detector is disabled")
    parser.add_argument("--table", action="store_true", help="print the table of docs/reliability.md, and end")
    flags = parser.parse_args(argv)
    if flags.table:
        print("\n".join(row.line for row in ROWS))
        return 0
    rows = [row for row in ROWS if not flags.rows or row.name in flags.rows.split(",")]
    names = list(dict.fromkeys(name for row in rows for name in row.all_tests))
    groups = [[name for name in names if name.startswith(file)] for file in ALONE]
    groups.append([name for name in names if not name.startswith(ALONE)])
    started, failed = time.monotonic(), 0
    with ThreadPoolExecutor(AT_ONCE) as pool:
        enabled = [pool.submit(run, group) for group in groups if group]
        switched_off: dict[Detector, Future[Ran]] = {
            detector: pool.submit(run, detector.tests, detector) for row in rows for detector in row.detectors
        }
        ran = [future.result() for future in enabled]
        for row in rows:
            failed += _report(row, ran, {one: switched_off[one].result() for one in row.detectors}, flags.why)
    print(f"{len(rows)} rows, {failed} not proven, {time.monotonic() - started:.0f} s", flush=True)
    return min(failed, 1)


def _report(row: Row, ran: Sequence[Ran], switched_off: dict[Detector, Ran], why: bool) -> bool:
    """Prints the row's line, and what is wrong; returns whether something is."""
    problems = [f"with its detectors: {problem}" for problem in _on(row, ran)]
    on = "passes" if not problems else "FAILS"
    unmoved = [
        f"without {detector.target}: {problem}\n{off.output}"
        for detector, off in switched_off.items()
        for problem in without(off, detector)
    ]
    off = "fails, as it should" if not unmoved else "NOT NOTICED"
    seconds = sum(one.seconds for one in switched_off.values())
    print(f"{row.name:>2}  with: {on:6}  without: {off:19}  {seconds:4.0f} s  {row.fault}", flush=True)
    for problem in (*problems, *unmoved):
        print(f"      {problem}", flush=True)
    if why:
        for detector, one in switched_off.items():
            for test, (outcome, message) in one.tests.items():
                print(f"      {detector.target} -> {test.rpartition('::')[2]} {outcome}: {message[:160]!r}")
    return bool(problems or unmoved)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
