"""Training of adapters: what a step changes, what its reference is, and that a run goes on to the bit."""

import dataclasses
import functools
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from empathax import export
from empathax.config import Config, DpoOptions, LoraOptions, ModelOptions, SftOptions
from empathax.config.lora import LoraSpec, spec_of
from empathax.errors import CheckpointError
from empathax.evaluation.generation.speaker import open_speaker
from empathax.evaluation.scoring import logps_by_sequence
from empathax.models.lora import adapters as lora
from empathax.models.lora.files import write_adapter
from empathax.models.transformer import init_params, logits
from empathax.models.weights.source import resolve_model
from empathax.models.weights.steps import find_steps, open_step
from empathax.training.checkpoint import StageCheckpoints, restore_state
from empathax.training.forward import make_score_step
from empathax.training.optimizer import make_optimizer
from empathax.training.state import abstract_state, init_state
from empathax.training.step import make_train_step
from empathax.training.trainable import Trainable
from tests.training.tiny_rows import MODEL, dialogue_batch, with_steps

CONFIG = Config(
    model=ModelOptions(vocab_chunk=128),
    lora=LoraOptions(rank=4, alpha=8.0, dropout=0.2),
    sft=SftOptions(learning_rate=1e-2, warmup_ratio=0.0),
    dpo=DpoOptions(learning_rate=1e-2, warmup_ratio=0.0),
)
SPEC = spec_of(CONFIG.lora)
BATCH = with_steps(dialogue_batch(4), 2)


@functools.cache
def _base():
    return init_params(MODEL, 0)


@functools.cache
def _compiled(dropout=0.2, reference="auto"):
    options = dataclasses.replace(CONFIG.dpo, reference=reference)
    config = dataclasses.replace(CONFIG, lora=dataclasses.replace(CONFIG.lora, dropout=dropout), dpo=options)
    tx, schedule = make_optimizer(config.dpo, 10)
    return make_train_step("dpo", MODEL, config, tx, schedule, spec=SPEC), tx


def _start(tx):
    return init_state(lora.init_adapter(_base(), SPEC, 0), tx)


def _bytes(tree):
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(tree)]


def test_only_the_adapter_moves_and_has_optimizer_state():
    before = _bytes(_base())
    step, tx = _compiled()
    state = _start(tx)
    num_values = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    assert sum(leaf.size for leaf in jax.tree.leaves(state.opt_state)) == 2 * num_values + 1
    first = _bytes(state.params)
    state, scalars = step(state, BATCH, base=_base())
    assert float(scalars["loss"]) == pytest.approx(np.log(2.0), abs=1e-6)
    state, scalars = step(state, BATCH, base=_base())
    assert float(scalars["reward_margin"]) > 0.01
    assert _bytes(_base()) == before
    assert all(a != b for a, b in zip(_bytes(state.params), first, strict=True))


def test_the_reference_with_adapters_off_is_the_base_models():
    logps = lambda params: _bytes(make_score_step(MODEL, CONFIG.model)(params, dialogue_batch(4)))  # noqa: E731
    step, tx = _compiled(dropout=0.0)
    trained, _ = step(_start(tx), BATCH, base=_base())
    params = lora.overlay(_base(), trained.params, SPEC)
    assert logps(lora.without_adapters(params)) == logps(_base()) != logps(params)

    flat = dialogue_batch(4)
    table = logps_by_sequence(
        make_score_step(MODEL, CONFIG.model), _base(), [flat], int(flat.sequence_id_BS.max()) + 1
    )[0]
    ref_logps = np.where(flat.sequence_id_BS >= 0, table[flat.sequence_id_BS], 0.0).astype(np.float32)
    precomputed, _ = _compiled(dropout=0.0, reference="precomputed")
    found, wanted = _start(tx), _start(tx)
    for _ in range(3):
        found, of_base = step(found, BATCH, base=_base())
        wanted, of_table = precomputed(wanted, with_steps(flat.replace(ref_logps_BS=ref_logps), 2), base=_base())
    assert float(of_base["loss"]) == pytest.approx(float(of_table["loss"]), rel=1e-5)
    assert float(of_base["grad_norm"]) == pytest.approx(float(of_table["grad_norm"]), rel=1e-4)


def test_dropout_is_a_function_of_seed_and_step(tmp_path):
    step, tx = _compiled()
    state = _start(tx)
    with StageCheckpoints(tmp_path) as checkpoints:
        for number in range(4):
            if number == 2:
                checkpoints.save(state, {"finished": False})
                checkpoints.wait()
            state, _ = step(state, BATCH, base=_base())
    again = restore_state(open_step(find_steps(tmp_path)[0]), abstract_state(jax.eval_shape(lambda: state.params), tx))
    other_step = again.replace(step=again.step + 5)
    losses = [
        float(step(jax.tree.map(jnp.copy, start), BATCH, base=_base())[1]["loss"]) for start in (again, other_step)
    ]
    assert losses[0] != losses[1]
    for _ in range(2):
        again, _ = step(again, BATCH, base=_base())
    assert _bytes(again) == _bytes(state)


@pytest.mark.parametrize("merges", [True, False])
def test_the_next_stage_starts_where_the_adapter_led(merges):
    adapter = jax.tree.map(lambda leaf: leaf + 0.05, lora.init_adapter(_base(), SPEC, 0))
    model = lora.overlay(jax.tree.map(jnp.copy, _base()), adapter, SPEC)
    ids, spans = np.arange(3, 11)[None], (np.arange(8)[None], np.full((1, 8), 8))
    wanted = logits(model, MODEL, ids, *spans)
    start = Trainable({}, SPEC, (SPEC,), merges).start(model)
    np.testing.assert_allclose(logits(start.model, MODEL, ids, *spans), wanted, atol=1e-5)
    assert ("lora" in start.base["layers"]["mlp"]["up"]) is not merges
    jax.tree.map(np.testing.assert_array_equal, start.frozen["0"], adapter)


@pytest.fixture(scope="module")
def sft_adapter(tmp_path_factory):
    """An adapter as PEFT would have left it after SFT, of another rank than the run's."""
    spec = LoraSpec(2, 4.0, targets=("q_proj", "up_proj"))
    rng = np.random.default_rng(0)
    shapes = lora.abstract_adapter(_base(), spec)
    tree = jax.tree.map(lambda leaf: 0.1 * rng.normal(size=leaf.shape).astype(np.float32), shapes)
    directory = tmp_path_factory.mktemp("sft_adapter")
    write_adapter(directory, lora.Adapter(tree, spec), "random:tiny-llama")
    return directory


@pytest.fixture(scope="module")
def workdir(tmp_path_factory, sft_adapter):
    """A run of DPO with an SFT adapter kept below its own."""
    path = tmp_path_factory.mktemp("run") / "run"
    done = _run(path, sft_adapter)
    assert done.returncode == 0, done.stderr
    return path


def _run(path, sft_adapter, alpha=8):
    """In a process of its own, on one device."""
    command = [sys.executable, str(Path(__file__).parent / "lora_run.py"), *map(str, (path, sft_adapter, alpha))]
    cache = {
        "JAX_COMPILATION_CACHE_DIR": str(sft_adapter.parent / "compilation_cache"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    return subprocess.run(command, capture_output=True, text=True, timeout=300, env=os.environ | cache)


def test_a_run_goes_on_to_the_bit(workdir, sft_adapter, tmp_path):
    again = tmp_path / "run"
    shutil.copytree(workdir, again)
    shutil.rmtree(find_steps(again)[0])  # the finished one
    assert find_steps(again)[0].name != find_steps(workdir)[0].name
    resumed = _run(again, sft_adapter)
    assert resumed.returncode == 0
    assert "WARNING" not in resumed.stderr
    models = [resolve_model(place).load_params() for place in (workdir, again)]
    assert _bytes(models[0]) == _bytes(models[1])
    refused = _run(again, sft_adapter, alpha=4)
    assert refused.returncode == CheckpointError.exit_code
    assert "lora was" in refused.stderr


def test_exports_of_a_run_say_what_its_checkpoint_says(workdir, tmp_path, capsys):
    model = "random:tiny-llama"
    assert export.main([f"--checkpoint={workdir}", f"--out={tmp_path / 'adapter'}"]) == 0
    assert export.main([f"--checkpoint={workdir}", f"--out={tmp_path / 'whole'}", "--merge"]) == 0
    assert "the adapters of" in capsys.readouterr().out
    wanted = resolve_model(workdir).load_params()
    whole = resolve_model(tmp_path / "whole").load_params()
    adapted = open_speaker(model, Config(), adapters=[str(tmp_path / "adapter")])().params
    for found in (whole, adapted):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), found, wanted)
    rank = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert (rank["r"], rank["rank_pattern"]["k_proj"]) == (6, 4)  # both adapters in one, where both are
    moved = np.abs(_base()["layers"]["mlp"]["down"]["kernel"] - wanted["layers"]["mlp"]["down"]["kernel"]).max()
    assert moved > 1e-5
