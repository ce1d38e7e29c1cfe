"""Checkpoints: what is saved comes back bit for bit; what cannot be continued is refused with its reason."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from empathax.errors import CheckpointError
from empathax.models.weights.orbax import latest_checkpoint, read_meta, restore_params
from empathax.training.checkpoint import StageCheckpoints
from empathax.training.state import init_state


def _state(seed=0, dtype=jnp.float32, tx=None, width=4):
    params = {"a": {"kernel": jax.random.normal(jax.random.key(seed), (3, width), dtype)}}
    return init_state(params, tx or optax.adam(1e-3))


def _save(directory, state, finished=False, keep=2):
    with StageCheckpoints(directory, keep) as checkpoints:
        checkpoints.save(state, {"finished": finished, "model": "tiny"})
        checkpoints.wait()


def test_round_trip_is_bitwise(tmp_path):
    state = _state().replace(step=jnp.int32(7), nonfinite_total=jnp.int32(2))
    _save(tmp_path, state)
    with StageCheckpoints(tmp_path) as checkpoints:
        restored, meta = checkpoints.restore(_state(seed=1))
    assert meta == {"finished": False, "model": "tiny", "step": 7}
    jax.tree.map(np.testing.assert_array_equal, restored, state)


def test_only_the_newest_are_kept(tmp_path):
    with StageCheckpoints(tmp_path, keep=2) as checkpoints:
        for step in (1, 2, 3):
            checkpoints.save(_state().replace(step=jnp.int32(step)), {"finished": False})
        checkpoints.wait()
        assert checkpoints.latest_step() == 3
    assert sorted(child.name for child in tmp_path.iterdir() if child.is_dir()) == ["2", "3"]


def test_a_step_without_all_items_does_not_count(tmp_path):
    _save(tmp_path, _state().replace(step=jnp.int32(1)))
    (tmp_path / "2" / "params").mkdir(parents=True)
    with StageCheckpoints(tmp_path) as checkpoints:
        assert checkpoints.latest_step() == 1


@pytest.mark.parametrize(
    ("other", "reason"),
    [
        ({"width": 5}, "params/a/kernel is float32[3, 4] in the checkpoint, float32[3, 5] in this run"),
        ({"dtype": jnp.bfloat16}, "params/a/kernel is float32[3, 4] in the checkpoint, bfloat16[3, 4] in this run"),
        ({"tx": optax.sgd(1e-3)}, "is in the checkpoint but not in this run"),
    ],
)
def test_another_model_or_optimizer_is_refused_by_leaf(tmp_path, other, reason):
    _save(tmp_path, _state())
    with StageCheckpoints(tmp_path) as checkpoints, pytest.raises(CheckpointError) as caught:
        checkpoints.restore(_state(**other))
    assert reason in str(caught.value)


def test_latest_checkpoint_is_found_from_every_level(tmp_path):
    stage = tmp_path / "checkpoints" / "sft"
    _save(stage, _state().replace(step=jnp.int32(4)), finished=True)
    for path in (tmp_path, tmp_path / "checkpoints", stage, stage / "4"):
        assert latest_checkpoint(path) == stage / "4"
    assert read_meta(stage / "4")["finished"] is True
    with pytest.raises(CheckpointError, match="holds no finished checkpoint"):
        latest_checkpoint(tmp_path / "elsewhere")


def test_parameters_alone(tmp_path):
    state = _state()
    _save(tmp_path, state)
    params = restore_params(tmp_path / "0", jax.eval_shape(lambda: state.params))
    np.testing.assert_array_equal(params["a"]["kernel"], state.params["a"]["kernel"])


def test_unwritable_directory_is_named(tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(CheckpointError, match="cannot be written"):
        StageCheckpoints(blocked / "sft")


def test_a_step_is_replaced_by_a_later_save_of_it(tmp_path):
    state = _state().replace(step=jnp.int32(4))
    _save(tmp_path, state)
    with StageCheckpoints(tmp_path) as checkpoints:  # as after a stop at the last step
        assert checkpoints.meta()["finished"] is False
        checkpoints.save(state, {"finished": True})
        checkpoints.wait()
        assert checkpoints.meta()["finished"] is True


def test_others_reach_the_disk_first(tmp_path):
    """The best evaluation is known wherever a stage can be resumed."""
    state, seen = _state().replace(step=jnp.int32(4)), []
    with StageCheckpoints(tmp_path / "best") as best, StageCheckpoints(tmp_path / "stage", after=best) as checkpoints:
        best.save(state, {})
        save = checkpoints._manager.save
        checkpoints._manager.save = lambda *args, **kwargs: (seen.append(best.latest_step()), save(*args, **kwargs))
        checkpoints.save(state, {"finished": False})
    assert seen == [4]
