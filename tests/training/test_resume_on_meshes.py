"""A checkpoint of eight devices goes on on others: the same digests, the same losses."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from empathax.config import Config, MeshOptions, SftOptions
from empathax.models.transformer import abstract_params, init_params, logical_axes, placed
from empathax.models.weights.digests import leaf_digests
from empathax.parallel.mesh import make_mesh
from empathax.parallel.rules import batch_sharding, param_shardings
from empathax.training.checkpoint import StageCheckpoints, newest_checkpoint, restore_state
from empathax.training.optimizer import make_optimizer
from empathax.training.state import abstract_state, init_state, state_shardings
from empathax.training.step import make_train_step
from tests.training.tiny_rows import MODEL, dialogue_batch, with_steps

CONFIG = Config(sft=SftOptions(learning_rate=1e-2))
CONFIG = dataclasses.replace(CONFIG, model=dataclasses.replace(CONFIG.model, vocab_chunk=128))
MESHES = {"8": MeshOptions(data=1, fsdp=8, tensor=1), "4x2": MeshOptions(data=1, fsdp=4, tensor=2), "1": None}
BATCH = with_steps(dialogue_batch(8), 1)


def _on(options):
    """(compiled step, abstract state with its shardings, the batch) on a mesh; on one device for None."""
    mesh = make_mesh(options or MeshOptions(data=1, fsdp=1), jax.devices()[: 8 if options else 1])
    shardings = param_shardings(mesh, abstract_params(MODEL), logical_axes(MODEL))
    tx, schedule = make_optimizer(CONFIG.sft, 12)
    abstract = abstract_state(abstract_params(MODEL), tx)
    of_state = state_shardings(abstract, shardings)
    step = make_train_step("sft", MODEL, CONFIG, tx, schedule, shardings=of_state)
    start = init_state(jax.device_put(init_params(MODEL, 0), shardings), tx, of_state)
    return step, placed(abstract, of_state), jax.device_put(BATCH, batch_sharding(mesh, 1)), start


def _losses(step, state, batch, count=10):
    losses = []
    for _ in range(count):
        state, scalars = step(state, batch)
        losses.append(float(scalars["loss"]))
    return losses, state


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Two steps on eight devices, saved; the next ten losses there, and the digests of what was saved."""
    directory = tmp_path_factory.mktemp("run") / "sft"
    step, _, batch, state = _on(MESHES["8"])
    _, state = _losses(step, state, batch, 2)
    digests = leaf_digests(state)
    with StageCheckpoints(directory) as checkpoints:
        checkpoints.save(state, {"finished": False})
        checkpoints.wait()
    return directory, digests, _losses(step, state, batch)[0]


@pytest.mark.parametrize("name", ["4x2", "1"])
def test_the_next_ten_losses_are_the_same(saved, name):
    directory, digests, losses = saved
    step, abstract, batch, _ = _on(MESHES[name])
    _, state = newest_checkpoint(directory, lambda step: restore_state(step, abstract))
    assert leaf_digests(state) == digests
    for leaf, wanted in zip(jax.tree.leaves(state), jax.tree.leaves(abstract), strict=True):
        assert leaf.sharding.is_equivalent_to(wanted.sharding, leaf.ndim)
    np.testing.assert_allclose(_losses(step, state, batch)[0], losses, rtol=1e-5)


def test_a_digest_sees_shards_that_changed_places():
    """As a restore does that gives a device another one's part: the same values, in another order."""
    whole = jnp.arange(64, dtype=jnp.float32).reshape(8, 8)
    assert leaf_digests({"a": whole}) != leaf_digests({"a": whole[jnp.array([1, 0, 2, 3, 4, 5, 6, 7])]})
