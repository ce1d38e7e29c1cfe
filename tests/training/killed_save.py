"""Saves step 1, then step 2, and is killed at a place of the second save: `python killed_save.py DIRECTORY PLACE`."""

import os
import signal
import sys
from pathlib import Path

import jax.numpy as jnp
import optax

from empathax.training import checkpoint
from empathax.training.checkpoint import StageCheckpoints
from empathax.training.state import init_state

directory, place = Path(sys.argv[1]), sys.argv[2]


def die(*args, **kwargs):
    os.kill(os.getpid(), signal.SIGKILL)


state = init_state({"kernel": jnp.arange(12.0).reshape(3, 4)}, optax.adam(1e-3))
with StageCheckpoints(directory, keep=1) as checkpoints:
    checkpoints.save(state.replace(step=jnp.int32(1)), {"finished": False})
    checkpoints.wait()
    if place == "before the commit":
        checkpoint.seal_files = die
    elif place == "while an old step goes":
        checkpoint.shutil.rmtree = die
    checkpoints.save(state.replace(step=jnp.int32(2)), {"finished": False})
    checkpoints.wait()
