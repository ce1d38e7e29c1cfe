"""The loop alone, over a step that computes nothing: when a stop is granted, a streak ends it, a state is saved."""

import os
import signal
from types import SimpleNamespace

import jax.numpy as jnp
import pytest

from empathax import sigterm
from empathax.config import MeshOptions, SftOptions, TrackingOptions
from empathax.errors import NonFiniteError
from empathax.evaluation.progress import ProgressBar
from empathax.parallel.mesh import make_mesh
from empathax.parallel.stopping import StopVote
from empathax.training.loop import Every, Recorder, train
from empathax.training.tracking import Tracker

NUM_STEPS = 6


def _terminate():
    os.kill(os.getpid(), signal.SIGTERM)
    while not sigterm.is_requested():
        pass


def _run(workdir, at=None, skipped=(), max_nonfinite_steps=3):
    """Trains; SIGTERM comes during step 3 `at` one of its places. Returns (saved steps, last step, is stopped)."""
    saved = []

    def come(place, step):
        if (place, step) == (at, 3):
            _terminate()

    def batches(start, stop, current):
        for step in range(start + 1, stop + 1):
            come("waiting for data", step)
            yield step

    streak = 0

    def step_fn(state, batch):
        nonlocal streak
        come("compiling", batch)
        streak = streak + 1 if batch in skipped else 0
        values = {"loss": jnp.nan if streak else 1.0, "grad_norm": 1.0, "skipped": float(streak > 0)}
        values |= {"nonfinite_streak": float(streak), "tokens": 8.0}
        return SimpleNamespace(step=state.step + 1), {name: jnp.float32(value) for name, value in values.items()}

    def evaluate(state):
        come("evaluating", state.step)

    with Tracker(workdir, "sft", 0, tensorboard=False) as tracker:
        recorder = Recorder(
            "sft",
            SftOptions(max_nonfinite_steps=max_nonfinite_steps),
            TrackingOptions(),
            tracker,
            ProgressBar("sft", NUM_STEPS, 0, enabled=False),
            workdir / "profile",
        )
        with sigterm.listening():
            state, is_stopped = train(
                SimpleNamespace(step=0),
                step_fn,
                batches,
                NUM_STEPS,
                recorder=recorder,
                evaluate=Every(1, evaluate),
                save=Every(2, lambda state: saved.append(state.step)),
                stop=_voting(),
            )
    return saved, state.step, is_stopped


def _voting():
    """A stop can be noted from the first step on, as in a run whose first vote was cast."""
    vote = StopVote(make_mesh(MeshOptions()))
    sigterm.hold()
    return vote


@pytest.mark.parametrize("place", ["waiting for data", "compiling", "evaluating"])
def test_sigterm_is_granted_after_the_step_it_came_in(tmp_path, place):
    assert _run(tmp_path, place) == ([2, 3], 3, True)


def test_without_a_signal_it_goes_to_the_end(tmp_path):
    assert _run(tmp_path) == ([2, 4], NUM_STEPS, False)


def test_nothing_is_saved_within_a_streak(tmp_path, capsys):
    assert _run(tmp_path, skipped=(3, 4)) == ([2], NUM_STEPS, False)
    said = capsys.readouterr().err
    assert [f"step {step}: loss not finite; the update was skipped" in said for step in (2, 3, 4, 5)] == [0, 1, 1, 0]


def test_a_streak_that_is_too_long_ends_the_run(tmp_path):
    with pytest.raises(NonFiniteError, match="sft: 3 updates in a row up to step 5 were skipped") as caught:
        _run(tmp_path, skipped=(3, 4, 5))
    assert caught.value.exit_code == 6
