"""The export command: a checkpoint becomes a directory that scores like the checkpoint; bad input leaves nothing."""

import dataclasses
import os
import shutil
import socket
import subprocess
import sys

import jax
import numpy as np
import optax
import pytest
from transformers import AutoTokenizer, GenerationConfig

from empathax import export
from empathax.errors import WeightsError
from empathax.models.tokenizers.template_defaults import with_defaults
from empathax.models.weights.source import resolve_model
from empathax.training.checkpoint import StageCheckpoints
from empathax.training.state import init_state

MODEL = "random:tiny-llama"


def save(workdir, stage, params, step, **changes):
    """A checkpoint as a run writes it, at `step`."""
    source = resolve_model(MODEL)
    meta = {"model_path": MODEL, "tokenizer_path": MODEL, "model_config": dataclasses.asdict(source.config)}
    state = init_state(jax.tree.map(np.array, params), optax.sgd(0.1)).replace(step=np.int32(step))
    with StageCheckpoints(workdir / "checkpoints" / stage) as checkpoints:
        checkpoints.save(state, {**meta, "finished": True} | changes)
        checkpoints.wait()


@pytest.fixture(scope="module")
def trained():
    """Parameters that no preset has."""
    params = resolve_model(MODEL).load_params()
    return jax.tree.map(lambda leaf: np.asarray(leaf) + np.float32(0.25), params)


@pytest.fixture(scope="module")
def workdir(tmp_path_factory, trained):
    path = tmp_path_factory.mktemp("run")
    save(path, "sft", resolve_model(MODEL).load_params(), 4)
    save(path, "dpo", jax.tree.map(np.negative, trained), 2)
    save(path, "dpo", trained, 7)
    return path


@pytest.mark.parametrize("place", [".", "checkpoints", "checkpoints/dpo", "checkpoints/dpo/7"])
def test_the_latest_stages_last_step_is_written(workdir, trained, tmp_path, place, capsys):
    out = tmp_path / "out"
    assert export.main([f"--checkpoint={workdir / place}", f"--out={out}"]) == 0
    exported = resolve_model(out)
    jax.tree.map(np.testing.assert_array_equal, exported.load_params(), trained)
    assert exported.config == dataclasses.replace(
        resolve_model(MODEL).config, initializer_range=exported.config.initializer_range
    )
    assert exported.tokenizer().encode("I feel low") == resolve_model(MODEL).tokenizer().encode("I feel low")
    assert "dpo/7" in capsys.readouterr().out


def test_an_earlier_stage_and_bfloat16(workdir, tmp_path):
    out = tmp_path / "out"
    flags = [f"--checkpoint={workdir / 'checkpoints' / 'sft'}", f"--out={out}", "--dtype=bfloat16"]
    assert export.main(flags) == 0
    base = resolve_model(MODEL).load_params()
    rounded = jax.tree.map(lambda leaf: np.asarray(leaf.astype("bfloat16").astype("float32")), base)
    jax.tree.map(np.testing.assert_array_equal, resolve_model(out).load_params(), rounded)
    assert resolve_model(out).config.file_dtype == "bfloat16"


def test_the_chat_template_of_training_is_written(tmp_path, trained):
    template = "{% for m in messages %}<|im_start|>{{ m['role'] }} {{ m['content'] }}<|im_end|>{% endfor %}"
    save(tmp_path / "run", "sft", trained, 1, chat_template=template)
    assert export.main([f"--checkpoint={tmp_path / 'run'}", f"--out={tmp_path / 'out'}"]) == 0
    assert resolve_model(tmp_path / "out").tokenizer().chat_template == template


def test_what_the_template_was_told_is_the_default_of_the_export(tmp_path, trained):
    body = "{% for m in messages %}{{ m['content'] }}{% endfor %}{% if enable_thinking is false %}<think>{% endif %}"
    template = with_defaults(body, {"enable_thinking": False})
    save(tmp_path / "run", "sft", trained, 1, chat_template=template)
    assert export.main([f"--checkpoint={tmp_path / 'run'}", f"--out={tmp_path / 'out'}"]) == 0
    assert (tmp_path / "out" / "chat_template.jinja").read_text() == template
    generation = GenerationConfig.from_pretrained(tmp_path / "out")
    assert generation.chat_template_kwargs == {"enable_thinking": False}
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    messages = [{"role": "user", "content": "Hi"}]
    assert tokenizer.apply_chat_template(messages, tokenize=False) == "Hi<think>"


def test_the_base_model_may_have_moved(tmp_path, workdir, trained):
    assert export.main([f"--checkpoint={workdir}", f"--out={tmp_path / 'base'}"]) == 0
    save(tmp_path / "run", "sft", trained, 1, model_path=str(tmp_path / "gone"), tokenizer_path=str(tmp_path / "gone"))
    flags = [f"--checkpoint={tmp_path / 'run'}", f"--out={tmp_path / 'out'}"]
    assert export.main(flags) == 4
    assert export.main([*flags, f"--model={MODEL}"]) == 0
    assert not any(path.name.startswith(".out") for path in tmp_path.iterdir())


def test_bad_input(tmp_path, workdir, capsys):
    out = f"--out={tmp_path / 'out'}"
    assert export.main([f"--checkpoint={tmp_path / 'nothing'}", out]) == 5
    assert "no finished checkpoint" in capsys.readouterr().err
    assert export.main([f"--checkpoint={workdir}", out, "--model=random:tiny-gemma"]) == 5
    assert "activation was 'silu', is 'gelu_tanh'" in capsys.readouterr().err
    assert export.main([f"--checkpoint={workdir}", f"--out={workdir}"]) == 2
    assert "exists already" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_damaged_checkpoint(tmp_path, trained):
    """In a process of its own: the readers that Orbax leaves behind may speak after it has ended."""
    save(tmp_path / "run", "sft", trained, 1)
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "sft" / "1" / "params" / "d")
    flags = [f"--checkpoint={tmp_path / 'run'}", f"--out={tmp_path / 'out'}"]
    command = [sys.executable, "-m", "empathax.export", *flags]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 5, done.stderr
    assert "sft/1: params/d/" in done.stderr
    assert "no checkpoint can be used; found 1" in done.stderr
    assert not (tmp_path / "out").exists()


def test_checkpoints_that_lead_to_no_model(tmp_path, trained, capsys):
    """A best evaluation's directory says nothing of the model; a run may name itself, or one that names it."""
    best = tmp_path / "best" / "sft"
    state = init_state(jax.tree.map(np.array, trained), optax.sgd(0.1)).replace(step=np.int32(1))
    with StageCheckpoints(best) as checkpoints:
        checkpoints.save(state, {"value": 1.0, "metric": "perplexity"})
    save(tmp_path / "self", "sft", trained, 1, model_path=str(tmp_path / "self"))
    save(tmp_path / "one", "sft", trained, 1, model_path=str(tmp_path / "two"))
    save(tmp_path / "two", "sft", trained, 1, model_path=str(tmp_path / "one"))
    for path, reason in ((best, "does not say which model"), ("self", "this very run"), ("one", "this very run")):
        assert export.main([f"--checkpoint={tmp_path / path}", f"--out={tmp_path / 'out'}"]) == 4
        assert reason in capsys.readouterr().err
        with pytest.raises(WeightsError, match=reason):
            resolve_model(tmp_path / path)


def test_what_a_killed_export_left_goes_with_the_next(tmp_path, workdir):
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    left = tmp_path / f".out.partial-{socket.gethostname()}-{gone.pid}-abc"
    going = tmp_path / f".out.partial-{socket.gethostname()}-{os.getpid()}-abc"
    for directory in (left, going):
        directory.mkdir()
    assert export.main([f"--checkpoint={workdir}", f"--out={tmp_path / 'out'}"]) == 0
    assert {entry.name for entry in tmp_path.iterdir()} == {going.name, "out"}


@pytest.mark.parametrize("damage", ["flipped", "truncated", "gone"])
def test_an_intact_older_step_takes_the_place_of_a_damaged_one(tmp_path, trained, damage, capfd):
    """For export, and for whatever loads a run as a model."""
    save(tmp_path / "run", "sft", trained, 1)
    save(tmp_path / "run", "sft", jax.tree.map(np.negative, trained), 2)
    step = tmp_path / "run" / "checkpoints" / "sft" / "2"
    largest = max((path for path in step.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 1
    largest.write_bytes({"flipped": content, "truncated": content[:-100], "gone": b""}[damage])
    if damage == "gone":
        largest.unlink()
    assert export.main([f"--checkpoint={tmp_path / 'run'}", f"--out={tmp_path / 'out'}"]) == 0
    jax.tree.map(np.testing.assert_array_equal, resolve_model(tmp_path / "out").load_params(), trained)
    jax.tree.map(np.testing.assert_array_equal, resolve_model(tmp_path / "run").load_params(), trained)
    said = capfd.readouterr().err
    assert said.count(f"checkpoint not used: {step}: {largest.relative_to(step)}") == 2
    assert said.count(f"going on from the older checkpoint {step.with_name('1')}") == 2
