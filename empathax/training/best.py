"""The best evaluation of a stage so far, with its parameters on disk: what a stage ends with if a metric is named."""

from __future__ import annotations

import difflib
import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from empathax.errors import ConfigError
from empathax.evaluation.report.table import better_metrics, better_way
from empathax.parallel.agreement import fail_together
from empathax.parallel.processes import is_leader
from empathax.training.checkpoint import StageCheckpoints, restore_params
from empathax.training.state import TrainState


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
        close = difflib.get_close_matches(metric, better_metrics(), n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
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
