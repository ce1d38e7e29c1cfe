"""KTO from rows to a run: the loss of packed rows worked out sequence by sequence, meshes, held-out metrics."""

import dataclasses
import functools
import json
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from empathax.config import Config, DpoOptions, MeshOptions, ModelOptions
from empathax.data.loader import eval_batches
from empathax.data.packing import pack
from empathax.models.transformer import abstract_params, init_params, logical_axes, logits
from empathax.parallel.mesh import make_mesh
from empathax.parallel.rules import batch_sharding, param_shardings
from empathax.training import experiment
from empathax.training.forward import make_score_step
from empathax.training.held_out import HeldOut, Measured, by_side, objective_metrics, reward_metrics
from empathax.training.optimizer import make_optimizer
from empathax.training.stages.stage import find_stage
from empathax.training.state import init_state
from empathax.training.step import make_train_step
from empathax.training.sweep import prepare, run
from tests.training.tiny import tiny_config
from tests.training.tiny_rows import MODEL as TWO_LAYERS
from tests.training.tiny_rows import dialogues, loss_sums, with_steps

MODEL = dataclasses.replace(TWO_LAYERS, num_layers=1)
BETA, LABELS = 0.5, (True, False, False, True, True, False, True, False)
CONFIG = Config(
    model=ModelOptions(attention="dense"),
    dpo=DpoOptions(
        loss=("kto",), beta=BETA, desirable_weight=1.2, learning_rate=2e-4, warmup_ratio=0.0, schedule="constant"
    ),
)


@functools.cache
def _params(seed=0):
    return jax.device_get(init_params(MODEL, seed))


@functools.cache
def _rows(packing="tree"):
    groups = [[(unit[0],) for unit in group] for group in dialogues(4, num_pairs=2)]
    ids = iter(range(len(LABELS)))
    groups = [[(dataclasses.replace(unit[0], sequence_id=next(ids)),) for unit in group] for group in groups]
    return pack(groups, packing, row_length=128, labels=LABELS, mismatched=True)


def _batch(packing="tree"):
    rows = _rows(packing)
    (batch,) = eval_batches(rows, len(rows))
    return batch


def _one_by_one(rows):
    """{sequence id: log-ratio} from each sequence in a row of its own, in float64."""
    ids, prompt_lengths, replies = [], [], []
    for tree in rows.trees:
        for slot, sequence_id in enumerate(tree.sequence_ids):
            own = tree.sequence_index == slot
            last = tree.query_index[own][0]
            path = [j for j in range(last + 1) if j <= last < tree.subtree_end[j]]
            ids.append(int(sequence_id))
            prompt_lengths.append(len(path))
            replies.append(np.concatenate([tree.token_ids[path], tree.target_id[own]]))
    longest = max(map(len, replies))
    tokens = np.stack([np.pad(reply, (0, longest - len(reply))) for reply in replies])
    places = np.broadcast_to(np.arange(longest), tokens.shape)
    chains = (tokens, places, np.full_like(tokens, longest))
    ratios = np.zeros(len(ids))
    for seed, sign in ((0, 1.0), (1, -1.0)):
        table = np.asarray(jax.jit(logits, static_argnums=1)(_params(seed), MODEL, *chains), np.float64)
        table -= np.log(np.exp(table).sum(-1, keepdims=True))
        for row, (start, reply) in enumerate(zip(prompt_lengths, replies, strict=True)):
            ratios[row] += sign * sum(table[row, at - 1, reply[at]] for at in range(start, len(reply)))
    return dict(zip(ids, ratios, strict=True))


def test_the_loss_of_packed_rows_is_that_of_their_sequences():
    ratios, batch = _one_by_one(_rows()), _batch()
    own = np.array([ratios[i] for i in range(len(LABELS))])
    mismatched = [ratio for i, ratio in ratios.items() if i >= len(LABELS)]
    assert len(mismatched) == len(LABELS)
    kl = max(np.mean(mismatched), 0.0)
    sign = np.where(LABELS, 1.0, -1.0)
    wanted = np.where(LABELS, 1.2, 1.0) / (1.0 + np.exp(BETA * sign * (own - kl)))
    loss_sum, count, sums = jax.jit(find_stage("dpo").make_loss(MODEL, CONFIG))(_params(), _params(1), batch)
    assert float(count) == len(LABELS)
    assert float(loss_sum) == pytest.approx(wanted.sum(), rel=1e-4)
    assert float(sums["kl"] / count) == pytest.approx(kl, abs=1e-4)
    assert float(sums["reward_chosen"]) == pytest.approx(BETA * own[np.array(LABELS)].sum(), rel=1e-4)
    assert float(sums["trained_tokens"]) == batch.weight_BM.sum() / 2  # a mismatched reply is not trained


def test_a_step_lowers_its_loss():
    tx, schedule = make_optimizer(CONFIG.dpo, 10)
    state, batch = init_state(jax.tree.map(jnp.array, _params()), tx), with_steps(_batch(), 1)
    step = make_train_step("dpo", MODEL, CONFIG, tx, schedule)
    state, first = step(state, batch, _params(1))
    _, second = step(state, batch, _params(1))
    assert second["loss"] < first["loss"] - 1e-3
    assert second["reward_margin"] > first["reward_margin"]


def test_a_reference_on_disk_and_a_mesh_make_no_difference():
    """The estimate of the KL is that of all rows on all devices."""
    batch = jax.tree.map(lambda x: np.concatenate([x] * 4)[:4], _batch())
    wanted = loss_sums("dpo", CONFIG, model=MODEL)(_params(), batch, _params(1))
    scores = make_score_step(MODEL, CONFIG.model)(_params(1), batch)
    cached = batch.replace(ref_logps_BS=np.asarray(scores.logps_BS))
    mesh = make_mesh(MeshOptions(data=2, fsdp=2, tensor=1), jax.devices()[:4])
    shardings = param_shardings(mesh, abstract_params(MODEL), logical_axes(MODEL))
    params = jax.device_put(_params(), shardings)
    found = loss_sums("dpo", CONFIG, mesh, MODEL)(params, jax.device_put(cached, batch_sharding(mesh)))
    for name, value in wanted.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-4, atol=1e-4, err_msg=name)


def _held_out(ids_and_labels, num_mismatched):
    examples = [SimpleNamespace(sequence_ids=i, labels=labels, dialogue_id=f"d{i[0]}") for i, labels in ids_and_labels]
    num_replies = sum(len(labels) for _, labels in ids_and_labels)
    rows = SimpleNamespace(reply_lengths=lambda: np.ones(num_replies + num_mismatched, np.int32))
    return SimpleNamespace(eval_examples=examples, eval=rows)


def test_held_out_replies_by_hand():
    dataset = _held_out([((0,), (True,)), ((1,), (False,)), ((2,), (True,))], num_mismatched=2)
    logps, ref_logps = np.array([-1.0, -2.0, -3.0, -4.0, -5.0]), np.array([-2.0, -2.0, -1.0, -6.0, -8.0])
    values = objective_metrics(dataset, logps, ref_logps, DpoOptions(loss=("kto",), beta=0.5))
    kl, s = 2.5, lambda x: 1 / (1 + np.exp(-x))
    assert values["kl"] == pytest.approx(kl)
    assert values["loss"] == pytest.approx((s(0.5 * (kl - 1)) + s(0.5 * (0 - kl)) + s(0.5 * (kl + 2))) / 3, rel=1e-6)
    rewards = reward_metrics(dataset, logps, ref_logps, 0.5)
    wanted = {
        "reward_chosen": -0.25, "reward_rejected": 0.0, "reward_margin": -0.25, "logp_chosen": -2.0, "logp_rejected": -2
    }  # fmt: skip
    assert rewards == pytest.approx(wanted)
    assert values == pytest.approx(rewards | {"loss": values["loss"], "kl": kl})
    assert by_side(dataset, logps)["chosen"][0] == ("d0", "d2")


def test_held_out_pairs_that_are_trained_apart_keep_their_accuracy():
    dataset = _held_out([((0, 1), (True, False)), ((2, 3), (True, False))], num_mismatched=4)
    logps, zeros = np.array([-1.0, -3.0, -5.0, -4.0] * 2), np.zeros(8)
    values = objective_metrics(dataset, logps, zeros, DpoOptions(loss=("kto",), beta=0.5))
    assert values["reward_accuracy"] == 0.5
    assert values["reward_margin"] == pytest.approx(0.25)
    assert reward_metrics(dataset, logps, zeros, 0.5)["reward_accuracy"] == 0.5


def test_a_run_on_pairs_taken_apart(tmp_path, monkeypatch):
    monkeypatch.setattr(experiment, "make_mesh", lambda options: make_mesh(options, jax.devices()[:1]))
    changes = {
        "data__unpair": True,
        "dpo__loss": ("kto",),
        "dpo__max_steps": 2,
        "dpo__warmup_ratio": 0.0,
        "dpo__reference": "precomputed",
        "eval__num_replies": 0,
    }
    config = tiny_config(stages=("dpo",), tracking__tensorboard=False, **changes)
    jobs = prepare({"": config}, tmp_path / "run")
    text = run(jobs, tmp_path / "run")
    assert "held-out reward accuracy" in text
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    train, held_out = ([line for line in lines if line["split"] == split] for split in ("train", "eval"))
    assert train[0]["loss"] == pytest.approx(0.5, abs=1e-4)
    assert train[0]["replies"] == train[0]["replies_chosen"] + train[0]["replies_rejected"]
    assert held_out[0]["loss"] == pytest.approx(0.5, abs=1e-4)
    assert held_out[0]["kl"] == pytest.approx(0.0, abs=1e-4)
    assert held_out[1]["reward_margin"] > 0.0
    measured = json.loads((tmp_path / "run" / "evaluations.json").read_text())["measured"]
    base, after = (Measured(**measured[name]) for name in ("base", "+DPO"))
    statistics = HeldOut(jobs[""].experiment).statistics(after, base)
    order = statistics["reward_margin"].all_dialogues()
    margin = statistics["reward_margin"].estimates("reward_margin", order, np.ones((1, len(order))))["reward_margin"]
    assert margin == pytest.approx(held_out[1]["reward_margin"], rel=1e-4)
