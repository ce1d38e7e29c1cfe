"""A whole run: the stages in order, each starting from the last one's result, with the before/after report."""

from __future__ import annotations

import hashlib
import json
import re
import sys
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from empathax import json_text, sigterm
from empathax.atomic import whole_file
from empathax.config import Config, to_dict
from empathax.config.arguments import path_problem
from empathax.config.fields import flat
from empathax.errors import CheckpointError, ConfigError, DataError, Preempted, keep_traces_in
from empathax.evaluation import output
from empathax.evaluation.progress import ProgressBar
from empathax.evaluation.reply_metrics import ReplyScorer, ReplyScores
from empathax.evaluation.reply_record import make_record, slug
from empathax.evaluation.report.record import FILE, write_record
from empathax.evaluation.report.table import table_1
from empathax.models.transformer import placed
from empathax.models.weights.steps import Step
from empathax.parallel.agreement import check_shared_directory, fail_together, from_leader
from empathax.parallel.mesh import compute_dtype
from empathax.parallel.processes import is_leader, num_processes
from empathax.parallel.stopping import StopVote
from empathax.training import experiment as experiments
from empathax.training import results, workdirs
from empathax.training.checkpoint import (
    BestEvaluation,
    StageCheckpoints,
    check_best_metric,
    check_same_run,
    newest_checkpoint,
    newest_meta,
    restore_state,
    stage_meta,
)
from empathax.training.experiment import Experiment, Params, assemble
from empathax.training.held_out import HeldOut, Measured
from empathax.training.loop import BatchSource, Every, Recorder, StageEvaluations, train
from empathax.training.optimizer import make_optimizer
from empathax.training.results import Evaluations, Row
from empathax.training.stages.stage import Stage, find_stage, row_names, rows_kinds
from empathax.training.state import TrainState, abstract_state, init_state, state_shardings
from empathax.training.step import TrainStep, make_train_step
from empathax.training.tracking import Tracker
from empathax.training.trainable import Trainable, trainable_of

T = TypeVar("T")
NOTES = (
    "perplexity and token accuracy: held-out replies, given the dialogue before them",
    "reward accuracy and margin: held-out pairs, rewards against the base model in every row (so 0 for base itself)",
)


@dataclass(frozen=True)
class Run:
    """An experiment and the directory that it is run in."""

    experiment: Experiment
    workdir: Path

    @property
    def config(self) -> Config:
        """Its settings."""
        return self.experiment.config

    @property
    def stages(self) -> list[Stage]:
        """Its stages in order."""
        return [find_stage(name) for name in self.config.stages]


@dataclass(frozen=True)
class StageResult:
    """A stage's parameters, and what held-out data say of them if they were measured on the way."""

    params: Params
    measured: Measured | None = None


@dataclass(frozen=True)
class Evaluator:
    """Held-out data and what scores replies to them; `before` is what they say of the parameters a stage starts from:
    the first point of its curves, and its reference's log-probs on the held-out preferences."""

    held_out: HeldOut
    scorer: ReplyScorer
    before: Measured


def prepare(config: Config, workdir: Path) -> Run:
    """Everything of a training run that a user can get wrong, read and checked, but for the directory itself.

    Raises an EmpathaxError of the kind that failed. Nothing is compiled and no weights are read.
    """
    if re.match(r"\w+:/", str(workdir)):
        raise ConfigError(
            f"--workdir={workdir} is in a store, but a run appends to its files: name a directory on a disk, or on a "
            "file system that all hosts share (Filestore, NFS)"
        )
    run = Run(assemble(config, rows_kinds(config), trains=config.stages), workdir)
    with fail_together():
        for stage in run.stages:
            if metric := config.stage(stage.name).best_metric:
                check_best_metric(f"{stage.name}.best_metric", metric, config.eval.every_steps)
            stage.num_steps(run.experiment)  # too few rows for one step are refused here
    return run


def open_workdir(run: Run, overwrite: bool = False) -> None:
    """Makes the run's directory, or finds it to be an earlier run's, which `overwrite` empties first.

    Raises a ConfigError if it cannot be used, a CheckpointError if another process works in it.
    """
    with fail_together():
        if is_leader():
            workdirs.open_workdir(run.workdir, overwrite, _paths_in(run.config))
    check_shared_directory(run.workdir)
    if is_leader():
        keep_traces_in(run.workdir)


def describe(run: Run) -> str:
    """What is about to be done, for the terminal."""
    return experiments.describe(run.experiment, {stage.name: stage.num_steps(run.experiment) for stage in run.stages})


def begin(run: Run) -> None:
    """Marks the directory as this run's, by its settings. Raises CheckpointError if it holds another run's stages."""
    for stage in run.stages:
        directory = _checkpoints_of(run, stage)
        found = newest_meta(directory)
        if found is not None:
            check_same_run(found, stage_meta(run.experiment, stage, stage.num_steps(run.experiment)), str(directory))
    _record_settings(run)


def execute(run: Run, labels: Mapping[str, str] | None = None, bases: dict[str, Measured] | None = None) -> str:
    """Trains all stages of `run`, for which `begin` was called, or goes on where an earlier run of the same directory
    stopped.

    Returns report.md's text: metrics and replies of the base model and of every stage's result. With `eval.turns` each
    of them also leaves evaluations/NAME/evaluation.json, under the label that `labels` gives it (its own name, by
    default); rows that `labels` lacks leave none. `bases` holds what earlier runs measured of base models, by
    fingerprint, and takes this one's. Of several processes the first writes and returns the text, the others "".
    """
    with sigterm.listening():
        if num_processes() > 1:  # one that ends by itself would leave the others waiting
            sigterm.hold(sigterm.STOP_SECONDS)
        return _execute(run, labels, {} if bases is None else bases)


def _execute(run: Run, labels: Mapping[str, str] | None, bases: dict[str, Measured]) -> str:
    scorer, held_out = ReplyScorer.of(run.config.eval), HeldOut(run.experiment)
    fingerprint = base_fingerprint(run.experiment)
    known = Evaluations(run.workdir, fingerprint)
    source: Callable[[], Params] = run.experiment.model.load_params
    if "base" not in known.measured:
        known.add("base", bases.get(fingerprint) or held_out.measure(source()), write=is_leader())
    before = bases[fingerprint] = known.measured["base"]
    for name, stage in zip(row_names(run.config.stages)[1:], run.stages, strict=True):
        result = run_stage(run, stage, source, Evaluator(held_out, scorer, before))
        if name not in known.measured:
            known.add(name, result.measured or held_out.measure(result.params), write=is_leader())
        before, source = known.measured[name], partial(_identity, result.params)
    with fail_together():  # replies are scored once, also where a judge is paid for it
        if not is_leader():
            return ""
        scores = {
            name: scorer.score(held_out.turns, known.measured[name].answers)
            for name in (row_names(run.config.stages) if run.config.eval.turns else ())
        }
        _write_records(run, held_out, scorer, known, scores, labels)
        return _report(run, held_out, known, scores)


def run_stage(run: Run, stage: Stage, source: Callable[[], Params], evaluator: Evaluator) -> StageResult:
    """Trains one stage from the parameters that `source` gives and returns its result, from disk if it is finished.

    The result is the last step's, or the best evaluation's where the stage names a `best_metric`; with `ema_decay` the
    running mean of the parameters there.
    """
    experiment, config = run.experiment, run.config
    num_steps, trainable = stage.num_steps(experiment), trainable_of(experiment, stage.name)
    tx, schedule = make_optimizer(config.stage(stage.name), num_steps)
    extras = {
        "moving_reference": stage.moves_reference(config),
        "running_mean": config.stage(stage.name).ema_decay > 0.0,
    }
    abstract = abstract_state(trainable.abstract, tx, **extras)
    shardings = state_shardings(abstract, trainable.shardings)
    meta = stage_meta(experiment, stage, num_steps)
    read = partial(_result_or_state, trainable=trainable, source=source, like=placed(abstract, shardings), meta=meta)
    found = _newest_checkpoint(run, stage, read)
    if found is not None and found[0].meta["finished"]:
        return StageResult(found[1])
    start = trainable.start(source())
    reference = stage.reference(experiment, run.workdir / "reference", start.model, evaluator.held_out.row_logps)
    with ExitStack() as stack:
        best = _best_evaluation(run, stage, stack, is_new=found is None)
        checkpoints = StageCheckpoints(
            _checkpoints_of(run, stage),
            config.checkpoint.keep,
            frozen=start.frozen,
            after=best.checkpoints if best else None,
            committed=partial(workdirs.record_saved, run.workdir, stage.name),
        )
        stack.enter_context(checkpoints)
        state = found[1] if found is not None else init_state(start.params(), tx, shardings, **extras)
        model_of = partial(trainable.model, base=start.base)
        step = make_train_step(
            stage.name, experiment.model.source.config, config, tx, schedule, shardings=shardings, spec=trainable.spec
        )
        step = partial(step, ref_params=reference.params, base=start.base)
        del start, source, read, found
        batches = partial(stage.batches, experiment, reference)
        evaluations = _evaluations(run, stage, num_steps, int(state.step), evaluator, model_of, best, stack)
        state, measured = _train(run, stage, state, step, batches, evaluations, checkpoints, meta)
        if best is not None and best.step not in (None, int(state.step)):
            state = state.replace(params=best.params(trainable.abstract), mean_params=None)
            measured, meta = None, {**meta, "best_step": best.step}
        checkpoints.save(state, {**meta, "finished": True}, evaluations.tracker.problem())
        checkpoints.wait()
    if StopVote(experiment.model.mesh).last_vote():
        raise Preempted(f"stopped by SIGTERM after {stage.name} was finished; run the same command again to go on")
    if num_processes() == 1:
        sigterm.release()
    return StageResult(model_of(state.result), measured)


def _result_or_state(
    step: Step, trainable: Trainable, source: Callable[[], Params], like: TrainState, meta: Mapping[str, Any]
) -> Params | TrainState:
    """A finished stage's parameters, or the state to go on with. Raises a CheckpointError for another run's step."""
    check_same_run(step.meta, meta, str(step.directory.parent))
    return trainable.restored(step, source) if step.meta["finished"] else restore_state(step, like)


def _newest_checkpoint(run: Run, stage: Stage, read: Callable[[Step], T]) -> tuple[Step, T] | None:
    """The newest checkpoint that can be used, as `newest_checkpoint`, and what `read` makes of it.

    Raises a CheckpointError also where all are gone though the run has saved some: it never starts anew by itself.
    """
    directory = _checkpoints_of(run, stage)
    found = newest_checkpoint(directory, read)
    saved = from_leader(lambda: workdirs.saved_step(run.workdir, stage.name))
    if saved is None or (found is not None and found[0].number >= saved):
        return found
    if found is None:
        raise CheckpointError(
            f"{directory} holds no checkpoint, but this run has saved step {saved} of {stage.name}: bring it back from "
            "a copy; --overwrite or another --workdir starts anew"
        )
    if is_leader():
        print(f"{stage.name}: step {saved} was saved, going on from step {found[0].number}", file=sys.stderr)
    return found


def _train(
    run: Run,
    stage: Stage,
    state: TrainState,
    step: TrainStep,
    batches: BatchSource,
    evaluations: StageEvaluations,
    checkpoints: StageCheckpoints,
    meta: Mapping[str, Any],
) -> tuple[TrainState, Measured | None]:
    """The last state, and what held-out data say of it. Raises Preempted after SIGTERM, with the state saved."""
    config, start = run.config, int(state.step)

    def save(state: TrainState) -> None:
        checkpoints.save(state, {**meta, "finished": False}, evaluations.tracker.problem())

    if start == 0:
        evaluations.at_start(config)
    is_shown = config.tracking.progress and is_leader()
    with ProgressBar(stage.name, evaluations.num_steps, start, enabled=is_shown, status="compiling") as bar:
        recorder = Recorder(
            stage.name,
            config.stage(stage.name),
            config.tracking,
            evaluations.tracker,
            bar,
            run.workdir / "profile",
            check_first=stage.check_first_step(config) if start == 0 else None,
        )
        state, is_stopped = train(
            state,
            step,
            batches,
            evaluations.num_steps,
            recorder=recorder,
            evaluate=Every(config.eval.every_steps, evaluations.during),
            save=Every(config.checkpoint.every_steps, save, checkpoints.poll),
            stop=StopVote(run.experiment.model.mesh),
        )
    if is_stopped:
        checkpoints.wait()
        raise Preempted(
            f"stopped by SIGTERM after step {int(state.step)} of {stage.name}; run the same command again to go on"
        )
    return state, evaluations.at_end(state)


def _best_evaluation(run: Run, stage: Stage, stack: ExitStack, is_new: bool) -> BestEvaluation | None:
    metric = run.config.stage(stage.name).best_metric
    return stack.enter_context(BestEvaluation(run.workdir / "best" / stage.name, metric, is_new)) if metric else None


def _evaluations(
    run: Run,
    stage: Stage,
    num_steps: int,
    start: int,
    evaluator: Evaluator,
    model_of: Callable[[Params], Params],
    best: BestEvaluation | None,
    stack: ExitStack,
) -> StageEvaluations:
    tracker = Tracker(
        run.workdir,
        stage.name,
        start,
        evaluates_again=start == num_steps,  # a run that was stopped at its last step
        tensorboard=run.config.tracking.tensorboard,
        enabled=is_leader(),
    )
    stack.enter_context(tracker)
    return StageEvaluations(
        stage, num_steps, evaluator.held_out, evaluator.scorer, evaluator.before, model_of, tracker, best
    )


def base_fingerprint(experiment: Experiment) -> str:
    """A digest of everything that what is measured of the base model depends on."""
    model, config = experiment.model, experiment.config
    options = model.options
    facts = [model.weights_digest, options.quantization, options.param_dtype, str(compute_dtype(options, model.mesh))]
    parts = {name: dataset.fingerprint for name, dataset in experiment.datasets.items()}
    text = json.dumps([facts, parts, to_dict(config)["eval"]], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _paths_in(config: Config) -> list[tuple[str, Path]]:
    """Every setting that names something on this machine."""
    values = [
        (name, text)
        for name, value in flat(to_dict(config)).items()
        for text in (value if isinstance(value, list | tuple) else [value])
        if isinstance(text, str) and text
    ]
    return [(name, Path(text)) for name, text in values if not path_problem(text) and Path(text).exists()]


def _checkpoints_of(run: Run, stage: Stage) -> Path:
    return run.workdir / "checkpoints" / stage.name


def _identity(params: Params) -> Params:
    return params


def _record_settings(run: Run) -> None:
    """Writes config.json and the rows that could not be read; says which settings an earlier run here had otherwise."""
    if not is_leader():
        return
    path, settings = run.workdir / "config.json", to_dict(run.config)
    if path.exists():
        _say_differences(path, settings)
    with whole_file(path) as file:
        file.write(json.dumps(settings, indent=2) + "\n")
    for name, dataset in run.experiment.datasets.items():
        if dataset.rejects:
            dataset.write_rejects(run.workdir / f"rejected_rows_{name}.txt")


def _say_differences(path: Path, now: Mapping[str, Any]) -> None:
    try:
        with json_text.content_of(path, DataError):
            before = json_text.an_object(json_text.read(path, DataError), "the settings", DataError)
    except DataError as error:
        print(f"{error}; it is written anew", file=sys.stderr)
        return
    old, new = (flat(json.loads(json.dumps(settings))) for settings in (before, now))
    changed = [
        f"{key}: {old.get(key)!r} -> {new.get(key)!r}" for key in sorted(old | new) if old.get(key) != new.get(key)
    ]
    if changed:
        print("settings that changed since this directory's last run:\n  " + "\n  ".join(changed), file=sys.stderr)


def _write_records(
    run: Run,
    held_out: HeldOut,
    scorer: ReplyScorer,
    known: Evaluations,
    scores: Mapping[str, ReplyScores],
    labels: Mapping[str, str] | None,
) -> None:
    base, stages = known.measured["base"], run.stages
    for number, name in enumerate(row_names(run.config.stages)):
        if name not in (scores if labels is None else labels):
            continue
        place = run.workdir / "evaluations" / slug(name)
        output.make_directory(place)
        measured = known.measured[name]
        record = make_record(
            labels[name] if labels else name,
            str(_checkpoints_of(run, stages[number - 1])) if number else run.config.model.path,
            held_out.turns,
            measured.answers,
            scores[name],
            **results.data_of(run.config, scorer),
            metrics=held_out.metrics(measured, base),
            per_example=held_out.statistics(measured, base),
            curves=results.curves_of(run.workdir, run.config.stages[:number]),
        )
        write_record(place / FILE, record)


def _report(run: Run, held_out: HeldOut, known: Evaluations, scores: Mapping[str, ReplyScores]) -> str:
    base = known.measured["base"]
    rows = {
        name: Row(
            held_out.metrics(measured, base) | dict(scores[name].metrics if name in scores else {}),
            measured.prompts,
            measured.replies,
        )
        for name, measured in known.measured.items()
    }
    notes = [*NOTES, *_against_own_reference(run, held_out, known)]
    if scores:
        headings = ", ".join(column.heading for column in table_1())
        notes.append(f"{headings}: replies to {len(held_out.turns):,} held-out turns")
    text = results.markdown(f"{run.config.name}: before and after", rows, notes)
    with whole_file(run.workdir / "report.md") as file:
        file.write(text)
    return text


def _against_own_reference(run: Run, held_out: HeldOut, known: Evaluations) -> list[str]:
    """Each stage with a reference as its own loss sees it: rewards against the model that it started from."""
    names, found = row_names(run.config.stages), []
    for stage, before, after in zip(run.stages, names, names[1:], strict=False):
        if stage.reference_kind(run.config) == "none":
            continue
        values = held_out.reward_metrics(known.measured[after], known.measured[before])
        measured = [
            f"{name} {values[f'reward_{name}']:.3f}" for name in ("accuracy", "margin") if f"reward_{name}" in values
        ]
        found.append(f"{after} against the reference it started from ({before}): held-out reward {', '.join(measured)}")
    return found
