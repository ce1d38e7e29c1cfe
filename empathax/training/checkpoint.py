"""What stays on disk of a stage: its checkpoints, what they were trained with, and its best evaluation.

Orbax writes them in the background, one directory per stage, one per step in it. A checkpoint holds three items:
`params`, `rest` (optimizer state and counters) and `meta` (JSON: the step, what the model is and which data it was
trained on). `params` are what a model, or an adapter, is made of: the running mean of what is trained where one is
kept, which itself is then in `rest`. `frozen` holds the adapters of earlier stages, if there are any. A stage whose
newest checkpoint says `finished` is never trained again.
"""

from __future__ import annotations

import dataclasses
import errno
import json
import logging
import math
import os
import shutil
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import jax
import orbax.checkpoint as ocp

from empathax.config import Config, to_dict
from empathax.errors import CheckpointError, ConfigError, NonFiniteError, Preempted, did_you_mean, keep_trace, raise_all
from empathax.evaluation.report.table import better_metrics, better_way
from empathax.models.weights.steps import (
    FROZEN,
    PARAMS,
    Step,
    check_layout,
    newest_verified,
    open_step,
    seal_files,
    sealed_meta,
    step_directories,
)
from empathax.parallel.agreement import fail_together, first_error
from empathax.parallel.processes import is_leader
from empathax.training.experiment import Experiment
from empathax.training.stages.stage import Stage
from empathax.training.state import TrainState
from empathax.training.trainable import adapters_meta

T = TypeVar("T")
_TEMPORARY = ".orbax-checkpoint-tmp"  # in the names of Orbax's unfinished directories
_PREVIOUS, _REMOVED = ".previous", ".removed"  # ends of names: of a step that is being replaced, or removed
_BEFORE = "stages before"
# Settings of a stage that its steps do not depend on, or that are compared by what follows from them.
_MAY_CHANGE = ("num_epochs", "max_steps", "rows_per_batch", "accumulation_steps", "max_nonfinite_steps")


@dataclass
class _Save:
    """A save that is on its way to the disk."""

    step: int
    thread: threading.Thread | None = None
    error: Exception | None = None


class StageCheckpoints:
    """The checkpoints of one stage of a run. Use as a context manager: leaving it waits for pending saves.

    `frozen` is a tree that is written into each of them unchanged: adapters below the one that is trained. `after` are
    others whose pending saves reach the disk before one of these begins. `committed` is told of each step that did.
    The newest `keep` of those that can be used are kept: a damaged one, and one from the middle of a streak of skipped
    updates, does not count.
    """

    def __init__(
        self,
        directory: Path,
        keep: int = 2,
        *,
        frozen: Any = None,
        after: StageCheckpoints | None = None,
        committed: Callable[[int], None] | None = None,
    ) -> None:
        self.directory = Path(directory).absolute()
        self._keep, self._frozen, self._after, self._committed = keep, frozen, after, committed
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            if is_leader():
                _clear(self.directory)
        except OSError as error:
            raise CheckpointError(
                f"{directory} cannot be written: {error.strerror}; choose another --workdir"
            ) from error
        _send_tracebacks_to_the_log()
        options = ocp.options.AsyncOptions(post_finalization_callback=self._seal)
        self._saver = ocp.AsyncCheckpointer(ocp.CompositeCheckpointHandler(), async_options=options)
        self._pending: _Save | None = None
        self._failed = ""  # why the last save did not reach the disk

    def __enter__(self) -> StageCheckpoints:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        # after an error of this process alone, the others will not come to where a save waits for them
        if kind in (None, Preempted, NonFiniteError) or jax.process_count() == 1:
            self.close()

    def save(self, state: TrainState, meta: Mapping[str, Any], problem: str = "") -> None:
        """Starts a background save of `state` at its step, in place of one that is there. `meta` must be JSON.

        A save that fails is said on stderr, and training goes on: `wait` raises if the last one did. With several
        processes what fails before the background is raised. A `problem` of any process fails it: the record of the
        steps before it is not on disk.
        """
        self._settle()
        if problem := first_error(problem):
            self._fail(int(state.step), problem)
            return
        if self._after is not None:
            self._after.wait()
        step = int(state.step)
        trees = {PARAMS: _model(state), "rest": _rest(state), **({FROZEN: self._frozen} if self._frozen else {})}
        whole = sealed_meta({**meta, "step": step, "nonfinite_streak": int(state.nonfinite_streak)}, trees)
        items = {item: ocp.args.StandardSave(tree) for item, tree in trees.items()}
        self._pending = _Save(step)
        try:
            if is_leader():
                _set_aside(self.directory / str(step))
            args = ocp.args.Composite(**items, meta=ocp.args.JsonSave(whole))
            self._saver.save(self.directory / str(step), args=args)
        except Exception as error:  # whatever Orbax's own threads raise
            if jax.process_count() > 1:
                raise CheckpointError(f"saving step {step} to {self.directory} failed: {_reason(error)}") from error
            self._pending.error = error
        self._pending.thread = threading.Thread(target=self._finish, args=(self._pending,), name="checkpoint")
        self._pending.thread.start()

    def poll(self) -> None:
        """Says so if a save has failed since it was last asked; waits for nothing."""
        if self._pending is not None and self._pending.thread is not None and not self._pending.thread.is_alive():
            self._settle()

    def wait(self) -> None:
        """Waits for pending saves; raises CheckpointError if the last one did not reach the disk."""
        self._settle(goes_on=False)
        if self._failed:
            raise CheckpointError(f"{self._failed}; make room, then run the same command again to go on")

    def close(self) -> None:
        """Waits for pending saves and frees the saver."""
        self._settle()
        self._saver.close()

    def _settle(self, goes_on: bool = True) -> None:
        save = self._pending
        if save is None or save.thread is None:
            return
        save.thread.join()
        self._pending, self._failed = None, ""
        if save.error is not None:
            self._fail(save.step, _reason(save.error), goes_on)

    def _fail(self, step: int, reason: str, goes_on: bool = True) -> None:
        kept = step_directories(self.directory)
        found = f"the newest checkpoint is step {kept[0].name}" if kept else "there is no checkpoint yet"
        self._failed = f"step {step} was not saved to {self.directory}: {reason}; {found}"
        if goes_on:
            _say(f"{self._failed}; training goes on")

    def _finish(self, save: _Save) -> None:
        """In the background: when the step is on disk, those that are not kept go."""
        try:
            if save.error is None:
                self._saver.wait_until_finished()
            if save.error is None and is_leader():
                seal_files(self.directory / str(save.step))
                self._remove_others(save.step)
                if self._committed is not None:
                    self._committed(save.step)
        except Exception as error:  # whatever Orbax's own threads raise
            save.error = error
        if save.error is not None and is_leader():
            _clear(self.directory)

    def _seal(self) -> None:
        """Before a step gets its name: what its files are."""
        if self._pending is not None and is_leader():
            for directory in self.directory.glob(f"{self._pending.step}{_TEMPORARY}*"):
                seal_files(directory)

    def _remove_others(self, saved: int) -> None:
        found = {directory: _opened(directory) for directory in step_directories(self.directory)}
        counting = [directory for directory, step in found.items() if step and not step.meta["nonfinite_streak"]]
        kept = [*counting[: self._keep], self.directory / str(saved)]
        for directory, step in found.items():
            if directory not in kept and (step is None or len(counting) >= self._keep):
                _remove(directory)
        _remove(self.directory / f"{saved}{_PREVIOUS}")


class _OrbaxErrors(logging.Filter):
    """Keeps what Orbax logs of a failed save, a traceback for each of its threads, for error.log: `_fail` says why."""

    def filter(self, record: logging.LogRecord) -> bool:
        if record.levelno < logging.ERROR or "orbax" not in f"{record.pathname} {record.getMessage()}":
            return True
        keep_trace(logging.Formatter().format(record))
        return False


_ORBAX_ERRORS = _OrbaxErrors()


def _send_tracebacks_to_the_log() -> None:
    for name in ("absl", "asyncio"):
        logging.getLogger(name).addFilter(_ORBAX_ERRORS)  # adding it again changes nothing


def newest_checkpoint(directory: Path, read: Callable[[Step], T]) -> tuple[Step, T] | None:
    """The newest step in a stage's directory that `read` can read on all processes, and what it returns.

    None if there are no steps. Raises a CheckpointError with every reason if none of those that are there can be used.
    """
    directory = Path(directory).absolute()
    with fail_together():
        if is_leader() and directory.is_dir():
            _clear(directory)
    directories = step_directories(directory)
    return newest_verified(directories, read, _say, first_error) if directories else None


def _say(text: str) -> None:
    if is_leader():
        print(text, file=sys.stderr)


def _reason(error: BaseException) -> str:
    text = str(error).strip()
    return os.strerror(errno.ENOSPC) if "No space left" in text else (text.splitlines() or [type(error).__name__])[0]


def _opened(directory: Path) -> Step | None:
    try:
        return open_step(directory)
    except CheckpointError:
        return None


def _set_aside(directory: Path) -> None:
    """Gives a step that is written anew another name until that is done."""
    if directory.exists():
        os.replace(directory, directory.with_name(f"{directory.name}{_PREVIOUS}"))


def _clear(stage: Path) -> None:
    """Removes what a killed or failed save left, and gives a step that it was to replace its name back."""
    for entry in list(stage.iterdir()):
        if _TEMPORARY in entry.name or entry.name.endswith(_REMOVED):
            shutil.rmtree(entry, ignore_errors=True)
        elif entry.name.endswith(_PREVIOUS):
            place = entry.with_name(entry.name.removesuffix(_PREVIOUS))
            if place.exists():
                _remove(entry)
            else:
                os.replace(entry, place)


def _remove(directory: Path) -> None:
    """Removes a step; one that is half removed is never taken for a step."""
    if directory.exists():
        gone = directory.with_name(f"{directory.name}{_REMOVED}")
        os.replace(directory, gone)
        shutil.rmtree(gone, ignore_errors=True)


def restore_state(step: Step, like: TrainState) -> TrainState:
    """The state in `step`, in the shapes, dtypes and shardings of `like`.

    Raises a CheckpointError naming each leaf whose shape or dtype differs, a DamagedCheckpoint naming a leaf that is
    not what was saved.
    """
    model, rest = _model(like), _rest(like)
    check_layout(step, {PARAMS: model, "rest": rest})
    name = "params" if like.mean_params is None else "mean_params"
    return like.replace(**{name: step.read(model)}, **step.read(rest, "rest"))


def _model(state: TrainState) -> Any:
    return state.params if state.mean_params is None else state.mean_params


def _rest(state: TrainState) -> dict[str, Any]:
    other = "params" if state.mean_params is None else "mean_params"  # which is the item of its own
    values = {field.name: getattr(state, field.name) for field in dataclasses.fields(state) if field.name != other}
    return {name: value for name, value in values.items() if value is not None}


def newest_meta(directory: Path) -> Mapping[str, Any] | None:
    """The meta of the newest whole checkpoint in a stage's directory, or None; leaves the directory alone."""
    steps = (_opened(step) for step in step_directories(directory))
    return next((step.meta for step in steps if step), None)


def stage_meta(experiment: Experiment, stage: Stage, num_steps: int) -> dict[str, Any]:
    """What a checkpoint must have been trained with to be continued here, and what export needs."""
    options, adapters = experiment.config.model, adapters_meta(experiment, stage.name)
    return {
        "model_path": options.path,
        "tokenizer_path": options.tokenizer_path or options.path,
        "model_config": dataclasses.asdict(experiment.model.source.config),
        "config": to_dict(experiment.config),
        "chat_template": experiment.datasets[stage.name].template.source,
        **adapters,
        "same_run": {
            "weights": experiment.model.weights_digest,
            "num_steps": str(num_steps),
            **stage_options(experiment.config, stage.name),
            **stage.facts(experiment),
            **{name: json.dumps(value, sort_keys=True) for name, value in adapters.items()},
        },
    }


def stage_options(config: Config, stage: str) -> dict[str, str]:
    """The settings of the stage and of those before it, and which these are."""
    earlier = config.stages[: config.stages.index(stage)]
    found = {_BEFORE: ", ".join(earlier) or "none"}
    for name in (*earlier, stage):
        for option, value in vars(config.stage(name)).items():
            if option not in _MAY_CHANGE:
                found[f"{name}.{option}"] = json.dumps(value)
    return found


def check_same_run(found: Mapping[str, Any], wanted: Mapping[str, Any], directory: str) -> None:
    """Raises a CheckpointError with every setting, and all data, that differ between two `stage_meta`."""
    before, now = found["same_run"], wanted["same_run"]
    names = before.keys() | now.keys()
    if before.get(_BEFORE) != now.get(_BEFORE):  # then settings of those stages are on one side only
        names = {name for name in names if "." not in name or name in before.keys() & now.keys()}
    problems = [
        _difference(name, before.get(name, "absent"), now.get(name, "absent"))
        for name in sorted(names)
        if before.get(name) != now.get(name)
    ]
    raise_all(
        CheckpointError,
        f"{directory} was trained on other data or with other settings (use another --workdir, or --overwrite to start "
        "anew)",
        problems,
    )


def _difference(name: str, before: str, now: str) -> str:
    is_digest = len(before) == len(now) == 64
    return f"{name.replace('_', ' ')}: not the same" if is_digest else f"{name} was {before}, is {now}"


class BestEvaluation:
    """Keeps the state whose evaluation is best in `metric`; of equal ones the earlier. Use as a context manager.

    A run that is resumed makes the same evaluations again, so that what was kept before the stop still holds; `is_new`
    forgets it.
    """

    def __init__(self, directory: Path, metric: str, is_new: bool) -> None:
        with fail_together():
            if is_new and is_leader():
                shutil.rmtree(directory, ignore_errors=True)
        self.metric = metric
        self._is_lower_better = better_way(metric) == "lower"
        self.checkpoints = StageCheckpoints(directory, keep=1)
        found = newest_checkpoint(directory, lambda step: step.meta)
        self._meta = found[1] if found else None

    def __enter__(self) -> BestEvaluation:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.checkpoints.__exit__(kind, value, trace)

    @property
    def step(self) -> int | None:
        """The step of the best evaluation; None before the first."""
        return self._meta["step"] if self._meta else None

    def offer(self, state: TrainState, values: Mapping[str, float]) -> None:
        """Keeps `state` if its evaluation `values` is the best so far. Raises a ConfigError if the metric is not among
        them."""
        value = measured_value(values, self.metric)
        if not math.isfinite(value) or (self._meta and not self._is_better(value, self._meta["value"])):
            return
        self._meta = {"step": int(state.step), "value": value, "metric": self.metric}
        self.checkpoints.save(state, self._meta)

    def params(self, abstract_params: Any) -> Any:
        """The parameters of the best evaluation, in the shapes and shardings of `abstract_params`."""
        self.checkpoints.wait()
        found = newest_checkpoint(self.checkpoints.directory, lambda step: step.read(abstract_params))
        assert found is not None  # asked for after an evaluation was kept
        return found[1]

    def _is_better(self, value: float, other: float) -> bool:
        return value < other if self._is_lower_better else value > other


def check_best_metric(setting: str, metric: str, every_steps: int) -> None:
    """Raises a ConfigError if a best evaluation cannot be chosen by `metric`."""
    if not better_way(metric):
        hint = did_you_mean(metric, better_metrics())
        raise ConfigError(
            f"{setting} = {metric!r}: expected a metric of docs/metrics.md of which one way is better{hint}"
        )
    if not every_steps:
        raise ConfigError(f"{setting} = {metric!r} chooses among the evaluations of a stage: set eval.every_steps")


def measured_value(values: Mapping[str, float], metric: str) -> float:
    """The metric's value. Raises a ConfigError if it was not measured."""
    if metric not in values:
        raise ConfigError(
            f"best_metric = {metric!r} is not measured at the evaluations of this stage; measured are "
            f"{', '.join(sorted(values))} (text metrics need eval.in_loop_turns)"
        )
    return values[metric]
