"""The loop over the steps of one stage, in a fixed order: dispatch, record the step before, evaluate, save."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from empathax.config import Config, StageOptions
from empathax.errors import NonFiniteError, Preempted
from empathax.parallel.processes import is_leader
from empathax.parallel.stopping import StopVote
from empathax.training.checkpoint import StageCheckpoints
from empathax.training.metrics import measured
from empathax.training.state import TrainState
from empathax.training.tracking import ProgressBar, Tracker

BatchSource = Callable[[int, int], Iterator[Any]]  # (start step, stop step) -> batches on the mesh
Evaluate = Callable[[TrainState], None]  # records held-out metrics of a state


@dataclass
class Clock:
    """Throughput since the last reading, over trained tokens and pairs."""

    started: float = field(default_factory=time.perf_counter)
    tokens: float = 0.0
    pairs: float = 0.0

    def add(self, metrics: Mapping[str, float]) -> None:
        """Counts one step's tokens and pairs."""
        self.tokens += metrics.get("trained_tokens", metrics.get("tokens", 0.0))
        self.pairs += metrics.get("pairs", 0.0)

    def read(self) -> dict[str, float]:
        """tokens/s (trained tokens) and pairs/s since the last reading; starts anew."""
        seconds = max(time.perf_counter() - self.started, 1e-9)
        rates = {"tokens_per_second": self.tokens / seconds}
        if self.pairs:
            rates["pairs_per_second"] = self.pairs / seconds
        self.started, self.tokens, self.pairs = time.perf_counter(), 0.0, 0.0
        return rates


def train_stage(
    stage: str,
    config: Config,
    state: TrainState,
    step_fn: Callable[[TrainState, Any], tuple[TrainState, dict[str, jax.Array]]],
    batches: BatchSource,
    num_steps: int,
    *,
    evaluate: Evaluate,
    check_first: Callable[[Mapping[str, float]], None] | None = None,
    checkpoints: StageCheckpoints,
    tracker: Tracker,
    meta: dict[str, Any],
    workdir: Path,
    mesh: Mesh,
) -> TrainState:
    """Trains from `state.step` to `num_steps` and returns the last state; every due checkpoint has been started.

    Metrics of step n-1 are read after step n was dispatched, so that the device never waits for the host. Raises
    NonFiniteError after too many skipped updates in a row, Preempted after SIGTERM (with the state saved, at the same
    step on every process), and what `check_first` raises at the metrics of the first step.
    """
    options = config.stage(stage)
    start = int(state.step)
    recorder, stop = _Recorder(stage, config, options, tracker, check_first), StopVote(mesh)
    shows_progress = config.tracking.progress and is_leader()
    with ProgressBar(stage, num_steps, start, enabled=shows_progress) as bar:
        recorder.bar = bar
        for step, batch in enumerate(batches(start, num_steps), start=start + 1):
            _profile(config, workdir, step - start)
            state, metrics = step_fn(state, batch)
            recorder.push(step, metrics)
            if step < num_steps and _is_due(step, config.eval.every_steps):
                recorder.flush()
                evaluate(state)
                recorder.clock.read()
            is_stopping = stop.vote() if step < num_steps else stop.last_vote()
            if is_stopping or (step < num_steps and _is_due(step, config.checkpoint.every_steps)):
                recorder.flush()
                checkpoints.save(state, {**meta, "finished": False})
            if is_stopping:
                checkpoints.wait()
                raise Preempted(f"stopped by SIGTERM after step {step} of {stage}; run the same command again to go on")
        recorder.flush()
    return state


class _Recorder:
    """Holds the metrics of the last dispatched step until the next one runs, then records them."""

    def __init__(
        self,
        stage: str,
        config: Config,
        options: StageOptions,
        tracker: Tracker,
        check_first: Callable[[Mapping[str, float]], None] | None,
    ) -> None:
        self._check_first = check_first
        self.clock = Clock()
        self.bar: ProgressBar | None = None
        self._stage, self._options, self._tracker = stage, options, tracker
        self._every = config.tracking.every_steps
        self._pending: tuple[int, dict[str, jax.Array]] | None = None

    def push(self, step: int, metrics: dict[str, jax.Array]) -> None:
        self.flush()
        self._pending = (step, metrics)

    def flush(self) -> None:
        if self._pending is None:
            return
        step, on_device = self._pending
        self._pending = None
        metrics = measured({name: float(value) for name, value in jax.device_get(on_device).items()})
        self.clock.add(metrics)
        if self._check_first is not None:
            self._check_first(metrics)
            self._check_first = None
        self._check_finite(step, metrics)
        if step % self._every:
            return
        rates = self.clock.read()
        self._tracker.scalars(step, "train", {**metrics, **rates, "memory_gb": memory_gb()})
        if self.bar is not None:
            shown = {"loss": metrics["loss"], "tokens/s": rates["tokens_per_second"]}
            if "pairs_per_second" in rates:
                shown |= {"pairs/s": rates["pairs_per_second"], "accuracy": metrics["reward_accuracy"]}
            self.bar.update(step, {**shown, "GB": memory_gb()})

    def _check_finite(self, step: int, metrics: Mapping[str, float]) -> None:
        if metrics["skipped"] and is_leader():
            print(f"step {step}: loss or gradient is not finite; the update was skipped", file=sys.stderr)
        if metrics["nonfinite_streak"] >= self._options.max_nonfinite_steps:
            raise NonFiniteError(
                f"{self._stage}: {int(metrics['nonfinite_streak'])} steps in a row up to step {step} were not finite; "
                f"the last checkpoint is intact: lower {self._stage}.learning_rate (now "
                f"{self._options.learning_rate}) or look for broken rows"
            )


def memory_gb() -> float:
    """Peak memory in GB: of the first device where it keeps count, else of this process."""
    stats = jax.local_devices()[0].memory_stats() or {}
    if "peak_bytes_in_use" in stats:
        return stats["peak_bytes_in_use"] / 1e9
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e9 if sys.platform == "darwin" else peak * 1024 / 1e9  # Linux counts in KiB


def _is_due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


def _profile(config: Config, workdir: Path, steps_done: int) -> None:
    first, count = config.tracking.profile_start, config.tracking.profile_steps
    if first < 0:
        return
    if steps_done == first + 1:
        jax.profiler.start_trace(str(workdir / "profile"))
    if steps_done == first + count + 1:
        jax.profiler.stop_trace()
