"""A process that is killed in the middle of a save leaves steps that are whole, and nothing else for long."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from empathax.training.checkpoint import newest_checkpoint, restore_state
from empathax.training.state import init_state
from tests.launch.dry_runs import ROOT


@pytest.mark.parametrize(("place", "step"), [("before the commit", 1), ("while an old step goes", 2)])
def test_the_newest_whole_step_is_there_and_what_is_half_goes(tmp_path, place, step):
    command = [sys.executable, str(Path(__file__).with_name("killed_save.py")), str(tmp_path), place]
    search = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=os.environ | {"PYTHONPATH": search})
    assert done.returncode == -signal.SIGKILL, done.stderr
    left = {path.name for path in tmp_path.iterdir()}
    assert str(step) in left
    assert len(left) == 2  # and half of the other one
    like = init_state({"kernel": jnp.zeros((3, 4))}, optax.adam(1e-3))
    found, state = newest_checkpoint(tmp_path, lambda step: restore_state(step, like))
    assert found.number == step
    np.testing.assert_array_equal(jax.device_get(state.params["kernel"]), np.arange(12.0).reshape(3, 4))
    assert [path.name for path in tmp_path.iterdir()] == [str(step)]
