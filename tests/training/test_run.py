"""Whole runs: both stages and their record, and that a run that was stopped ends as if it never had been."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest

from empathax.errors import CheckpointError
from empathax.models.weights.steps import find_steps, open_step
from empathax.training import run, workdirs
from empathax.training.checkpoint import StageCheckpoints
from empathax.training.state import init_state
from tests.training.tiny import OPTIMIZED

HERE = Path(__file__).parent


def _child(workdir, stage="none", step=0, name="NONE", seed=0):
    """Runs the tiny config in a process of its own; all share one compilation cache, as restarts on one machine do."""
    command = [sys.executable, str(HERE / "killed_run.py"), str(workdir), stage, str(step), name, str(seed)]
    cache = {
        "JAX_COMPILATION_CACHE_DIR": str(workdir.parent.parent / "compilation_cache"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    return subprocess.run(command, capture_output=True, text=True, timeout=300, env=os.environ | cache | OPTIMIZED)


def _params(workdir, stage):
    with ocp.StandardCheckpointer() as reader:
        return reader.restore(find_steps(workdir / "checkpoints" / stage)[0] / "params")


def _record(workdir):
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    timing = ("tokens_per_second", "pairs_per_second", "memory_gb")
    return [{key: value for key, value in line.items() if key not in timing} for line in lines]


def _without_timings(workdir):
    """The text of metrics.jsonl without what depends on the machine."""
    return re.sub(
        r', "(tokens_per_second|pairs_per_second|memory_gb)": [^,}]+', "", (workdir / "metrics.jsonl").read_text()
    )


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An uninterrupted run."""
    workdir = tmp_path_factory.mktemp("whole") / "run"
    done = _child(workdir)
    assert done.returncode == 0, done.stderr
    return workdir


def test_the_record_is_complete(whole):
    lines = _record(whole)
    config = json.loads((whole / "config.json").read_text())
    assert config["name"] == "tiny"
    for stage in ("sft", "dpo"):
        train = [line for line in lines if line["stage"] == stage and line["split"] == "train"]
        assert [line["step"] for line in train] == list(range(1, len(train) + 1))
        held_out = [line["step"] for line in lines if line["stage"] == stage and line["split"] == "eval"]
        assert held_out == [0, len(train)]
    first = next(line for line in lines if line["stage"] == "dpo" and line["split"] == "train")
    assert first["loss"] == pytest.approx(np.log(2.0), abs=1e-5)
    assert first["reward_margin"] == pytest.approx(0.0, abs=1e-5)
    report = (whole / "report.md").read_text()
    assert all(name in report for name in ("| base", "| +SFT ", "| +SFT+DPO", "perplexity", "reward accuracy"))


@pytest.mark.parametrize(("stage", "step"), [("sft", 1), ("sft", 7), ("dpo", 7)])
def test_killed_and_run_again_is_bitwise_the_same(whole, tmp_path, stage, step):
    workdir = tmp_path / "run"
    assert _child(workdir, stage, step, "SIGKILL").returncode == -signal.SIGKILL
    again = _child(workdir)
    assert again.returncode == 0, again.stderr
    for name in ("sft", "dpo"):
        jax.tree.map(np.testing.assert_array_equal, _params(workdir, name), _params(whole, name))
    assert _record(workdir) == _record(whole)


def test_the_same_seed_twice_is_the_same_record(whole, tmp_path):
    workdir = tmp_path / "run"
    assert _child(workdir).returncode == 0
    assert _without_timings(workdir) == _without_timings(whole)


def test_sigterm_saves_at_once_and_ends_with_75(whole, tmp_path):
    workdir = tmp_path / "run"
    stopped = _child(workdir, "sft", 3, "SIGTERM")
    assert stopped.returncode == 75
    assert "run the same command again" in stopped.stderr
    assert find_steps(workdir)[0].name == "3"
    last = max(line["step"] for line in _record(whole) if line["stage"] == "sft")
    assert _child(workdir, "sft", last, "SIGTERM").returncode == 75  # at the very end of a stage
    assert find_steps(workdir)[0].name == str(last)
    assert _child(workdir).returncode == 0
    jax.tree.map(np.testing.assert_array_equal, _params(workdir, "dpo"), _params(whole, "dpo"))
    assert _record(workdir) == _record(whole)


def _flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 8
    path.write_bytes(content)


def _arrays(step):
    return max((path for path in (step / "rest" / "d").iterdir()), key=lambda path: path.stat().st_size)


def test_a_damaged_checkpoint_costs_the_steps_since_the_one_before(whole, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(whole, workdir)
    newest, older = find_steps(workdir)
    _flip(_arrays(newest))
    again = _child(workdir)
    assert again.returncode == 0, again.stderr
    assert again.stderr.count("checkpoint not used: ") == 1
    assert f"going on from step {older.name}" in again.stderr
    jax.tree.map(np.testing.assert_array_equal, _params(workdir, "dpo"), _params(whole, "dpo"))
    assert _record(workdir) == _record(whole)
    assert open_step(find_steps(workdir)[0]).leaves == open_step(find_steps(whole)[0]).leaves


@pytest.mark.parametrize("harm", ["all damaged", "all gone", "no checkpoints/", "an item gone"])
def test_a_run_that_was_trained_never_starts_anew_by_itself(whole, tmp_path, harm):
    workdir = tmp_path / "run"
    shutil.copytree(whole, workdir)
    steps = find_steps(workdir)
    if harm == "no checkpoints/":
        shutil.rmtree(workdir / "checkpoints")
    for step in steps if harm != "no checkpoints/" else ():
        if harm == "all damaged":
            _flip(_arrays(step))
        else:
            shutil.rmtree(step if harm == "all gone" else step / "params")
    before = (workdir / "metrics.jsonl").read_bytes()
    refused = _child(workdir)
    assert refused.returncode == 5, refused.stderr
    assert "Traceback" not in refused.stderr
    expected = "no checkpoint can be used; found 2" if harm in ("all damaged", "an item gone") else "has saved step"
    assert expected in refused.stderr
    assert (workdir / "metrics.jsonl").read_bytes() == before


def test_a_refused_resume_touches_nothing(whole):
    def files():
        paths = [path for path in sorted(whole.rglob("*")) if path.is_file()]
        return {path: path.read_bytes() for path in paths}

    before = files()
    refused = _child(whole, seed=1)
    assert refused.returncode == 5
    assert "seed was 0, is 1" in refused.stderr
    assert files() == before


def test_a_finished_run_only_reports(whole):
    before = (whole / "metrics.jsonl").read_bytes()
    done = _child(whole)
    assert "+SFT+DPO" in done.stdout
    assert (whole / "metrics.jsonl").read_bytes() == before


@pytest.mark.parametrize("gone", ["checkpoints", "checkpoints/sft/2", "checkpoints/sft/2/params"])
def test_steps_that_are_gone_are_never_a_fresh_start(tmp_path, gone):
    workdirs.open_workdir(tmp_path / "run")
    ours, sft = SimpleNamespace(workdir=tmp_path / "run"), SimpleNamespace(name="sft")
    assert run._newest_checkpoint(ours, sft, lambda step: None) is None  # nothing was ever saved
    with StageCheckpoints(
        ours.workdir / "checkpoints" / "sft", committed=lambda step: workdirs.record_saved(ours.workdir, "sft", step)
    ) as checkpoints:
        state = init_state({"kernel": jnp.ones(3)}, optax.sgd(0.1)).replace(step=jnp.int32(2))
        checkpoints.save(state, {"finished": False})
    assert run._newest_checkpoint(ours, sft, lambda step: step.number)[1] == 2
    shutil.rmtree(ours.workdir / gone)
    with pytest.raises(
        CheckpointError, match=r"this run has saved step 2|no checkpoint can be used; found 1"
    ) as caught:
        run._newest_checkpoint(ours, sft, lambda step: None)
    assert "--overwrite or another --workdir starts anew" in str(caught.value)
    workdirs.release()
