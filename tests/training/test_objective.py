"""Every preference loss through a training step of a tiny model, from the settings on.

Most steps are not compiled: that would take five times as long, and the compiled step has tests of its own.
"""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from empathax.config import MeshOptions, default_config, from_config_dict
from empathax.config.losses import LOSSES, REPLIES
from empathax.errors import ConfigError, WeightsError
from empathax.models.transformer import abstract_params, init_params, logical_axes, logits
from empathax.models.weights.steps import find_steps, open_step
from empathax.objectives.preference import initial_loss
from empathax.parallel.mesh import make_mesh
from empathax.parallel.rules import batch_sharding, param_shardings
from empathax.training import experiment
from empathax.training.checkpoint import StageCheckpoints, restore_state
from empathax.training.optimizer import make_optimizer
from empathax.training.stages.stage import find_stage
from empathax.training.state import abstract_state, init_state, state_shardings
from empathax.training.step import make_train_step
from empathax.training.sweep import prepare, run
from tests.training.tiny import tiny_config
from tests.training.tiny_rows import MODEL as TWO_LAYERS
from tests.training.tiny_rows import dialogue_batch, with_steps

NEEDED = {
    "exo_pair": {"label_smoothing": 1e-3},
    "alphapo": {"alphapo_alpha": 0.25},
    "discopop": {"discopop_tau": 1.0},  # with less its loss rises with small margins
}
MODEL = dataclasses.replace(TWO_LAYERS, num_layers=1)
ROWS = 4


def _config(loss, **changes):
    """A config from settings as a file gives them."""
    source = default_config()
    source.model.attention = "dense"
    source.dpo.update(learning_rate=2e-4, warmup_ratio=0.0, schedule="constant", beta=0.5, rows_per_batch=ROWS)
    source.dpo.update(loss=tuple(loss.split(",")), **NEEDED.get(loss, {}), **changes)
    return from_config_dict(source)


@functools.cache
def _params(seed=0):
    return jax.device_get(init_params(MODEL, seed))


def _reference(config):
    return _params(1) if any(LOSSES[name].needs_reference for name in config.dpo.loss) else None


def _gradient(config, batch, keep=None, shardings=None):
    """(gradient that a step hands to the optimizer, the step's metrics); `batch` has leading dims [A, B]."""
    tx, schedule = optax.trace(decay=0.0), make_optimizer(config.dpo, 10)[1]
    config = dataclasses.replace(config, dpo=dataclasses.replace(config.dpo, max_grad_norm=0.0))
    reference, params = _reference(config), jax.tree.map(jnp.array, _params())
    of_state = None
    if shardings is not None:
        of_state = state_shardings(abstract_state(abstract_params(MODEL), tx), shardings)
        batch = jax.device_put(batch, batch_sharding(jax.tree.leaves(shardings)[0].mesh, 1))
        reference, params = jax.device_put((reference, params), (reference and shardings, shardings))
    step = make_train_step("dpo", MODEL, config, tx, schedule, shardings=of_state)
    state, scalars = step(init_state(params, tx, of_state), batch, reference)
    return jax.device_get(state.opt_state.trace), jax.device_get(scalars)


def _distance(got, wanted):
    leaves = zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True)
    return max(float(np.linalg.norm(a - b) / np.linalg.norm(b)) for a, b in leaves)


@pytest.mark.parametrize("loss", [*(name for name, loss in LOSSES.items() if loss.takes != REPLIES), "sigmoid,sft"])
def test_a_step_lowers_its_own_loss(loss):
    config = _config(loss)
    tx, schedule = make_optimizer(config.dpo, 10)
    reference = _params() if _reference(config) else None
    with jax.disable_jit():
        step = make_train_step("dpo", MODEL, config, tx, schedule)
        state, batch = init_state(_params(), tx), with_steps(dialogue_batch(2), 1)
        state, before = step(state, batch, reference)
        state, after = step(state, batch, reference)
    assert float(after["loss"]) < float(before["loss"]) - 1e-3
    assert float(after["reward_margin"]) > float(before["reward_margin"])


def test_micro_batches_equal_one_batch_with_a_likelihood_term():
    batch, config = dialogue_batch(ROWS), _config("sigmoid,sft", loss_weights=(1.0, 0.5))
    wanted, scalars = _gradient(config, with_steps(batch, 1))
    grads, split = _gradient(config, with_steps(batch, 4))
    assert _distance(grads, wanted) < 1e-5
    for name, value in scalars.items():
        np.testing.assert_allclose(split[name], value, rtol=1e-5, atol=1e-6, err_msg=name)
    assert float(scalars["loss"]) == pytest.approx(float(scalars["loss_pairs"] + scalars["loss_nll"]), rel=1e-6)
    assert float(scalars["loss_nll"]) == pytest.approx(0.5 * np.log(float(scalars["perplexity"])), rel=1e-5)


def test_a_mesh_sees_one_batch():
    """Sorted losses sort the pairs of all devices."""
    batch, loss = with_steps(dialogue_batch(ROWS), 1), "aot_unpaired"
    wanted, scalars = _gradient(_config(loss), batch)
    mesh = make_mesh(MeshOptions(data=2, fsdp=2, tensor=1), jax.devices()[:4])
    shardings = param_shardings(mesh, abstract_params(MODEL), logical_axes(MODEL))
    grads, sharded = _gradient(_config(loss), batch, shardings=shardings)
    assert _distance(grads, wanted) < 1e-4
    assert float(sharded["loss"]) == pytest.approx(float(scalars["loss"]), rel=1e-5)


def _token_table(params, batch):
    """log-probs [M, V] of the distributions that predict row 0's trained tokens, in float64."""
    row = jax.tree.map(lambda x: x[:1], batch)
    arrays = (row.token_ids_BT, row.positions_BT, row.subtree_end_BT)
    table = np.asarray(logits(params, MODEL, *arrays), np.float64)[0][row.query_index_BM[0]]
    return table - np.log(np.exp(table).sum(-1, keepdims=True))


def test_discounted_tails_and_weights_by_hand():
    batch = jax.tree.map(lambda x: x[2:3], dialogue_batch(ROWS))
    tables = [_token_table(params, batch) for params in (_params(), _params(1))]
    used, sequence = batch.weight_BM[0] > 0, batch.sequence_index_BM[0]
    policy, reference = (table[np.arange(len(used)), batch.target_id_BM[0]] for table in tables)
    squares = np.log(np.exp(2 * tables[0]).sum(-1))
    replies = [np.flatnonzero(used & (sequence == i)) for i in range(2 * int(batch.pair_weight_BP.sum()))]
    assert any(len(a) != len(b) for a, b in zip(replies[::2], replies[1::2], strict=True))
    wanted = []
    for chosen, rejected in zip(replies[::2], replies[1::2], strict=True):
        shorter = min(len(chosen), len(rejected))
        ratio = [
            (np.where(np.arange(len(own)) < shorter, 1.0, 0.25) * (policy - reference)[own]).sum()
            for own in (chosen, rejected)
        ]
        weight = np.exp(sum((policy - squares)[own].mean() for own in (chosen, rejected)))
        wanted.append(weight * np.logaddexp(0.0, -0.5 * (ratio[0] - ratio[1])))
    loss_fn = find_stage("dpo").make_loss(MODEL, _config("sigmoid", ld_alpha=0.25, use_weighting=True))
    loss_sum, count, _ = jax.jit(loss_fn)(_params(), _params(1), batch)
    assert float(loss_sum / count) == pytest.approx(np.mean(wanted), rel=1e-5)


def test_discounted_tails_need_the_reference_itself():
    batch = dialogue_batch(ROWS)
    batch = batch.replace(ref_logps_BS=np.zeros(batch.sequence_id_BS.shape, np.float32))
    with pytest.raises(ConfigError, match="log-prob of each token"):
        jax.eval_shape(find_stage("dpo").make_loss(MODEL, _config("sigmoid", ld_alpha=0.5)), _params(), None, batch)


def test_a_reference_follows_the_policy_and_is_resumed(tmp_path):
    config = _config("sigmoid", ref_sync_steps=2, ref_mixup_alpha=0.6)
    tx, schedule = make_optimizer(config.dpo, 10)
    step = make_train_step("dpo", MODEL, config, tx, schedule)
    state, batch = init_state(jax.tree.map(jnp.array, _params()), tx, moving_reference=True), dialogue_batch(ROWS)
    batch = with_steps(batch, 1)
    state, first = step(state, batch)
    assert abs(float(first["reward_margin"])) < 1e-6
    assert _distance(state.ref_params, _params()) == 0.0
    state, _ = step(state, batch)
    wanted = jax.tree.map(lambda policy, start: 0.6 * policy + 0.4 * start, state.params, _params())
    assert _distance(state.params, _params()) > 1e-3
    assert _distance(state.ref_params, wanted) < 1e-6
    with StageCheckpoints(tmp_path) as checkpoints:
        checkpoints.save(state, {})
        checkpoints.wait()
    restored = restore_state(
        open_step(find_steps(tmp_path)[0]), abstract_state(abstract_params(MODEL), tx, moving_reference=True)
    )
    assert _distance(restored.ref_params, state.ref_params) == 0.0
    expected = step(state, batch)[1]["loss"]
    assert float(step(restored, batch)[1]["loss"]) == float(expected)


@pytest.mark.parametrize("loss", ["sigmoid", "hinge", "ipo", "sppo_hard", "aot_unpaired", "sigmoid,sft"])
def test_the_first_step_is_known_for_each_loss(loss):
    config = _config(loss)
    options, check = config.dpo, find_stage("dpo").check_first_step(config)
    right = {"loss": initial_loss(options), "reward_margin": 0.0}
    if loss == "sigmoid,sft":
        right = {"loss_pairs": right["loss"], "loss": 5.0, "reward_margin": 0.0}
    check(right)
    key = "loss_pairs" if "loss_pairs" in right else "loss"
    for wrong in ({key: 1.01 * right[key]}, {"reward_margin": 0.1}):
        with pytest.raises(WeightsError, match="must be the same model"):
            check(right | wrong)


def test_losses_without_a_reference_have_no_first_step_to_check():
    assert find_stage("dpo").check_first_step(_config("simpo")) is None


def test_a_run_without_a_reference_ends_with_its_report(tmp_path, monkeypatch):
    monkeypatch.setattr(experiment, "make_mesh", lambda options: make_mesh(options, jax.devices()[:1]))
    changes = {
        "dpo__loss": ("simpo", "sft"),
        "dpo__max_steps": 1,
        "dpo__warmup_ratio": 0.0,
        "eval__num_replies": 0,
    }
    config = tiny_config(stages=("dpo",), tracking__tensorboard=False, **changes)
    text = run(prepare({"": config}, tmp_path / "run"), tmp_path / "run")
    assert "+DPO" in text
    assert "against the reference" not in text
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    first, last = (line for line in lines if line["split"] == "eval")
    for line in (first, last):
        assert line["loss"] == pytest.approx(line["loss_pairs"] + line["loss_nll"], rel=1e-6)
        assert line["reward_chosen"] == pytest.approx(-0.1 * line["loss_nll"], rel=0.1)  # both are per token
    assert last["loss"] < first["loss"]
