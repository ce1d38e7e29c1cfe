"""SIGTERM: at once where nothing would be lost, noted where something is to be saved, never waited for for ever."""

import os
import signal
import subprocess
import sys
import time

import pytest

from empathax import sigterm
from tests.launch.dry_runs import ROOT

CHILD = """
import os, signal, sys, threading, time
from empathax import sigterm
held, limit, signals, waits = sys.argv[1:]
with sigterm.listening():
    if held == "held":
        sigterm.hold(float(limit))
    for _ in range(int(signals)):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.3)
    lock = threading.Lock()
    lock.acquire()
    lock.acquire(timeout=float(waits))  # no bytecode runs here, and so no signal handler
print("went on")
"""


def _child(held, limit, signals, waits):
    command = [sys.executable, "-c", CHILD, *map(str, (held, limit, signals, waits))]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def test_a_process_that_is_stuck_gives_up_and_shows_where():
    done = _child("held", 1.0, 1, 50)
    assert done.returncode == 75
    assert "not stopped within 1 s of SIGTERM" in done.stderr
    assert 'File "<string>"' in done.stderr


def test_without_a_limit_it_may_take_its_time():
    done = _child("held", 0, 1, 1.0)
    assert (done.returncode, done.stdout) == (0, "went on\n")


def test_where_nothing_would_be_lost_it_ends_at_once():
    done = _child("free", 0, 1, 50)
    assert (done.returncode, done.stdout) == (75, "")
    assert "run the same command again to go on" in done.stderr


def test_a_stop_is_noted_while_it_is_held():
    with sigterm.listening():
        sigterm.hold()
        os.kill(os.getpid(), signal.SIGTERM)
        deadline = time.monotonic() + 5
        while not sigterm.is_requested():
            assert time.monotonic() < deadline
            time.sleep(0.01)


def test_a_second_signal_ends_it_at_once():
    started = time.monotonic()
    assert _child("held", 50.0, 2, 50).returncode == 128 + signal.SIGTERM
    assert time.monotonic() - started < 40


def _train(tmp_path, **environment):
    command = [sys.executable, "-m", "empathax.train", f"--config={ROOT}/configs/demo.py", f"--workdir={tmp_path}/run"]
    return subprocess.Popen(
        command,
        cwd=ROOT,
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize("huge_pages", ["0", "1"], ids=["exec", "no exec"])
@pytest.mark.parametrize("seconds", [0.3, 1.0, 3.0])
def test_the_command_ends_with_75_whatever_it_is_importing_or_reading(tmp_path, seconds, huge_pages):
    """0.3 s are enough for Python to start; with "exec" the command starts itself again first."""
    tunables = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=0"} if huge_pages == "1" else {"GLIBC_TUNABLES": ""}
    process = _train(tmp_path, **tunables)
    time.sleep(seconds)
    process.terminate()
    _, said = process.communicate(timeout=60)
    assert process.returncode == 75, said
    assert "stopped by SIGTERM" in said
