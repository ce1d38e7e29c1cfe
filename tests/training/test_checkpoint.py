"""Checkpoints: what is saved comes back bit for bit; what cannot be continued is refused with its reason."""

import errno
import os
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from empathax.errors import CheckpointError, DamagedCheckpoint
from empathax.models.weights.steps import find_steps, open_step, seal_files
from empathax.training import checkpoint
from empathax.training.checkpoint import StageCheckpoints, newest_checkpoint, restore_state
from empathax.training.state import init_state


def _state(seed=0, dtype=jnp.float32, tx=None, width=4):
    params = {"a": {"kernel": jax.random.normal(jax.random.key(seed), (3, width), dtype)}}
    return init_state(params, tx or optax.adam(1e-3))


def _save(directory, state, finished=False, keep=2):
    with StageCheckpoints(directory, keep) as checkpoints:
        checkpoints.save(state, {"finished": finished, "model": "tiny"})
        checkpoints.wait()


def _restored(directory, like):
    return newest_checkpoint(directory, lambda step: restore_state(step, like))


def _numbers(directory):
    return sorted(child.name for child in directory.iterdir() if child.is_dir())


def test_round_trip_is_bitwise(tmp_path):
    state = _state().replace(step=jnp.int32(7), nonfinite_total=jnp.int32(2))
    _save(tmp_path, state)
    step, restored = _restored(tmp_path, _state(seed=1))
    assert (step.number, step.meta["finished"], step.meta["model"]) == (7, False, "tiny")
    jax.tree.map(np.testing.assert_array_equal, restored, state)


def test_only_the_newest_are_kept(tmp_path):
    with StageCheckpoints(tmp_path, keep=2) as checkpoints:
        for step in (1, 2, 3):
            checkpoints.save(_state().replace(step=jnp.int32(step)), {"finished": False})
        checkpoints.wait()
    assert _numbers(tmp_path) == ["2", "3"]


def test_a_step_without_all_items_does_not_count(tmp_path):
    _save(tmp_path, _state().replace(step=jnp.int32(1)))
    (tmp_path / "2" / "params").mkdir(parents=True)
    assert _restored(tmp_path, _state())[0].number == 1


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
    with pytest.raises(CheckpointError) as caught:
        _restored(tmp_path, _state(**other))
    assert reason in str(caught.value)


def test_latest_checkpoint_is_found_from_every_level(tmp_path):
    stage = tmp_path / "checkpoints" / "sft"
    _save(stage, _state().replace(step=jnp.int32(4)), finished=True)
    for path in (tmp_path, tmp_path / "checkpoints", stage, stage / "4"):
        assert find_steps(path)[0] == stage / "4"
    assert open_step(stage / "4").meta["finished"] is True
    with pytest.raises(CheckpointError, match="holds no finished checkpoint"):
        find_steps(tmp_path / "elsewhere")[0]


def test_parameters_alone(tmp_path):
    state = _state()
    _save(tmp_path, state)
    params = open_step(tmp_path / "0").read_as(jax.eval_shape(lambda: state.params))
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
        checkpoints.save(state, {"finished": True})
        checkpoints.wait()
    assert _numbers(tmp_path) == ["4"]
    assert _restored(tmp_path, state)[0].meta["finished"] is True


def test_others_reach_the_disk_first(tmp_path, monkeypatch):
    """The best evaluation is known wherever a stage can be resumed."""
    state, seen = _state().replace(step=jnp.int32(4)), []
    with StageCheckpoints(tmp_path / "best") as best, StageCheckpoints(tmp_path / "stage", after=best) as checkpoints:
        best.save(state, {})
        save = checkpoints._saver.save
        monkeypatch.setattr(
            checkpoints._saver, "save", lambda *a, **k: (seen.append(_numbers(tmp_path / "best")), save(*a, **k))
        )
        checkpoints.save(state, {"finished": False})
    assert seen == [["4"]]


def _three(directory, keep=3, streaks=(0, 0, 0)):
    with StageCheckpoints(directory, keep) as checkpoints:
        for step, streak in zip((1, 2, 3), streaks, strict=True):
            state = _state(seed=step).replace(step=jnp.int32(step), nonfinite_streak=jnp.int32(streak))
            checkpoints.save(state, {"finished": False})
        checkpoints.wait()


def _files(directory):
    return sorted(path for path in directory.rglob("*") if path.is_file())


def _flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


DAMAGES = {
    "one bit": _flip,
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "emptied": lambda path: path.write_bytes(b""),
    "deleted": lambda path: path.unlink(),
    "longer": lambda path: path.write_bytes(path.read_bytes() + b"\0"),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_damage_to_any_file_is_found_and_an_older_step_taken(tmp_path, damage, capfd):
    _three(tmp_path)
    files = [path.relative_to(tmp_path) for path in _files(tmp_path / "3")]
    assert len(files) > 15
    for number, name in enumerate(files):
        copy = tmp_path.parent / f"{tmp_path.name}_{number}"
        shutil.copytree(tmp_path, copy)
        damage(copy / name)
        step, state = _restored(copy, _state())
        assert step.number == 2, name
        np.testing.assert_array_equal(state.params["a"]["kernel"], _state(seed=2).params["a"]["kernel"])
        said = capfd.readouterr().err
        assert said.count("checkpoint not used: ") == 1, name
        assert "going on from the older checkpoint" in said, name
        shutil.rmtree(copy)


def test_an_array_that_is_not_what_was_saved_is_found_by_its_digest_alone(tmp_path):
    """Also where every file is as it was written: the disk, or the way to it, changed what was handed to it."""
    _three(tmp_path)
    changed = _state(seed=3)
    changed = changed.replace(
        step=jnp.int32(3), params={"a": {"kernel": changed.params["a"]["kernel"].at[1, 2].add(1)}}
    )
    _save(tmp_path / "other", changed)
    shutil.rmtree(tmp_path / "3" / "params")
    shutil.copytree(tmp_path / "other" / "3" / "params", tmp_path / "3" / "params")
    (tmp_path / "3" / "files.json").unlink()
    seal_files(tmp_path / "3")
    step = open_step(tmp_path / "3")
    with pytest.raises(DamagedCheckpoint, match=r"3: params/a/kernel: found float32\[3, 4\] \w{16}, expected float32"):
        step.read(changed.params)
    with pytest.raises(DamagedCheckpoint, match="params/a/kernel"):
        step.verify()
    assert _restored(tmp_path, _state())[0].number == 2


def test_with_all_of_them_damaged_each_reason_is_given(tmp_path):
    _three(tmp_path)
    for number in (1, 2, 3):
        (tmp_path / str(number) / "params" / "_METADATA").unlink()
    with pytest.raises(CheckpointError) as caught:
        _restored(tmp_path, _state())
    assert str(caught.value).count("params/_METADATA is gone") == 3
    assert "no checkpoint can be used; found 3" in str(caught.value)


def test_damaged_steps_do_not_count_among_those_that_are_kept(tmp_path):
    _three(tmp_path)
    _flip(tmp_path / "3" / "meta" / "metadata")
    with StageCheckpoints(tmp_path, keep=2) as checkpoints:
        checkpoints.save(_state().replace(step=jnp.int32(4)), {"finished": False})
    assert _numbers(tmp_path) == ["2", "4"]


def test_steps_within_a_streak_do_not_replace_the_last_good_one(tmp_path):
    _three(tmp_path, keep=1, streaks=(0, 1, 2))
    assert _numbers(tmp_path) == ["1", "3"]  # 3: handed over at a stop
    with StageCheckpoints(tmp_path, keep=1) as checkpoints:
        checkpoints.save(_state().replace(step=jnp.int32(4)), {"finished": False})
    assert _numbers(tmp_path) == ["4"]


def test_surplus_steps_of_a_killed_removal_go(tmp_path):
    _three(tmp_path)
    (tmp_path / "2").rename(tmp_path / "2.removed")
    with StageCheckpoints(tmp_path, keep=1) as checkpoints:
        checkpoints.save(_state().replace(step=jnp.int32(4)), {"finished": False})
    assert _numbers(tmp_path) == ["4"]


def test_a_step_being_replaced_comes_back_after_a_kill(tmp_path):
    _three(tmp_path, keep=1)
    (tmp_path / "3").rename(tmp_path / "3.previous")
    (tmp_path / "3.orbax-checkpoint-tmp" / "params").mkdir(parents=True)
    assert _restored(tmp_path, _state())[0].number == 3
    assert _numbers(tmp_path) == ["3"]


def test_a_save_that_fails_is_said_and_training_goes_on(tmp_path, monkeypatch, capsys):
    def refuse(directory):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    committed = []
    with StageCheckpoints(tmp_path, keep=1, committed=committed.append) as checkpoints:
        checkpoints.save(_state().replace(step=jnp.int32(1)), {"finished": False})
        checkpoints.wait()
        with monkeypatch.context() as patch:
            patch.setattr(checkpoint, "seal_files", refuse)
            checkpoints.save(_state().replace(step=jnp.int32(2)), {"finished": False})
            checkpoints._pending.thread.join()
            checkpoints.poll()
            said = capsys.readouterr().err
            assert said.startswith(f"step 2 was not saved to {tmp_path}: No space left on device; ")
            assert "the newest checkpoint is step 1; training goes on" in said
            with pytest.raises(CheckpointError, match="step 2 was not saved"):
                checkpoints.wait()
            assert _numbers(tmp_path) == ["1"]
        checkpoints.save(_state().replace(step=jnp.int32(3)), {"finished": False})
        checkpoints.wait()
    assert _numbers(tmp_path) == ["3"]
    assert committed == [1, 3]
