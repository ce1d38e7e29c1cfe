"""The compiled steps on tiny models: exact accumulation, frozen references, the finite gate, shared prefixes."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from empathax.config import Config, DpoOptions, MeshOptions, ModelOptions, SftOptions
from empathax.data.loader import eval_batches
from empathax.data.packing import pack
from empathax.data.prefix_tree import ScoredSequence
from empathax.errors import ConfigError
from empathax.evaluation.scoring import logps_by_sequence
from empathax.models.transformer import abstract_params, init_params, logical_axes, logits
from empathax.parallel.mesh import compute_dtype, make_mesh
from empathax.parallel.rules import batch_sharding, param_shardings, replicated
from empathax.training import metrics
from empathax.training.forward import make_score_step
from empathax.training.optimizer import make_optimizer
from empathax.training.reference import frozen_copy
from empathax.training.stages.stage import find_stage
from empathax.training.state import abstract_state, init_state, state_shardings
from empathax.training.step import make_train_step
from tests.training.tiny_rows import MODEL, dialogue_batch, dialogues, loss_sums, one_row_batches, with_steps

CONFIG = Config(
    model=ModelOptions(vocab_chunk=128),
    sft=SftOptions(learning_rate=1e-2, warmup_ratio=0.1, schedule="linear"),
    dpo=DpoOptions(learning_rate=1e-2, warmup_ratio=0.1, schedule="linear", beta=0.1),
)


@functools.cache
def _params(seed=0):
    return jax.device_get(init_params(MODEL, seed))


def _fresh(seed=0):
    return jax.tree.map(jnp.array, _params(seed))


@functools.cache
def _compiled(objective, keeps_gradient=False, max_grad_norm=1.0):
    """(compiled step, optimizer); `keeps_gradient`: the optimizer does nothing but keep what it is handed."""
    options = dataclasses.replace(CONFIG.stage(objective), max_grad_norm=max_grad_norm)
    tx, schedule = make_optimizer(options, 10)
    tx = optax.trace(decay=0.0) if keeps_gradient else tx
    return make_train_step(objective, MODEL, dataclasses.replace(CONFIG, **{objective: options}), tx, schedule), tx


def _start(objective):
    step, tx = _compiled(objective)
    return step, init_state(_fresh(), tx)


def _gradients(objective, batch, ref_params=None, max_grad_norm=0.0):
    """The gradient that a step over `batch` [A, B, ...] hands to the optimizer, and the step's metrics."""
    step, tx = _compiled(objective, keeps_gradient=True, max_grad_norm=max_grad_norm)
    state, scalars = step(init_state(_fresh(), tx), batch, ref_params)
    return jax.device_get(state.opt_state.trace), jax.device_get(scalars)


def _flat(tree):
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(leaf) for path, leaf in leaves}


def _distance(got, wanted):
    """The largest ||got - wanted|| / ||wanted|| of all leaves."""
    got, wanted = _flat(got), _flat(wanted)
    assert got.keys() == wanted.keys()
    return max(float(np.linalg.norm(got[name] - wanted[name]) / np.linalg.norm(wanted[name])) for name in wanted)


def _is_bitwise_equal(got, wanted):
    got, wanted = _flat(got), _flat(wanted)
    return got.keys() == wanted.keys() and all(got[name].tobytes() == wanted[name].tobytes() for name in wanted)


@pytest.mark.parametrize("objective", ["sft", "dpo"])
def test_micro_batches_equal_one_batch_whatever_their_counts(objective):
    batch = dialogue_batch(4)
    counts = (batch.weight_BM if objective == "sft" else batch.pair_weight_BP).sum(-1)
    assert len(set(counts.tolist())) == 4
    ref_params = _params(1) if objective == "dpo" else None
    wanted, scalars = _gradients(objective, with_steps(batch, 1), ref_params)
    grads, split_scalars = _gradients(objective, with_steps(batch, 4), ref_params)
    assert _distance(grads, wanted) < 1e-6
    for name, value in scalars.items():
        np.testing.assert_allclose(split_scalars[name], value, rtol=2e-6, atol=1e-6, err_msg=name)
    # the error this guards against is large here: a mean of the rows' means
    rows = [_gradients(objective, with_steps(_only_row(batch, row), 1), ref_params)[0] for row in range(4)]
    assert _distance(jax.tree.map(lambda *grads: sum(grads) / 4, *rows), wanted) > 0.05


def _only_row(batch, row):
    keep = (np.arange(batch.weight_BM.shape[0]) == row)[:, None]
    return batch.replace(weight_BM=batch.weight_BM * keep, pair_weight_BP=batch.pair_weight_BP * keep)


def test_the_loss_is_per_token_and_per_pair():
    batch = dialogue_batch(4)
    eval_step = loss_sums("sft", CONFIG)
    sums = jax.device_get(eval_step(_params(), batch))
    assert sums["tokens"] == batch.weight_BM.sum()
    row_sums = [eval_step(_params(), jax.tree.map(lambda x, i=i: x[i : i + 1], batch)) for i in range(4)]
    merged, whole = metrics.finalize(metrics.total(row_sums)), metrics.finalize(sums)
    assert merged == pytest.approx(whole, rel=1e-5)
    _, scalars = _gradients("sft", with_steps(batch, 1))
    assert float(scalars["loss"]) == pytest.approx(whole["loss"], rel=1e-5)
    assert float(scalars["perplexity"]) == pytest.approx(whole["perplexity"], rel=1e-4)


def test_two_token_reply_by_hand():
    prompt, reply = np.array([5, 9, 11], np.int32), np.array([7, 2], np.int32)
    rows = pack([[(ScoredSequence(prompt, reply, 0),)]], "tree")
    scores = make_score_step(MODEL, CONFIG.model)(_params(), next(iter(eval_batches(rows, 1))))
    ids = np.array([[5, 9, 11, 7, 2]])
    table = np.asarray(logits(_params(), MODEL, ids, np.arange(5)[None], np.full((1, 5), 5)), np.float64)[0]
    logps = table - np.log(np.exp(table).sum(-1, keepdims=True))
    assert scores.sequence_id_BS[0, 0] == 0
    assert scores.num_tokens_BS[0, 0] == 2
    assert float(scores.logps_BS[0, 0]) == pytest.approx(logps[2, 7] + logps[3, 2], abs=1e-5)
    assert np.all(np.asarray(scores.sequence_id_BS[0, 1:]) == -1)


@pytest.mark.parametrize("reference", ["resident", "precomputed"])
def test_step_zero_of_dpo_is_log_two_with_margin_zero(reference):
    batch = dialogue_batch(4)
    ref_params = _fresh() if reference == "resident" else None
    if reference == "precomputed":
        rows = (jax.tree.map(lambda x, i=i: x[i : i + 1], batch) for i in range(4))
        table = logps_by_sequence(
            make_score_step(MODEL, CONFIG.model), _fresh(), rows, int(batch.sequence_id_BS.max()) + 1
        )[0]
        ids = batch.sequence_id_BS
        batch = batch.replace(ref_logps_BS=np.where(ids >= 0, table[ids], 0.0).astype(np.float32))
    step, state = _start("dpo")
    _, scalars = step(state, with_steps(batch, 2), ref_params)
    assert abs(float(scalars["loss"]) - math.log(2)) < 1e-6
    assert abs(float(scalars["reward_margin"])) < 1e-6
    assert abs(float(scalars["reward_chosen"])) < 1e-6


def test_resident_and_precomputed_references_train_alike_and_stay_frozen():
    batch = dialogue_batch(4)
    reference = _fresh(1)
    table = logps_by_sequence(
        make_score_step(MODEL, CONFIG.model), reference, [batch], int(batch.sequence_id_BS.max()) + 1
    )[0]
    assert np.isfinite(table).all()
    precomputed = batch.replace(ref_logps_BS=np.where(batch.sequence_id_BS >= 0, table[batch.sequence_id_BS], 0.0))
    with_params, _ = _gradients("dpo", with_steps(batch, 1), reference)
    with_table, _ = _gradients("dpo", with_steps(precomputed, 1))
    assert _distance(with_params, with_table) < 1e-5
    assert _is_bitwise_equal(reference, _params(1))


def test_a_frozen_copy_survives_the_donated_state():
    step, state = _start("dpo")
    reference = frozen_copy(state.params)
    for _ in range(3):
        state, scalars = step(state, with_steps(dialogue_batch(4), 2), reference)
    assert _is_bitwise_equal(reference, _params())
    assert float(scalars["reward_margin"]) > 1e-3


@pytest.mark.parametrize("objective", ["sft", "dpo"])
def test_training_moves_both_log_probs_apart_in_the_metrics(objective):
    step, state = _start(objective)
    ref_params = _fresh() if objective == "dpo" else None
    batch, losses = with_steps(dialogue_batch(4), 2), []
    for _ in range(6):
        state, scalars = step(state, batch, ref_params)
        losses.append(float(scalars["loss"]))
    assert losses[-1] < 0.8 * losses[0]
    assert int(state.step) == 6
    if objective == "dpo":
        assert float(scalars["reward_accuracy"]) == 1.0
        margin = float(scalars["reward_chosen"] - scalars["reward_rejected"])
        assert float(scalars["reward_margin"]) == pytest.approx(margin, rel=1e-4)
        assert float(scalars["logp_chosen"]) != float(scalars["logp_rejected"])


@pytest.mark.parametrize("objective", ["sft", "dpo"])
def test_a_non_finite_step_changes_no_bit_and_is_counted(objective):
    step, state = _start(objective)
    good = with_steps(dialogue_batch(4), 2)
    bad = good.replace(
        weight_BM=np.where(np.arange(good.weight_BM.size).reshape(good.weight_BM.shape) == 0, np.nan, good.weight_BM)
    )
    ref_params = _fresh(1) if objective == "dpo" else None
    state, scalars = step(state, good, ref_params)
    assert float(scalars["skipped"]) == 0.0
    before = jax.device_get(state)
    for streak in (1, 2):
        state, scalars = step(state, bad, ref_params)
        assert (int(state.nonfinite_streak), int(state.nonfinite_total)) == (streak, streak)
        assert (float(scalars["skipped"]), float(scalars["nonfinite_streak"])) == (1.0, streak)
    after = jax.device_get(state)
    assert _is_bitwise_equal(after.params, before.params)
    assert _is_bitwise_equal(after.opt_state, before.opt_state)
    assert int(after.step) == 3
    state, scalars = step(state, good, ref_params)
    assert (int(state.nonfinite_streak), int(state.nonfinite_total), int(state.step)) == (0, 2, 4)
    assert not _is_bitwise_equal(state.params, before.params)


OVERFLOWS = {  # (optimizer, learning rate): where what is finite before the update is not after it
    "learning rate": (optax.scale_by_adam(), jnp.inf),
    "parameters": (optax.scale(1e38), 1e6),
    "optimizer state": (optax.chain(optax.scale(1e30), optax.scale_by_adam()), 1e-3),
}


@pytest.mark.parametrize(("tx", "rate"), OVERFLOWS.values(), ids=OVERFLOWS)
def test_an_update_that_is_not_finite_changes_no_bit_and_is_counted(tx, rate):
    """Loss and gradient are finite: what the update makes of them is not."""
    step = make_train_step("sft", MODEL, CONFIG, tx, lambda count: jnp.float32(rate))
    start = init_state(_fresh(), tx)
    before = jax.device_get((start.params, start.opt_state))
    state, scalars = step(start, with_steps(dialogue_batch(4), 2))
    assert np.isfinite([float(scalars["loss"]), float(scalars["grad_norm"])]).all()
    assert (float(scalars["skipped"]), int(state.nonfinite_streak)) == (1.0, 1)
    jax.tree.map(np.testing.assert_array_equal, (state.params, state.opt_state), before)


def test_an_update_that_makes_parameters_infinite_is_skipped():
    """The loss and the gradient are finite; the rate is infinite in float32."""
    options = dataclasses.replace(CONFIG.sft, learning_rate=3e38, warmup_ratio=0.0, schedule="constant")
    tx, schedule = make_optimizer(options, 10)
    step = make_train_step("sft", MODEL, dataclasses.replace(CONFIG, sft=options), tx, lambda step: schedule(step) * 2)
    state, scalars = step(init_state(_fresh(), tx), with_steps(dialogue_batch(4), 1))
    assert math.isfinite(float(scalars["loss"]))
    assert math.isfinite(float(scalars["grad_norm"]))
    assert (float(scalars["skipped"]), int(state.nonfinite_streak)) == (1.0, 1)
    assert _is_bitwise_equal(state.params, _params())
    assert all(np.isfinite(leaf).all() for leaf in _flat(state.opt_state).values())


def test_a_batch_that_trains_nothing_is_skipped_not_a_loss_of_zero():
    step, state = _start("sft")
    batch = with_steps(dialogue_batch(4), 2)
    _, scalars = step(state, batch.replace(weight_BM=np.zeros_like(batch.weight_BM)))
    assert math.isnan(float(scalars["loss"]))
    assert float(scalars["skipped"]) == 1.0


def test_clipping_bounds_the_update_and_reports_the_norm_before():
    batch = with_steps(dialogue_batch(4), 1)
    wanted, scalars = _gradients("sft", batch)
    norm = math.sqrt(sum(float((leaf.astype(np.float64) ** 2).sum()) for leaf in jax.tree.leaves(wanted)))
    assert float(scalars["grad_norm"]) == pytest.approx(norm, rel=1e-5)
    clipped, scalars = _gradients("sft", batch, max_grad_norm=norm / 4)
    assert float(scalars["grad_norm"]) == pytest.approx(norm, rel=1e-5)
    assert _distance(clipped, jax.tree.map(lambda grad: grad / 4, wanted)) < 1e-5


def test_the_learning_rate_follows_the_batches_seen():
    step, state = _start("sft")
    good = with_steps(dialogue_batch(4), 2)
    bad = good.replace(weight_BM=good.weight_BM * np.nan)
    rates = []
    for batch in (good, bad, good):
        state, scalars = step(state, batch)
        rates.append(float(scalars["learning_rate"]))
    assert rates == pytest.approx([0.0, 1e-2, 1e-2 * 8 / 9])


def test_bfloat16_parameters_stay_bfloat16_and_accumulate_in_float32():
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.bfloat16), _params())
    step, tx = _compiled("sft")
    batch = jax.eval_shape(lambda: with_steps(dialogue_batch(4), 2))
    state, _ = jax.eval_shape(step, jax.eval_shape(lambda: init_state(params, tx)), batch)
    assert {leaf.dtype for leaf in jax.tree.leaves(state.params)} == {jnp.dtype("bfloat16")}
    moments = [leaf for leaf in jax.tree.leaves(state.opt_state) if leaf.ndim]
    assert {leaf.dtype for leaf in moments} == {jnp.dtype("float32")}


def test_a_mesh_gives_the_same_step():
    batch = with_steps(dialogue_batch(4), 2)
    step, state = _start("dpo")
    for _ in range(2):  # the first has a learning rate of 0
        state, wanted_scalars = step(state, batch, _fresh(1))
    wanted = jax.device_get(state)

    mesh = make_mesh(MeshOptions(data=1, fsdp=2, tensor=2), jax.devices()[:4])
    shardings = param_shardings(mesh, abstract_params(MODEL), logical_axes(MODEL))
    tx, schedule = make_optimizer(CONFIG.dpo, 10)
    of_state = state_shardings(abstract_state(abstract_params(MODEL), tx), shardings)
    step = make_train_step("dpo", MODEL, CONFIG, tx, schedule, shardings=of_state)
    state = init_state(jax.device_put(_params(), shardings), tx, of_state)
    batch, reference = jax.device_put((batch, _params(1)), (batch_sharding(mesh, 1), shardings))
    for _ in range(2):
        state, scalars = step(state, batch, reference)
    moments, wanted_moments = (s.opt_state[0].mu for s in (state, wanted))
    assert _distance(moments, wanted_moments) < 1e-4
    for name, value in wanted_scalars.items():
        np.testing.assert_allclose(scalars[name], value, rtol=1e-4, atol=1e-5, err_msg=name)
    for leaf, sharding in zip(jax.tree.leaves(state), jax.tree.leaves(of_state), strict=True):
        assert leaf.sharding.is_equivalent_to(sharding, leaf.ndim)
    assert scalars["loss"].sharding.is_equivalent_to(replicated(mesh), 0)


def test_the_step_lowers_without_arrays():
    tx, schedule = make_optimizer(CONFIG.sft, 10)
    step = make_train_step("sft", MODEL, CONFIG, tx, schedule)
    shapes = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), (init_state(_fresh(), tx), with_steps(dialogue_batch(4), 2))
    )
    text = step.lower(*shapes).as_text()
    assert "tf.aliasing_output" in text or "jax.buffer_donor" in text  # the state is donated


def _scores_and_gradients(groups, packing, run):
    """Per-reply log-probs by id, and the gradient of the summed loss, over all rows."""
    logps, total = {}, None
    for batch in one_row_batches(groups, packing):
        grads, (ids, values) = run(batch)
        logps |= {int(i): float(v) for i, v in zip(ids.ravel(), values.ravel(), strict=True) if i >= 0}
        total = grads if total is None else jax.tree.map(np.add, total, grads)
    return logps, total


@functools.cache
def _run(objective):
    loss_fn = find_stage(objective).make_loss(MODEL, CONFIG)
    score = make_score_step(MODEL, CONFIG.model)
    reference = _params(1)  # made out here: inside a trace the cache would keep a tracer
    grad = jax.jit(jax.grad(lambda params, batch: loss_fn(params, reference, batch)[0]))

    def run(batch):
        scores = jax.device_get(score(_params(), batch))
        return jax.device_get(grad(_params(), batch)), (scores.sequence_id_BS, scores.logps_BS)

    return run


@pytest.mark.parametrize("objective", ["sft", "dpo"])
@settings(max_examples=8, deadline=None)
@given(num_dialogues=st.integers(1, 2), num_pairs=st.integers(1, 4), seed=st.integers(0, 10**6))
def test_tree_pair_and_none_train_alike(objective, num_dialogues, num_pairs, seed):
    groups = dialogues(num_dialogues, num_pairs, seed)
    wanted_logps, wanted = _scores_and_gradients(groups, "none", _run(objective))
    assert len(wanted_logps) == 2 * num_dialogues * num_pairs
    for packing in ("pair", "tree"):
        logps, grads = _scores_and_gradients(groups, packing, _run(objective))
        assert logps == pytest.approx(wanted_logps, abs=1e-4)
        assert _distance(grads, wanted) < 1e-4


def test_a_reference_is_required():
    step, state = _start("dpo")
    with pytest.raises(ConfigError, match="needs a reference"):
        step(state, with_steps(dialogue_batch(4), 2))


def test_an_objective_that_does_not_exist_is_an_error():
    with pytest.raises(ConfigError, match="'ppo'"):
        find_stage("ppo")


def test_compute_dtype_is_float32_on_cpu_unless_told():
    assert compute_dtype(ModelOptions()) == jnp.float32
    assert compute_dtype(ModelOptions(compute_dtype="bfloat16")) == jnp.bfloat16
