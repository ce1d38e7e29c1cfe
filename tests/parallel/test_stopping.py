"""A stop is agreed on by votes, in the same step on all processes."""

import os
import signal

import jax
import pytest

from empathax import sigterm
from empathax.config import MeshOptions
from empathax.parallel.mesh import make_mesh
from empathax.parallel.stopping import StopVote


def test_a_signal_is_seen_in_the_same_step_and_forgotten_afterwards():
    vote = StopVote(make_mesh(MeshOptions()))
    before = signal.getsignal(signal.SIGTERM)
    with sigterm.listening(), sigterm.listening():
        assert not vote.vote()
        os.kill(os.getpid(), signal.SIGTERM)
        while not sigterm.is_requested():
            pass
        assert vote.vote()
        assert vote.last_vote()
    assert not sigterm.is_requested()
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize("asked", [False, True])
def test_the_devices_count_the_votes(monkeypatch, asked):
    """As in a job of several processes: the answer is that of the vote before."""
    vote = StopVote(make_mesh(MeshOptions()))
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr("empathax.sigterm.is_requested", lambda: asked)
    assert vote.vote() is False
    assert vote.vote() is asked
    assert vote.last_vote() is asked
