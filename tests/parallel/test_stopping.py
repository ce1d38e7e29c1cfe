"""SIGTERM inside `listening`: noted at once, never fatal the first time, and no process waits for ever for another."""

import os
import signal
import subprocess
import sys
import time

import jax
import pytest

from empathax.config import MeshOptions
from empathax.parallel.mesh import make_mesh
from empathax.parallel.stopping import StopVote, is_requested, listening

STUCK = """
import os, signal, sys, threading, time
import jax
jax.process_count = lambda: int(sys.argv[1])
from empathax.parallel.stopping import listening
with listening(float(sys.argv[2])):
    for _ in range(int(sys.argv[3])):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.3)
    lock = threading.Lock()
    lock.acquire()
    lock.acquire(timeout=float(sys.argv[4]))  # no bytecode runs here, and so no signal handler
print("went on")
"""


def _child(processes, limit, signals, waits):
    command = [sys.executable, "-c", STUCK, *map(str, (processes, limit, signals, waits))]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def test_a_process_that_is_stuck_gives_up_and_shows_where():
    done = _child(2, 1.0, 1, 50)
    assert done.returncode == 75
    assert "not stopped within 1 s of SIGTERM" in done.stderr
    assert 'File "<string>"' in done.stderr


def test_a_process_alone_may_take_its_time():
    done = _child(1, 0.1, 1, 1.0)
    assert (done.returncode, done.stdout) == (0, "went on\n")


def test_a_second_signal_ends_it_at_once():
    started = time.monotonic()
    assert _child(1, 50.0, 2, 50).returncode == 128 + signal.SIGTERM
    assert time.monotonic() - started < 40


def test_a_signal_is_seen_in_the_same_step_and_forgotten_afterwards():
    vote = StopVote(make_mesh(MeshOptions()))
    before = signal.getsignal(signal.SIGTERM)
    with listening(), listening():
        assert not vote.vote()
        os.kill(os.getpid(), signal.SIGTERM)
        assert is_requested()
        assert vote.vote()
        assert vote.last_vote()
    assert not is_requested()
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize("asked", [False, True])
def test_the_devices_count_the_votes(monkeypatch, asked):
    """As in a job of several processes: the answer is that of the vote before."""
    vote = StopVote(make_mesh(MeshOptions()))
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr("empathax.parallel.stopping.is_requested", lambda: asked)
    assert vote.vote() is False
    assert vote.vote() is asked
    assert vote.last_vote() is asked
