"""What stays on disk of a stage: its checkpoints, what they were trained with, and its best evaluation.

Orbax writes them in the background, one directory per stage, one per step in it. A checkpoint holds three items:
`params`, `rest` (optimizer state and counters) and `meta` (JSON: the step, what the model is and which data it was
trained on). `params` are what a model, or an adapter, is made of: the running mean of what is trained where one is
kept, which itself is then in `rest`. `frozen` holds the adapters of earlier stages, if there are any. A stage whose
newest checkpoint says `finished` is never trained again.
"""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import jax
import orbax.checkpoint as ocp

from empathax.config import Config
from empathax.errors import CheckpointError, ConfigError, NonFiniteError, Preempted, did_you_mean, raise_all
from empathax.evaluation.report.table import better_metrics, better_way
from empathax.models.weights.orbax import (
    FROZEN,
    ITEMS,
    abstract,
    latest_step,
    read_meta,
    restore_params,
    stored_leaves,
)
from empathax.parallel.agreement import fail_together
from empathax.parallel.processes import is_leader
from empathax.training.experiment import Experiment
from empathax.training.stages.stage import Stage
from empathax.training.state import TrainState
from empathax.training.trainable import adapters_meta

_BEFORE = "stages before"
# Settings of a stage that its steps do not depend on, or that are compared by what follows from them.
_MAY_CHANGE = ("num_epochs", "max_steps", "rows_per_batch", "accumulation_steps", "max_nonfinite_steps")


class StageCheckpoints:
    """The checkpoints of one stage of a run. Use as a context manager: leaving it waits for pending saves.

    `frozen` is a tree that is written into each of them unchanged: adapters below the one that is trained. `after` are
    others whose pending saves reach the disk before one of these begins.
    """

    def __init__(
        self, directory: Path, keep: int = 2, *, frozen: Any = None, after: StageCheckpoints | None = None
    ) -> None:
        self.directory = Path(directory).absolute()
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise CheckpointError(
                f"{directory} cannot be written: {error.strerror}; choose another --workdir"
            ) from error
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep, cleanup_tmp_directories=True, enable_async_checkpointing=True
        )
        self._manager = ocp.CheckpointManager(self.directory, item_names=(*ITEMS, FROZEN), options=options)
        self._frozen, self._after = frozen, after
        self._last_saved: int | None = None

    def __enter__(self) -> StageCheckpoints:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        # after an error of this process alone, the others will not come to where a save waits for them
        if kind in (None, Preempted, NonFiniteError) or jax.process_count() == 1:
            self.close()

    def latest_step(self) -> int | None:
        """The newest committed step on disk, or None. The disk is read: the manager also counts saves that failed."""
        return latest_step(self.directory)

    def save(self, state: TrainState, meta: dict[str, Any]) -> None:
        """Starts a background save of `state` at its step, in place of one that is there. `meta` must be JSON; `step`
        is added to it."""
        step = int(state.step)
        if self._after is not None:
            self._after.wait()
        args = ocp.args.Composite(
            params=ocp.args.StandardSave(_model(state)),
            rest=ocp.args.StandardSave(_rest(state)),
            meta=ocp.args.JsonSave({**meta, "step": step}),
            **({FROZEN: ocp.args.StandardSave(self._frozen)} if self._frozen else {}),
        )
        try:
            if step in self._manager.all_steps():
                self._manager.delete(step)
            self._manager.save(step, args=args, force=True)
        except Exception as error:  # a failed background save surfaces here, as whatever its thread raised
            raise CheckpointError(f"saving step {step} to {self.directory} failed: {error}") from error
        self._last_saved = step

    def restore(self, like: TrainState) -> tuple[TrainState, dict[str, Any]]:
        """The newest state, in the shapes, dtypes and shardings of `like`, and its meta.

        Raises CheckpointError if there is none, or naming each leaf whose shape or dtype differs.
        """
        step = self.latest_step()
        if step is None:
            raise CheckpointError(f"{self.directory} holds no finished checkpoint")
        model, rest = _model(like), _rest(like)
        _check_layout(self.directory / str(step), {"params": model, "rest": rest})
        restored = self._manager.restore(
            step,
            args=ocp.args.Composite(
                params=ocp.args.StandardRestore(abstract(model)),
                rest=ocp.args.StandardRestore(abstract(rest)),
                meta=ocp.args.JsonRestore(),
            ),
        )
        name = "params" if like.mean_params is None else "mean_params"
        return like.replace(**{name: restored["params"]}, **restored["rest"]), restored["meta"]

    def meta(self) -> dict[str, Any] | None:
        """The meta of the newest checkpoint, or None if there is no checkpoint."""
        return newest_meta(self.directory)

    def wait(self) -> None:
        """Waits for pending saves; raises CheckpointError if the last one did not reach the disk."""
        try:
            self._manager.wait_until_finished()
        except Exception as error:
            raise CheckpointError(f"saving to {self.directory} failed: {error}") from error
        if self._last_saved is not None and self.latest_step() != self._last_saved:
            raise CheckpointError(f"step {self._last_saved} did not reach {self.directory}; is the disk full?")

    def close(self) -> None:
        """Waits for pending saves and frees the manager."""
        self._manager.close()


def _model(state: TrainState) -> Any:
    return state.params if state.mean_params is None else state.mean_params


def _rest(state: TrainState) -> dict[str, Any]:
    other = "params" if state.mean_params is None else "mean_params"  # which is the item of its own
    values = {field.name: getattr(state, field.name) for field in dataclasses.fields(state) if field.name != other}
    return {name: value for name, value in values.items() if value is not None}


def _check_layout(step_dir: Path, wanted: dict[str, Any]) -> None:
    # Orbax refuses another shape or tree but casts another dtype without a word, so all three are compared here.
    problems = []
    for item, tree in wanted.items():
        found = _leaves(stored_leaves(step_dir / item))
        expected = _leaves(tree)
        problems += [
            f"{item}/{name} is in the checkpoint but not in this run" for name in found.keys() - expected.keys()
        ]
        problems += [f"{item}/{name} is not in the checkpoint" for name in expected.keys() - found.keys()]
        problems += [
            f"{item}/{name} is {_spell(found[name])} in the checkpoint, {_spell(expected[name])} in this run"
            for name in sorted(found.keys() & expected.keys())
            if _spell(found[name]) != _spell(expected[name])
        ]
    heading = f"{step_dir} was written by another model or optimizer"
    raise_all(CheckpointError, heading, problems)


def _leaves(tree: Any) -> dict[str, Any]:
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def _spell(leaf: Any) -> str:
    return f"{leaf.dtype}{list(leaf.shape)}"


def newest_meta(directory: Path) -> dict[str, Any] | None:
    """The meta of the newest checkpoint in a stage's directory, or None; leaves the directory alone."""
    step = latest_step(directory)
    return None if step is None else read_meta(directory / str(step))


def stage_meta(experiment: Experiment, stage: Stage, num_steps: int) -> dict[str, Any]:
    """What a checkpoint must have been trained with to be continued here, and what export needs."""
    options, adapters = experiment.config.model, adapters_meta(experiment, stage.name)
    return {
        "model_path": options.path,
        "tokenizer_path": options.tokenizer_path or options.path,
        "model_config": dataclasses.asdict(experiment.model.source.config),
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
        self._meta = self.checkpoints.meta()

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
        return restore_params(self.checkpoints.directory / str(self.step), abstract_params)

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
