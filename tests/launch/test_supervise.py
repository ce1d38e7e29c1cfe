"""launch/supervise.sh against commands that end as they are told to."""

import os
import signal
import subprocess
import sys
import time

import pytest

from tests.launch.dry_runs import ROOT

SUPERVISE = str(ROOT / "launch/supervise.sh")

# Does the next thing of a plan: a file with a line for each start, "EXIT_CODE [STEP [CHECKPOINT]]".
COMMAND = """
import os, pathlib, signal, sys
here = pathlib.Path(sys.argv[1])
plan = (here / "plan").read_text().splitlines()
started = here / "started"
count = int(started.read_text()) if started.exists() else 0
started.write_text(str(count + 1))
code, *progress = plan[min(count, len(plan) - 1)].split()
run = here / "run"
run.mkdir(exist_ok=True)
if progress:
    (run / "metrics.jsonl").write_text('{"step": %s, "stage": "sft", "split": "train", "loss": 1.0}\\n' % progress[0])
if len(progress) > 1:
    (run / "checkpoints" / "sft" / progress[1]).mkdir(parents=True)
if code.startswith("SIG"):
    os.kill(os.getpid(), getattr(signal, code))
sys.exit(int(code))
"""

# Counts its SIGTERMs, as training does: after the first it saves for a moment, then ends with 75.
WAITER = """
import pathlib, signal, sys, time
here, seen = pathlib.Path(sys.argv[1]), []
signal.signal(signal.SIGTERM, lambda number, frame: seen.append(number))
(here / "ready").touch()
while not seen:
    time.sleep(0.01)
time.sleep(0.3)
(here / "terms").write_text(str(len(seen)))
sys.exit(75)
"""


def _supervise(folder, plan, *options, restarts=2):
    (folder / "plan").write_text("\n".join(plan))
    command = [sys.executable, "-S", "-c", COMMAND, str(folder), f"--workdir={folder}/run"]
    settings = [f"--max-restarts={restarts}", "--backoff=0.01", "--max-backoff=0.02", *options]
    done = subprocess.run([SUPERVISE, *settings, "--", *command], capture_output=True, text=True, timeout=60)
    return done.returncode, int((folder / "started").read_text()), done.stderr


@pytest.mark.parametrize("code", [0, 2, 3, 4, 5, 6, 126, 127])
def test_codes_that_end_it(tmp_path, code):
    assert _supervise(tmp_path, [str(code), "0"])[:2] == (code, 1)


@pytest.mark.parametrize("code", ["75", "1", "134", "SIGKILL", "SIGABRT", "SIGTERM"])
def test_codes_that_restart_it(tmp_path, code):
    assert _supervise(tmp_path, [code, "0"])[:2] == (0, 2)


def test_a_crash_loop_ends_with_the_last_code(tmp_path):
    code, started, said = _supervise(tmp_path, ["75", "1", "SIGKILL"])
    assert (code, started) == (137, 3)
    assert "restart 2 of 2 without progress, in 0.02 s" in said
    assert said.endswith("the command ended with 137; 2 restarts in a row brought no progress: giving up\n")


def test_progress_starts_the_count_anew(tmp_path):
    assert _supervise(tmp_path, ["75 10", "75 10", "75 20", "75 30", "75 30", "75 30"], restarts=2)[:2] == (75, 6)


def test_a_checkpoint_is_progress(tmp_path):
    assert _supervise(tmp_path, ["75 20", "75 20 10", "75 20", "0"], restarts=1)[:2] == (75, 3)


def test_a_run_that_falls_back_makes_no_progress(tmp_path):
    """Crashes at 19, 17, 18, 16 past the same checkpoint are a loop, though the step differs each time."""
    assert _supervise(tmp_path, ["1 19", "1 17", "1 18", "1 16", "0"])[:2] == (1, 3)


def test_without_a_workdir_restarts_are_bounded(tmp_path):
    (tmp_path / "plan").write_text("1")
    command = [SUPERVISE, "--max-restarts=1", "--backoff=0", "--", sys.executable, "-S", "-c", COMMAND, str(tmp_path)]
    assert subprocess.run(command, capture_output=True, timeout=60).returncode == 1
    assert (tmp_path / "started").read_text() == "2"


@pytest.mark.parametrize(("options", "whom"), [([], "supervisor"), ([], "group"), (["--group-signals"], "group")])
def test_sigterm_reaches_the_command_once(tmp_path, options, whom):
    """A second one would end training without a checkpoint. No restart follows, and the code is the command's."""
    command = [SUPERVISE, *options, "--", sys.executable, "-S", "-c", WAITER, str(tmp_path)]
    with subprocess.Popen(command, start_new_session=True, stderr=subprocess.PIPE, text=True) as supervisor:
        deadline = time.monotonic() + 30
        while not (tmp_path / "ready").exists():
            assert time.monotonic() < deadline
            time.sleep(0.02)
        (os.killpg if whom == "group" else os.kill)(supervisor.pid, signal.SIGTERM)
        _, said = supervisor.communicate(timeout=30)
    assert supervisor.returncode == 75
    assert (tmp_path / "terms").read_text() == "1"
    assert "stopped by SIGTERM; the command ended with 75" in said
