"""Training of adapters: what a step changes, what its reference is, and that a run goes on to the bit."""

import dataclasses
import functools
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from empathax import export
from empathax.config import Config, DpoOptions, LoraOptions, ModelOptions, SftOptions
from empathax.errors import CheckpointError
from empathax.evaluation.generation.speaker import open_speaker
from empathax.lora_settings import spec_of
from empathax.models import lora
from empathax.models.source import resolve_model
from empathax.models.transformer import init_params, logits
from empathax.training.checkpoint import StageCheckpoints, latest_checkpoint
from empathax.training.job import prepare
from empathax.training.optimizer import make_optimizer
from empathax.training.reference import precompute
from empathax.training.run import run
from empathax.training.state import abstract_state, init_state
from empathax.training.step import make_score_step, make_train_step
from empathax.training.trainable import Trainable
from tests.training.tiny import tiny_config
from tests.training.tiny_rows import MODEL, dialogue_batch, with_steps

CONFIG = Config(
    model=ModelOptions(vocab_chunk=128),
    lora=LoraOptions(rank=4, alpha=8.0, dropout=0.2),
    sft=SftOptions(learning_rate=1e-2, warmup_ratio=0.0),
    dpo=DpoOptions(learning_rate=1e-2, warmup_ratio=0.0),
)
SPEC = spec_of(vars(CONFIG.lora))
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
    table = precompute(make_score_step(MODEL, CONFIG.model), _base(), [flat], int(flat.sequence_id_BS.max()) + 1)
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
        again, _ = checkpoints.restore(abstract_state(jax.eval_shape(lambda: state.params), tx))
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
def workdir(tmp_path_factory):
    """A run of both stages, the first one's adapter kept below the second's."""
    path = tmp_path_factory.mktemp("run") / "run"
    run(_job(path))
    return path


def _job(path, **changes):
    settings = {
        "lora__rank": 4, "lora__dropout": 0.1, "lora__after_sft": "keep", "eval__num_replies": 0,
        "sft__num_epochs": 1.0, "dpo__num_epochs": 2.0,
    }  # fmt: skip
    return prepare(tiny_config(**{**settings, **changes}), path)


def test_a_run_goes_on_to_the_bit(workdir, tmp_path):
    again = tmp_path / "run"
    shutil.copytree(workdir, again)
    shutil.rmtree(latest_checkpoint(again / "checkpoints" / "dpo"))
    shutil.rmtree(again / "evaluations", ignore_errors=True)
    assert latest_checkpoint(again / "checkpoints" / "dpo").name != latest_checkpoint(workdir).name
    run(_job(again))
    files = [sorted((place / "checkpoints" / "dpo").rglob("*")) for place in (workdir, again)]
    assert len(files[0]) == len(files[1])
    last = [resolve_model(place).load_params() for place in (workdir, again)]
    assert _bytes(last[0]) == _bytes(last[1])
    with pytest.raises(CheckpointError, match="lora was"):
        run(_job(again, lora__alpha=4.0))


def test_exports_of_a_run_say_what_its_checkpoint_says(workdir, tmp_path, capsys):
    model = "random:tiny-llama"
    assert export.main([f"--checkpoint={workdir}", f"--out={tmp_path / 'adapter'}"]) == 0
    assert export.main([f"--checkpoint={workdir}", f"--out={tmp_path / 'whole'}", "--merge"]) == 0
    assert export.main([f"--checkpoint={workdir / 'checkpoints/sft'}", f"--out={tmp_path / 'sft'}", "--adapter"]) == 0
    wanted = resolve_model(workdir).load_params()
    whole = resolve_model(tmp_path / "whole").load_params()
    adapted = open_speaker(model, Config(), adapters=[str(tmp_path / "adapter")])().params
    base = resolve_model(model).load_params()
    for found in (whole, adapted):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), found, wanted)
    moved = np.abs(base["layers"]["mlp"]["up"]["kernel"] - wanted["layers"]["mlp"]["up"]["kernel"]).max()
    assert moved > 1e-4
    assert "the adapters of" in capsys.readouterr().out
