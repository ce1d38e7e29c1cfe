"""One stage of a run: its state from new or from disk, its reference, its evaluations, its last checkpoint."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax

from empathax.config import DpoOptions, to_dict
from empathax.data.batch import Batch
from empathax.errors import Preempted, WeightsError
from empathax.evaluation.reply_metrics import ReplyScorer
from empathax.objectives.preference import initial_loss, reference_kind
from empathax.parallel.agreement import from_leader
from empathax.parallel.mesh import compute_dtype
from empathax.parallel.processes import is_leader, put_batch
from empathax.parallel.rules import batch_sharding
from empathax.parallel.stopping import StopVote
from empathax.training import reference, report
from empathax.training.best import BestEvaluation, measured_value
from empathax.training.checkpoint import StageCheckpoints
from empathax.training.held_out import HeldOut, Logps
from empathax.training.job import Job, Params
from empathax.training.loop import train_stage
from empathax.training.optimizer import make_optimizer
from empathax.training.records import in_loop_scores
from empathax.training.report import Measured
from empathax.training.same_run import check_same_run, stage_meta
from empathax.training.state import TrainState, abstract_state, init_state, state_shardings
from empathax.training.step import TrainStep, make_train_step
from empathax.training.tracking import Tracker
from empathax.training.trainable import trainable_of

FIRST_STEP_TOLERANCE = 1e-3


@dataclass(frozen=True)
class Reference:
    """A DPO stage's frozen reference: its parameters, or its log-probs on the training rows; neither where the loss
    has no reference, the state holds one that moves, or it is what an adapter is trained on."""

    params: Params | None = None
    train_logps: Logps | None = None


@dataclass(frozen=True)
class StageResult:
    """A stage's parameters, and what held-out data say of them if they were measured on the way."""

    params: Params
    measured: Measured | None = None


@dataclass(frozen=True)
class Evaluator:
    """Held-out data and what scores replies to them; `before` is what they say of the parameters a stage starts from:
    the first point of its curves, and its reference's log-probs on the held-out pairs."""

    held_out: HeldOut
    scorer: ReplyScorer
    before: Measured


def run_stage(job: Job, stage: str, source: Callable[[], Params], evaluator: Evaluator) -> StageResult:
    """Trains one stage from the parameters that `source` gives and returns its result, from disk if it is finished.

    The result is the last step's, or the best evaluation's where the stage names a `best_metric`; with `ema_decay` the
    running mean of the parameters there.
    """
    num_steps, trainable = job.num_steps(stage), trainable_of(job, stage)
    tx, schedule = make_optimizer(job.config.stage(stage), num_steps)
    follows = stage == "dpo" and job.config.dpo.ref_sync_steps > 0
    extras = {"moving_reference": follows, "running_mean": job.config.stage(stage).ema_decay > 0.0}
    abstract = abstract_state(trainable.abstract, tx, **extras)
    shardings = state_shardings(abstract, trainable.shardings)
    meta = stage_meta(job, stage, num_steps)
    with StageCheckpoints(job.workdir / "checkpoints" / stage, job.config.checkpoint.keep) as checkpoints:
        found = checkpoints.meta()
        if found is not None:
            check_same_run(found, meta, str(checkpoints.directory))
            if found["finished"]:
                step_dir = checkpoints.directory / str(found["step"])
                return StageResult(trainable.restored(step_dir, source))
        start = trainable.start(source())
        checkpoints.frozen = start.frozen
        frozen = _reference(job, start.model, evaluator.held_out) if stage == "dpo" else Reference()
        if found is None:
            state = init_state(start.params(), tx, shardings, **extras)
        else:
            state, _ = checkpoints.restore(jax.tree.map(_placed, abstract, shardings))
        base = start.base
        del start, source
        model_config = job.source.config
        step = make_train_step(stage, model_config, job.config, tx, schedule, shardings=shardings, spec=trainable.spec)
        step = partial(step, ref_params=frozen.params, base=base)
        model_of = partial(trainable.model, base=base)
        with _best_evaluation(job, stage, is_new=found is None) as best:
            checkpoints.after = best.checkpoints if best else None
            state, last = _train(
                job, stage, state, step, model_of, num_steps, evaluator, frozen, checkpoints, best, meta
            )
            measured: Measured | None = last
            if best is not None and best.step not in (None, int(state.step)):
                state, measured = state.replace(params=best.params(trainable.abstract), mean_params=None), None
                meta = {**meta, "best_step": best.step}
        checkpoints.after = None
        checkpoints.save(state, {**meta, "finished": True})
        checkpoints.wait()
    if StopVote(job.mesh).last_vote():
        raise Preempted(f"stopped by SIGTERM after {stage} was finished; run the same command again to go on")
    return StageResult(model_of(state.result), measured)


def _best_evaluation(job: Job, stage: str, is_new: bool) -> AbstractContextManager[BestEvaluation | None]:
    metric = job.config.stage(stage).best_metric
    return BestEvaluation(job.workdir / "best" / stage, metric, is_new) if metric else nullcontext()


def _train(
    job: Job,
    stage: str,
    state: TrainState,
    step: TrainStep,
    model_of: Callable[[Params], Params],
    num_steps: int,
    evaluator: Evaluator,
    frozen: Reference,
    checkpoints: StageCheckpoints,
    best: BestEvaluation | None,
    meta: dict[str, Any],
) -> tuple[TrainState, Measured]:
    """The last state, and what held-out data say of it."""
    start, held_out, before = int(state.step), evaluator.held_out, evaluator.before
    tensorboard = job.config.tracking.tensorboard
    evaluates_again = start == num_steps  # a run that was stopped at its last step
    with Tracker(job.workdir, stage, start, evaluates_again, tensorboard=tensorboard, enabled=is_leader()) as tracker:

        def record(step: int, measured: Measured, answers: Sequence[str]) -> dict[str, float]:
            picture = None

            def score() -> dict[str, float]:
                nonlocal picture
                scores, picture = in_loop_scores(held_out, evaluator.scorer, answers, f"{stage} step {step}")
                return scores

            values = _stage_metrics(stage, measured, before, held_out) | from_leader(score)
            tracker.scalars(step, "eval", values)
            tracker.text(
                step, "replies", report.replies_text({"reply": report.Row(values, measured.prompts, measured.replies)})
            )
            if picture:
                tracker.image(step, "levels", picture)
            tracker.flush()
            if is_leader():
                print(f"{stage} step {step}/{num_steps}, held out: {_in_words(values)}", flush=True)
            return values

        def evaluate(state: TrainState) -> None:
            measured = held_out.measure_in_loop(model_of(state.result), [stage])
            values = record(int(state.step), measured, measured.answers)
            if best is not None:
                best.offer(state, values)

        if start == 0:
            tracker.text(0, "config", f"```json\n{json.dumps(to_dict(job.config), indent=2)}\n```")
            values = record(0, before, held_out.in_loop_answers(before.answers))
            if best is not None:
                measured_value(values, best.metric)  # not measured: known before the first step
        state = train_stage(
            stage,
            job.config,
            state,
            step,
            partial(_batches, job, stage, frozen),
            num_steps,
            evaluate=evaluate,
            check_first=_check_first_step(job.config.dpo) if stage == "dpo" and start == 0 else None,
            checkpoints=checkpoints,
            tracker=tracker,
            meta=meta,
            workdir=job.workdir,
            mesh=job.mesh,
        )
        measured = held_out.measure(model_of(state.result), job.datasets.keys())
        values = record(int(state.step), measured, held_out.in_loop_answers(measured.answers))
        if best is not None:
            best.offer(state, values)
    return state, measured


def _batches(job: Job, stage: str, frozen: Reference, start: int, stop: int) -> Iterator[Batch]:
    loader = job.loader(stage, frozen.train_logps)
    sharding = batch_sharding(job.mesh, num_leading=1)
    return (put_batch(batch, sharding) for batch in loader.iterate(start, stop))


def _reference(job: Job, params: Params, held_out: HeldOut) -> Reference:
    kind = job.config.dpo_reference
    if kind in ("none", "adapter_off") or job.config.dpo.ref_sync_steps:
        return Reference()  # there is none, or the step has it already
    if kind == "resident":
        return Reference(params=reference.frozen_copy(params))
    dataset = job.datasets["dpo"]
    dtype = str(compute_dtype(job.config.model, job.mesh))
    wanted = reference.fingerprint(params, {**dataset.fingerprint, "compute_dtype": dtype})
    compute = partial(held_out.row_logps, params, dataset.train)
    logps, from_disk = reference.cached_logps(job.workdir / "reference", wanted, compute)
    if is_leader():
        print(
            f"dpo reference log-probs of {len(logps):,} replies {'read from disk' if from_disk else 'computed'}",
            flush=True,
        )
    return Reference(train_logps=logps)


def _check_first_step(options: DpoOptions) -> Callable[[Mapping[str, float]], None]:
    """Before its first update the policy is the reference: no margin, and the loss is what it is without one."""
    has_reference = reference_kind(options) != "none"
    expected = initial_loss(options) if has_reference else None  # now: it compiles, which the loop must not

    def check(metrics: Mapping[str, float]) -> None:
        if not has_reference:
            return
        found, margin = metrics.get("loss_pairs", metrics["loss"]), metrics.get("reward_margin", 0.0)
        is_off = expected is not None and abs(found - expected) > FIRST_STEP_TOLERANCE * max(1.0, abs(expected))
        if is_off or abs(margin) > FIRST_STEP_TOLERANCE:
            loss = "" if expected is None else f"loss {expected:.6f}, "
            raise WeightsError(
                f"dpo starts with loss {found:.6f} and reward margin {margin:.6f}, but policy and reference must be "
                f"the same model then ({loss}margin 0): delete the run's reference/ directory"
            )

    return check


def _stage_metrics(stage: str, measured: Measured, before: Measured, held_out: HeldOut) -> dict[str, float]:
    if stage == "dpo":
        return held_out.objective_metrics(measured.pair_logps or (), before.pair_logps or ())
    return held_out.reply_metrics(measured)


def _in_words(values: Mapping[str, float]) -> str:
    shown = (
        "perplexity", "token_accuracy", "loss", "reward_accuracy", "reward_margin", "kl", "logp_chosen",
        "logp_rejected", "bleu4_sentence", "rouge_l", "distinct_2", "validation_gap",
    )  # fmt: skip
    return ", ".join(f"{name} {values[name]:.4g}" for name in shown if name in values)


def _placed(leaf: jax.ShapeDtypeStruct, sharding: jax.sharding.Sharding) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
