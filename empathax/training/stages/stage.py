"""What a kind of training stage is: what it reads, its loss, its reference, and what is measured of it.

A kind is one file with a `STAGE` in it, an instance of a subclass of `Stage`, and one line in `config.options.STAGES`.
The run, the loop, the step, checkpoints and reports know stages by this class alone.
"""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Protocol

import jax
from jax.sharding import Mesh

from empathax.config import Config
from empathax.config.options import stage_kind
from empathax.data.batch import Batch
from empathax.data.loader import Loader
from empathax.data.packing import PackedRows
from empathax.models.architecture.model_config import ModelConfig
from empathax.objectives.logprobs import Sums
from empathax.parallel.processes import put_batch, rows_of_process
from empathax.parallel.rules import batch_sharding
from empathax.training.experiment import Experiment
from empathax.training.held_out import HeldOut, Logps, Measured
from empathax.training.state import TrainState, Tree


class LossFn(Protocol):
    """(parameters, reference parameters or None, batch) -> (loss sum, its count, metric sums).

    `of_step` is what `Stage.of_step` says of all micro-batches of a step; left out, the batch is taken to be all.
    """

    def __call__(
        self, params: Tree, ref_params: Tree | None, batch: Batch, of_step: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array, Sums]: ...


@dataclass(frozen=True)
class Reference:
    """A stage's frozen reference: its parameters, or its log-probs on the training rows.

    It is neither where the loss has none, where the state holds one that moves, and where it is the base below an
    adapter.
    """

    params: Tree | None = None
    train_logps: Logps | None = None


class Stage(ABC):
    """One kind of stage. Instances hold no state of a run.

    Attributes:
        name: as in `config.stages`.
        label: in tables; a model's row is "+LABEL" of each stage that it went through.
        measures: the held-out data that its evaluations read: held_out.REPLIES or held_out.PREFERENCES.
    """

    name: ClassVar[str]
    label: ClassVar[str]
    measures: ClassVar[str]

    @abstractmethod
    def rows_kind(self, config: Config) -> str:
        """The rows that it reads, as config/losses.py names them."""

    @abstractmethod
    def make_loss(self, model_config: ModelConfig, config: Config, mesh: Mesh | None = None) -> LossFn:
        """The loss of one micro-batch as sums, not compiled. Raises a ConfigError for settings that do not fit."""

    @abstractmethod
    def held_out_metrics(self, held_out: HeldOut, measured: Measured, before: Measured) -> dict[str, float]:
        """Held-out metrics as the stage's loss sees them; `before` was measured of the model that it started from."""

    def of_step(self, config: Config, batch: Batch) -> jax.Array | None:
        """What the loss of a micro-batch must know of all micro-batches [A, B] of its step; in the graph."""
        return None

    def reference_kind(self, config: Config) -> str:
        """Where the reference is: "resident", "precomputed", "adapter_off" or "none"."""
        return "none"

    def moves_reference(self, config: Config) -> bool:
        """Whether the reference is a part of the train state and follows the policy."""
        return False

    def reference(
        self, experiment: Experiment, cache_dir: Path, params: Tree, row_logps: Callable[[Tree, PackedRows], Logps]
    ) -> Reference:
        """The reference of a stage that starts with the model `params`; `row_logps` gives log-probs by sequence id."""
        return Reference()

    def check_first_step(self, config: Config) -> Callable[[Mapping[str, float]], None] | None:
        """What must hold of the metrics of the very first step, before any update; raises where it does not."""
        return None

    def loader(self, experiment: Experiment, ref_logps: Logps | None = None) -> Loader:
        """This process's training batches, with the reference's log-probs by sequence id if given."""
        options = experiment.config.stage(self.name)
        parts, num_parts = rows_of_process(experiment.model.mesh)
        return Loader(
            experiment.datasets[self.name].train,
            rows_per_batch=options.rows_per_batch,
            accumulation_steps=options.accumulation_steps,
            seed=experiment.config.seed,
            parts=parts,
            num_parts=num_parts,
            ref_logps=ref_logps,
        )

    def num_steps(self, experiment: Experiment) -> int:
        """Steps of the whole stage."""
        options = experiment.config.stage(self.name)
        return self.loader(experiment).num_steps(options.num_epochs, options.max_steps)

    def batches(
        self, experiment: Experiment, reference: Reference, start: int, stop: int, state: Callable[[], TrainState]
    ) -> Iterator[Batch]:
        """Batches [A, B] on the mesh for the steps from `start` to `stop`.

        They must be a function of the settings, of the number of the step and of `state()`, the state that the step
        will be given: a run that is resumed makes them again, from the state on disk. Data that are fixed before the
        run do not ask for the state.
        """
        sharding = batch_sharding(experiment.model.mesh, num_leading=1)
        loader = self.loader(experiment, reference.train_logps)
        return (put_batch(batch, sharding) for batch in loader.iterate(start, stop))

    def facts(self, experiment: Experiment) -> dict[str, str]:
        """What its batches depend on, by name: a run that is resumed must find it unchanged."""
        return {**self.loader(experiment).fingerprint(), **experiment.datasets[self.name].fingerprint}


def find_stage(name: str) -> Stage:
    """The stage called `name` in `config.stages`. Raises a ConfigError if there is none."""
    return importlib.import_module(stage_kind(name).module).STAGE


def rows_kinds(config: Config) -> dict[str, str]:
    """The rows that each of the stages reads, and what `eval.objectives` names besides."""
    names = dict.fromkeys((*config.stages, *config.eval.objectives))
    return {name: find_stage(name).rows_kind(config) for name in names}


def row_names(stages: tuple[str, ...]) -> list[str]:
    """The rows of a run's table: "base", then every stage's result: "+SFT", "+SFT+DPO"."""
    labels = [f"+{find_stage(name).label}" for name in stages]
    return ["base", *("".join(labels[: number + 1]) for number in range(len(labels)))]
