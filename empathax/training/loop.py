"""The loop over the steps of one stage, what records them, and what is measured on held-out data in between."""

from __future__ import annotations

import json
import math
import resource
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax

from empathax.config import Config, StageOptions, TrackingOptions, to_dict
from empathax.data.batch import Batch
from empathax.errors import NonFiniteError
from empathax.evaluation.progress import ProgressBar
from empathax.evaluation.reply_metrics import ReplyScorer
from empathax.evaluation.report.table import table_1
from empathax.parallel.agreement import from_leader
from empathax.parallel.processes import is_leader
from empathax.parallel.stopping import StopVote
from empathax.training.checkpoint import BestEvaluation, measured_value
from empathax.training.held_out import HeldOut, Measured
from empathax.training.metrics import measured
from empathax.training.results import Row, in_loop_scores, replies_text
from empathax.training.stages.stage import Stage
from empathax.training.state import TrainState, Tree
from empathax.training.tracking import Tracker

StepFn = Callable[[TrainState, Any], tuple[TrainState, dict[str, jax.Array]]]
# (start step, stop step, the state that the next step will be given) -> batches on the mesh
BatchSource = Callable[[int, int, Callable[[], TrainState]], Iterator[Batch]]


@dataclass(frozen=True)
class Every:
    """What is done with the state after every `steps` steps; never where that is 0. `poll` is called after each."""

    steps: int
    action: Callable[[TrainState], Any]
    poll: Callable[[], None] = lambda: None

    def is_due(self, step: int) -> bool:
        """Whether it is to be done after `step`."""
        return self.steps > 0 and step % self.steps == 0


def train(
    state: TrainState,
    step_fn: StepFn,
    batches: BatchSource,
    num_steps: int,
    *,
    recorder: Recorder,
    evaluate: Every,
    save: Every,
    stop: StopVote,
) -> tuple[TrainState, bool]:
    """Trains from `state.step` to `num_steps`.

    Returns the last state and whether the processes agreed to stop before the end, all after the same step; that state
    has then been handed to `save`. Metrics of step n-1 are read after step n was dispatched, so that the device never
    waits for the host. Within a streak of skipped updates nothing is saved. Raises NonFiniteError where the streak
    becomes too long.
    """
    start = int(state.step)

    def current() -> TrainState:
        return state

    for step, batch in enumerate(batches(start, num_steps, current), start=start + 1):
        recorder.before_step(step - start)
        state, metrics = step_fn(state, batch)
        recorder.push(step, metrics)
        is_last = step == num_steps
        if not is_last and evaluate.is_due(step):
            recorder.flush()
            evaluate.action(state)
            recorder.clock.read()
        is_stopping = stop.last_vote() if is_last else stop.vote()
        save.poll()
        if is_stopping or (not is_last and save.is_due(step)):
            recorder.flush()
            if is_stopping or not recorder.nonfinite_streak:
                save.action(state)
        if is_stopping:
            return state, True
    recorder.flush()
    return state, False


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


@dataclass
class Recorder:
    """Holds the metrics of the last dispatched step until the next one runs, then checks and records them.

    `check_first` is given the metrics of the first step that it records, and may raise.
    """

    stage: str
    options: StageOptions
    tracking: TrackingOptions
    tracker: Tracker
    bar: ProgressBar
    profile_dir: Path
    check_first: Callable[[Mapping[str, float]], None] | None = None
    clock: Clock = field(default_factory=Clock)
    nonfinite_streak: int = 0  # updates skipped in a row, up to the last step that was recorded
    _pending: tuple[int, dict[str, jax.Array]] | None = None

    def before_step(self, number: int) -> None:
        """Starts or stops the profiler; `number` counts the steps of this process from 1."""
        first, count = self.tracking.profile_start, self.tracking.profile_steps
        if first < 0:
            return
        if number == first + 1:
            jax.profiler.start_trace(str(self.profile_dir))
        if number == first + count + 1:
            jax.profiler.stop_trace()

    def push(self, step: int, metrics: dict[str, jax.Array]) -> None:
        """Takes the metrics of `step`, still on the device, and records those of the step before."""
        self.flush()
        self._pending = (step, metrics)

    def flush(self) -> None:
        """Records what is pending."""
        if self._pending is None:
            return
        step, on_device = self._pending
        self._pending = None
        metrics = measured({name: float(value) for name, value in jax.device_get(on_device).items()})
        self.clock.add(metrics)
        if self.check_first is not None:
            self.check_first(metrics)
            self.check_first = None
        self._check_finite(step, metrics)
        if step % self.tracking.every_steps:
            return
        rates = self.clock.read()
        self.tracker.scalars(step, "train", {**metrics, **rates, "memory_gb": memory_gb()})
        shown = {"loss": metrics["loss"], "tokens/s": rates["tokens_per_second"]}
        if "pairs_per_second" in rates:
            shown |= {"pairs/s": rates["pairs_per_second"], "accuracy": metrics["reward_accuracy"]}
        self.bar.update(step, {**shown, "GB": memory_gb()})

    def _check_finite(self, step: int, metrics: Mapping[str, float]) -> None:
        self.nonfinite_streak = int(metrics["nonfinite_streak"])
        if not metrics["skipped"]:
            return
        values = [name for name in ("loss", "grad_norm") if not math.isfinite(metrics[name])]
        what = f"{' and '.join(values)} not finite" if values else "the update makes parameters that are not finite"
        if is_leader():
            print(f"step {step}: {what}; the update was skipped", file=sys.stderr)
        if self.nonfinite_streak >= self.options.max_nonfinite_steps:
            raise NonFiniteError(
                f"{self.stage}: {self.nonfinite_streak} updates in a row up to step {step} were skipped ({what}); "
                f"lower {self.stage}.learning_rate (now {self.options.learning_rate}), look for broken rows, or allow "
                f"more with {self.stage}.max_nonfinite_steps. The parameters are those before the streak, and no "
                "checkpoint holds others"
            )


@dataclass
class StageEvaluations:
    """Held-out data before, during and after a stage: measured, recorded, and offered as the best evaluation.

    `before` is what was measured of the model that the stage starts from; `model_of` makes a model of what is trained.
    """

    stage: Stage
    num_steps: int
    held_out: HeldOut
    scorer: ReplyScorer
    before: Measured
    model_of: Callable[[Tree], Tree]
    tracker: Tracker
    best: BestEvaluation | None = None

    def at_start(self, config: Config) -> None:
        """Records step 0 and the settings."""
        self.tracker.text(0, "config", f"```json\n{json.dumps(to_dict(config), indent=2)}\n```")
        values = self._record(0, self.before, self.held_out.in_loop_answers(self.before.answers))
        if self.best is not None:
            measured_value(values, self.best.metric)  # not measured: known before the first step

    def during(self, state: TrainState) -> None:
        """Measures the stage's part of the held-out data."""
        found = self.held_out.measure_in_loop(self.model_of(state.result), self.stage.measures)
        self._offer(state, self._record(int(state.step), found, found.answers))

    def at_end(self, state: TrainState) -> Measured:
        """Measures all of it."""
        found = self.held_out.measure(self.model_of(state.result))
        answers = self.held_out.in_loop_answers(found.answers)
        self._offer(state, self._record(int(state.step), found, answers))
        return found

    def _offer(self, state: TrainState, values: Mapping[str, float]) -> None:
        if self.best is not None:
            self.best.offer(state, values)

    def _record(self, step: int, found: Measured, answers: Sequence[str]) -> dict[str, float]:
        picture: bytes | None = None

        def score() -> dict[str, float]:
            nonlocal picture
            name = f"{self.stage.name} step {step}"
            scores, picture = in_loop_scores(self.held_out, self.scorer, answers, name)
            return scores

        values = self.stage.held_out_metrics(self.held_out, found, self.before) | from_leader(score)
        self.tracker.scalars(step, "eval", values)
        self.tracker.text(step, "replies", replies_text({"reply": Row(values, found.prompts, found.replies)}))
        if picture:
            self.tracker.image(step, "levels", picture)
        self.tracker.flush()
        if is_leader() and (words := _in_words(values)):  # "": nothing is held out
            print(f"{self.stage.name} step {step}/{self.num_steps}, held out: {words}", flush=True)
        return values


def memory_gb() -> float:
    """Peak memory in GB: of the first device where it keeps count, else of this process."""
    stats = jax.local_devices()[0].memory_stats() or {}
    if "peak_bytes_in_use" in stats:
        return stats["peak_bytes_in_use"] / 1e9
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e9 if sys.platform == "darwin" else peak * 1024 / 1e9  # Linux counts in KiB


def _in_words(values: Mapping[str, float]) -> str:
    metrics = ("perplexity", "token_accuracy", "loss", "reward_accuracy", "reward_margin", "kl", "logp_chosen")
    shown = (*metrics, "logp_rejected", *(column.metric for column in table_1()))
    return ", ".join(f"{name} {values[name]:.4g}" for name in shown if name in values)
