"""What a stage trains: the whole model, or an adapter on a model that stays as it is."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax

from empathax.config.lora import LoraSpec, spec_of
from empathax.config.options import stage_kind
from empathax.models.lora.adapters import (
    abstract_adapter,
    adapters_of,
    check_rank,
    init_adapter,
    merged,
    overlay,
    without_adapters,
)
from empathax.models.weights.steps import Step
from empathax.training.experiment import Experiment, Params
from empathax.training.optimizer import check_patterns


@dataclass(frozen=True)
class Start:
    """What a stage starts with.

    `model` is the model before the first step, `base` the part of it that is not trained (None: there is none),
    `params` gives what is trained, and `frozen` holds the adapters of earlier stages, by number, for the checkpoints.
    """

    model: Params
    base: Params | None
    params: Callable[[], Params]
    frozen: Params | None = None


@dataclass(frozen=True)
class Trainable:
    """What a stage's TrainState holds as `params`, abstract and with shardings, and how a model is made of it.

    `spec` is None where it is the whole model; `frozen` are the adapters of earlier stages, merged or kept below.
    """

    abstract: Params
    spec: LoraSpec | None = None
    frozen: tuple[LoraSpec, ...] = ()
    merges: bool = False
    goes_on: bool = False  # with the adapter that the model comes with
    seed: int = 0

    @property
    def shardings(self) -> Params:
        """Where each part of it lies."""
        return jax.tree.map(lambda leaf: leaf.sharding, self.abstract)

    def start(self, model: Params) -> Start:
        """Takes `model`, the stage before's result, apart; its kernels are given up where adapters are merged."""
        spec = self.spec
        if spec is None:
            return Start(model, None, lambda: model)
        adapters = adapters_of(model)
        if self.goes_on:
            return Start(model, without_adapters(model), lambda: adapters[0])
        base = merged(model, donate=True) if self.merges and adapters else model
        frozen = {str(number): adapter for number, adapter in enumerate(adapters)} or None
        return Start(base, base, lambda: init_adapter(base, spec, self.seed, self.abstract), frozen)

    def model(self, params: Params, base: Params | None) -> Params:
        """The model that `params` make, of a stage that began with `base`."""
        return params if self.spec is None or base is None else overlay(base, params, self.spec)

    def restored(self, step: Step, source: Callable[[], Params]) -> Params:
        """The model of a checkpoint; `source` gives the model that its stage started from."""
        params = step.read(self.abstract)
        base = None if self.spec is None else self.start(source()).base
        return self.model(params, base)


def trainable_of(experiment: Experiment, stage: str) -> Trainable:
    """What `stage` trains by `config.lora`."""
    options, stages, model = experiment.config.lora, experiment.config.stages, experiment.model
    spec = spec_of(options)
    if spec is None:
        return Trainable(model.abstract_params)
    check_rank(model.abstract_params, spec)
    given = model.adapter.spec if model.adapter else None
    first = given if given and stage_kind(stages[0]).continues_adapter else spec  # of the first stage
    number = stages.index(stage)
    earlier = [first, *[spec] * (number - 1)] if number else []
    return Trainable(
        abstract_adapter(model.abstract_params, spec if number else first),
        spec if number else first,
        frozen=tuple([given, *earlier] if given and first is not given else earlier),
        merges=options.after_sft == "merge",
        goes_on=not number and first is given,
        seed=experiment.config.seed + number,
    )


def check_trained(experiment: Experiment) -> None:
    """Raises a ConfigError for patterns of a stage (freeze, no_decay) that fit none of what it trains."""
    for stage in experiment.config.stages:
        check_patterns(stage, experiment.config.stage(stage), trainable_of(experiment, stage).abstract)


def adapters_meta(experiment: Experiment, stage: str) -> Mapping[str, Any]:
    """What a checkpoint says of its adapters; nothing where the whole model is trained."""
    trainable, config = trainable_of(experiment, stage), experiment.config
    if trainable.spec is None:
        return {}
    return {
        "lora": {
            "adapters": [dataclasses.asdict(spec) for spec in (*trainable.frozen, trainable.spec)],
            "dropout": config.lora.dropout,
            "after_sft": config.lora.after_sft,
            "quantization": config.model.quantization,
            "param_dtype": config.model.param_dtype,
        }
    }
