"""Damaged files against every reader of users' files: each must end in a sentence, soon and in little memory.

Command:  python -m tests.faults.fuzz_readers --minutes=5 --seed=1 [--reader=config] [--case=READER:SEED]

Cases run in child processes, many in each. A finding is an exception that is no EmpathaxError, a case of more than 10
seconds, or growth of more than 1 GB. Each is printed with its reader and seed; `--case` runs that one alone, with its
traceback. Every finding becomes a fixed case of test_readers.py beside this file.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import resource
import selectors
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path

SECONDS, GROWTH_BYTES, CASES_A_CHILD = 10.0, 1 << 30, 200


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--reader", default="")
    parser.add_argument("--case", default="")
    parser.add_argument("--child", nargs=3, metavar=("READER", "FIRST", "COUNT"))
    flags = parser.parse_args(argv)
    if flags.child:
        _run_cases(flags.child[0], int(flags.child[1]), int(flags.child[2]))
        return 0
    if flags.case:
        name, _, seed = flags.case.partition(":")
        return _run_one(name, int(seed))
    return _search(flags.minutes, flags.seed, flags.reader)


def _search(minutes: float, seed: int, only: str) -> int:
    """Children over all readers in turn until the time is up; the number of findings, at most 1, is the exit code."""
    from tests.faults.readers import READERS

    end, counts, findings = time.time() + 60 * minutes, Counter[str](), set()
    for round_number in itertools.count():
        for name in [only] if only else READERS:
            if time.time() > end:
                print(f"{sum(counts.values()):,} cases ({dict(counts)}), {len(findings)} kinds of findings")
                return min(1, len(findings))
            first = 1_000_000 * seed + round_number * CASES_A_CHILD
            for case, words in _watch(name, first):
                counts[name] += 1
                kind = f"{name} {words.splitlines()[-1][:160]}" if words else ""
                if words and kind not in findings:
                    findings.add(kind)
                    print(f"--case={name}:{case}\n{words}\n", flush=True)
    return 0


def _watch(name: str, first: int):
    """(seed, what was found or "") of each case of one child, and of another one where that hangs or dies."""
    stop = first + CASES_A_CHILD
    while first < stop:
        command = [sys.executable, "-m", "tests.faults.fuzz_readers", "--child", name, str(first), str(stop - first)]
        child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        assert child.stdout is not None
        with child, selectors.DefaultSelector() as selector:
            selector.register(child.stdout, selectors.EVENT_READ)
            patience = 120.0  # for its imports
            while first < stop:
                line = child.stdout.readline() if selector.select(patience) else b"hang"
                if line in (b"hang", b""):
                    child.kill()
                    yield first, f"more than {patience:g} s" if line else f"the process ended with {child.wait()}"
                    first += 1
                    break
                if line.startswith(b"{"):
                    if words := json.loads(line)["found"]:
                        yield first, words
                    else:
                        yield first, ""
                    first += 1
                patience = SECONDS
            child.kill()


def _run_cases(name: str, first: int, count: int) -> None:
    """The child: a line "ready", then one of JSON for each case."""
    from tests.faults.readers import READERS, originals

    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        originals(root / "valid")
        READERS[name].try_case(root / "valid", root / "case", random.Random(0), damaged=False)
        _limit_memory()
        print("ready", flush=True)
        for seed in range(first, first + count):
            shutil.rmtree(root / "case", ignore_errors=True)
            print(json.dumps({"found": _case(name, root, seed)}), flush=True)


def _limit_memory() -> None:
    """Twice the growth that is a finding: the machine is safe whatever a reader does."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + 2 * GROWTH_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (most, most))


def _case(name: str, root: Path, seed: int) -> str:
    """What is wrong with how a reader takes one damaged file; "" if nothing."""
    from empathax.errors import EmpathaxError
    from tests.faults.readers import READERS

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        READERS[name].try_case(root / "valid", root / "case", random.Random(seed), damaged=True)
    except EmpathaxError as error:
        text = str(error)
        if "MemoryError" in text:
            return f"takes too much memory: {text[:200]}"
        if len(text) > 20_000:
            return f"a message of {len(text):,} characters"
    except SystemExit as error:
        return "" if error.code == 2 else f"exit {error.code}"
    except BaseException as error:
        frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "/empathax/" in frame.filename]
        place = f"{Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else "?"
        return f"{place} {type(error).__name__}: {str(error)[:300]!r}"
    grown = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    return f"grew by {grown >> 20} MB" if grown > GROWTH_BYTES else ""


def _run_one(name: str, seed: int) -> int:
    from empathax.errors import EmpathaxError
    from tests.faults.readers import READERS, originals

    root = Path(tempfile.mkdtemp())
    originals(root / "valid")
    print(f"files in {root / 'case'}")
    try:
        READERS[name].try_case(root / "valid", root / "case", random.Random(seed), damaged=True)
    except EmpathaxError as error:
        print(f"{type(error).__name__}: {error}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
