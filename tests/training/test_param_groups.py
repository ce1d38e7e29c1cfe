"""Frozen parameters, layer-wise rates, what decays, running means: in the optimizer, a step, on disk, in a run."""

import dataclasses
import functools
import json
from contextlib import nullcontext

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from empathax.config import Config, MeshOptions, ModelOptions, SftOptions, default_config, from_config_dict
from empathax.errors import ConfigError
from empathax.models.architecture.presets import preset
from empathax.models.transformer import abstract_params, init_params, logical_axes
from empathax.models.weights.steps import find_steps, open_step
from empathax.parallel.mesh import make_mesh
from empathax.parallel.rules import param_shardings
from empathax.training import experiment
from empathax.training.checkpoint import StageCheckpoints, restore_state
from empathax.training.optimizer import check_patterns, decay_mask, make_optimizer, merge, path_name, split
from empathax.training.run import prepare as prepare_run
from empathax.training.state import abstract_state, init_state, state_shardings
from empathax.training.step import make_train_step
from empathax.training.sweep import prepare, run
from empathax.training.trainable import check_trained
from tests.training.tiny import tiny_config
from tests.training.tiny_rows import MODEL, dialogue_batch, with_steps

SFT = SftOptions(
    learning_rate=1e-3, warmup_ratio=0.0, schedule="constant", weight_decay=0.1, max_grad_norm=0.0, ema_decay=0.9
)
FROZEN = ("embedding/*", "layers/mlp/*", "*norm*")


@functools.cache
def _params():
    return jax.device_get(init_params(MODEL, 0))


def _flat(tree):
    return {path_name(path): np.asarray(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def _steps(options, num_steps=1):
    """The states after each step on the same batch, the metrics of each, and the step."""
    config = Config(model=ModelOptions(attention="dense"), sft=options)
    tx, schedule = make_optimizer(options, 10)
    state = init_state(jax.tree.map(jnp.array, _params()), tx, running_mean=options.ema_decay > 0)
    step, batch = make_train_step("sft", MODEL, config, tx, schedule), with_steps(dialogue_batch(2), 1)
    states, records = [], []
    for _ in range(num_steps):
        state, scalars = step(state, batch)
        states.append(jax.device_get(state))
        records.append(scalars)
    return states, records, step


@functools.cache
def _plain():
    return _steps(SFT, 3)


def test_trees_taken_apart_are_put_together_again():
    trained, frozen = split(_params(), FROZEN)
    assert _flat(frozen).keys() == {name for name in _flat(_params()) if "attention/" not in name}
    assert not _flat(trained).keys() & _flat(frozen).keys()
    assert jax.tree.structure(merge(trained, frozen)) == jax.tree.structure(_params())
    assert split(_params(), ())[0] is _params()
    nothing, everything = split(_params(), ("*",))
    assert nothing == {}
    assert jax.tree.structure(merge(nothing, everything)) == jax.tree.structure(_params())


def test_frozen_parameters_keep_every_bit_and_have_no_state():
    (state,), (scalars,), _ = _steps(dataclasses.replace(SFT, freeze=FROZEN))
    whole = _plain()[0][0]
    before, after, unfrozen = _flat(_params()), _flat(state.params), _flat(whole.params)
    for name in before:
        if "attention/" in name:  # adamw looks at each parameter by itself: the others' updates are what they were
            np.testing.assert_allclose(after[name], unfrozen[name], rtol=1e-6, atol=1e-7, err_msg=name)
            assert not np.array_equal(after[name], before[name])
        else:
            assert after[name].tobytes() == before[name].tobytes(), name
    of_state = {name.rpartition("/mu/")[2] for name in _flat(state.opt_state) if "/mu/" in name}
    assert of_state == {name for name in before if "attention/" in name}
    sizes = [
        sum(leaf.size for leaf in jax.tree.leaves(tree)) for tree in (state.opt_state, split(_params(), FROZEN)[0])
    ]
    assert sizes[0] < 2 * sizes[1] + 10
    assert float(scalars["grad_norm"]) < float(_plain()[1][0]["grad_norm"])


def test_a_layer_learns_at_the_rate_of_the_one_above_it_times_the_decay():
    (state,), _, _ = _steps(dataclasses.replace(SFT, layerwise_decay=0.25, freeze=("layers/mlp/*",)))
    before, moved, whole = _flat(_params()), _flat(state.params), _flat(_plain()[0][0].params)
    for name, start in before.items():
        factor = {"layers": np.array([0.25, 1.0]), "embedding": 0.0625, "final_norm": 1.0}[name.split("/")[0]]
        factor = np.reshape(factor, (-1, *[1] * (start.ndim - 1))) if name.startswith("layers") else factor
        wanted = np.zeros_like(start) if "mlp/" in name else factor * (whole[name] - start)
        np.testing.assert_allclose(moved[name] - start, wanted, rtol=1e-3, atol=2e-7, err_msg=name)


@pytest.mark.parametrize(("excluded", "decayed"), [((), "*"), (("*norm*", "*bias*"), "kernel"), (("*",), "")])
def test_what_decays_can_be_said(excluded, decayed):
    mask = _flat(decay_mask(abstract_params(preset("tiny-qwen2")), excluded))
    assert any("bias" in name for name in mask)
    for name, decays in mask.items():
        assert decays == (decayed == "*" or name.rpartition("/")[2] == decayed), name


def test_the_running_mean_is_optax_own():
    mean = _params()
    for state in _plain()[0]:
        mean = optax.incremental_update(state.params, mean, 0.1)
        for name, value in _flat(state.mean_params).items():
            np.testing.assert_allclose(value, _flat(mean)[name], rtol=1e-6, atol=1e-8, err_msg=name)
    assert not np.array_equal(_flat(mean)["final_norm/scale"], _flat(state.params)["final_norm/scale"])


def test_a_skipped_step_leaves_the_mean_alone():
    start = _plain()[0][0]
    poisoned = jax.tree.map(jnp.array, start)
    poisoned.params["final_norm"]["scale"] = poisoned.params["final_norm"]["scale"] * jnp.nan
    after, scalars = _plain()[2](poisoned, with_steps(dialogue_batch(2), 1))
    assert float(scalars["skipped"]) == 1.0
    jax.tree.map(np.testing.assert_array_equal, after.mean_params, start.mean_params)


def test_a_mean_is_a_checkpoints_model_and_is_resumed_bit_for_bit(tmp_path):
    second, third = _plain()[0][1:]
    tx, _ = make_optimizer(SFT, 10)
    with StageCheckpoints(tmp_path) as checkpoints:
        checkpoints.save(jax.tree.map(jnp.array, second), {})
        checkpoints.wait()
    restored = restore_state(
        open_step(find_steps(tmp_path)[0]), abstract_state(abstract_params(MODEL), tx, running_mean=True)
    )
    jax.tree.map(np.testing.assert_array_equal, restored, second)
    model = open_step(find_steps(tmp_path)[0]).read_as(abstract_params(MODEL))
    jax.tree.map(np.testing.assert_array_equal, model, second.mean_params)
    again, _ = _plain()[2](restored, with_steps(dialogue_batch(2), 1))
    jax.tree.map(np.testing.assert_array_equal, again, third)


def test_means_and_partial_states_lie_like_their_parameters():
    mesh = make_mesh(MeshOptions(data=1, fsdp=4, tensor=2), jax.devices()[:8])
    params = abstract_params(MODEL)
    shardings = param_shardings(mesh, params, logical_axes(MODEL))
    tx, _ = make_optimizer(dataclasses.replace(SFT, freeze=FROZEN), 10)
    state = state_shardings(abstract_state(params, tx, running_mean=True), shardings)
    assert jax.tree.leaves(state.mean_params) == jax.tree.leaves(shardings)
    trained = split(shardings, FROZEN)[0]
    assert jax.tree.leaves(state.opt_state[0].mu) == jax.tree.leaves(trained)
    assert any(not leaf.is_fully_replicated for leaf in jax.tree.leaves(trained))


@pytest.mark.parametrize(
    ("stage", "changes", "sentence"),
    [
        (
            "sft",
            {"sft__freeze": ("embeddings/*",)},
            r"sft.freeze: 'embeddings/\*' fits no parameter.*'embedding/kernel'",
        ),
        ("dpo", {"dpo__no_decay": ("*rmsnorm*",)}, r"dpo.no_decay: '\*rmsnorm\*' fits no parameter"),
        ("sft", {"sft__freeze": ("*",)}, "leaves no parameter to train"),
    ],
)
def test_patterns_that_cannot_be_meant(stage, changes, sentence):
    options = tiny_config(**changes).stage(stage)
    with pytest.raises(ConfigError, match=sentence):
        check_patterns(stage, options, abstract_params(MODEL))


@pytest.mark.parametrize(
    ("pattern", "sentence"),
    [
        ("layers/attention/query/kernel", "fits no parameter"),  # of the model, which is frozen anyway
        ("layers/*", "leaves no parameter to train"),
        ("*lora_a*", ""),  # LoRA-FA
    ],
)
def test_patterns_of_a_run_with_adapters_are_about_the_adapter(monkeypatch, tmp_path, pattern, sentence):
    monkeypatch.setattr(experiment, "make_mesh", lambda options: make_mesh(options, jax.devices()[:1]))
    prepared = prepare_run(tiny_config(stages=("sft",), lora__rank=2, sft__freeze=(pattern,)), tmp_path / "run")
    with pytest.raises(ConfigError, match=sentence) if sentence else nullcontext():
        check_trained(prepared.experiment)


def test_a_mean_that_never_moves_is_refused():
    source = default_config()
    source.sft.ema_decay = 1.0
    with pytest.raises(ConfigError, match=r"sft.ema_decay = 1.0: the running mean would stay"):
        from_config_dict(source)


@pytest.mark.parametrize("rank", [0, 2])
def test_a_run_evaluates_and_keeps_the_mean(tmp_path, monkeypatch, rank):
    """A mean so slow that it stays where it was, while the parameters, or the factors of an adapter, move."""
    monkeypatch.setattr(experiment, "make_mesh", lambda options: make_mesh(options, jax.devices()[:1]))
    changes = {"sft__ema_decay": 1.0 - 1e-12, "sft__max_steps": 2, "eval__num_replies": 0, "sft__learning_rate": 0.1}
    changes |= {"sft__warmup_ratio": 0.0, "lora__rank": rank}
    jobs = prepare({"": tiny_config(stages=("sft",), tracking__tensorboard=False, **changes)}, tmp_path / "run")
    run(jobs, tmp_path / "run")
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    held_out = [line["perplexity"] for line in lines if line["split"] == "eval"]
    assert held_out[0] == held_out[-1]
    trained = [line["loss"] for line in lines if line["split"] == "train"]
    assert abs(trained[1] - trained[0]) > 1e-2
    if rank:  # its checkpoint has no whole model
        return
    base = jobs[""].experiment.model
    model = open_step(find_steps(tmp_path / "run")[0]).read_as(abstract_params(base.source.config))
    close = functools.partial(np.testing.assert_allclose, rtol=1e-6, atol=1e-9)
    jax.tree.map(close, model, jax.device_get(base.load_params()))
