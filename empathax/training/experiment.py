"""A config with what it needs, found and checked before anything compiles: model header, tokenizer, mesh and data."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from empathax.config import Config, ModelOptions
from empathax.config.losses import REPLY_ROWS
from empathax.config.mesh import parse_rules
from empathax.data.dataset import Dataset, build_dataset, trained_tokens
from empathax.errors import ConfigError, DataError
from empathax.evaluation.generation.replies import stop_token_ids
from empathax.evaluation.generation.sampling import sampling_from
from empathax.models.lora.adapters import Adapter, overlay
from empathax.models.lora.files import read_adapter
from empathax.models.lora.quantized import quantized_parameter
from empathax.models.tokenizers.tokenizer import Tokenizer
from empathax.models.transformer import abstract_params, logical_axes, placed
from empathax.models.weights.loading import identity
from empathax.models.weights.memory import machine_memory
from empathax.models.weights.source import ModelSource, adapted_model, fingerprint_with, load_tokenizer, resolve_model
from empathax.parallel.agreement import check_agreement, fail_together, from_leader
from empathax.parallel.host import use_compilation_cache
from empathax.parallel.mesh import make_mesh
from empathax.parallel.rules import check_batches, param_shardings

Params = Any
_NOTHING_HELD_OUT = "nothing held out (data.eval_fraction = 0), so the model is measured on nothing"


@dataclass(frozen=True)
class BaseModel:
    """The model that a run begins with: where its weights are, how they are held, and how they lie on the mesh."""

    options: ModelOptions
    source: ModelSource
    tokenizer: Tokenizer
    mesh: Mesh
    param_shardings: Any
    adapter: Adapter | None = None  # that `lora.path` names

    @property
    def abstract_params(self) -> Params:
        """Shapes, dtypes and shardings of the parameters."""
        return placed(abstract_params(self.source.config, jnp.dtype(self.options.param_dtype)), self.param_shardings)

    @functools.cached_property
    def weights_digest(self) -> str:
        """The digest of config and weights, the adapter of `lora.path` included, which the first process reads for
        all."""
        adapters = [self.adapter] if self.adapter else []
        return from_leader(lambda: fingerprint_with(self.source.fingerprint(), adapters))

    def load_params(self) -> Params:
        """The parameters on the mesh, with the adapter of `lora.path`."""
        kind = self.options.quantization
        finish = identity if kind == "none" else partial(quantized_parameter, kind)
        base = self.source.load_params(jnp.dtype(self.options.param_dtype), self.param_shardings, finish)
        if self.adapter is None:
            return base
        return overlay(base, self.adapter.placed(self.abstract_params), self.adapter.spec)


@dataclass(frozen=True)
class Experiment:
    """Settings, model and data. `datasets` are those of the stages and of `eval.objectives`, by name."""

    config: Config
    model: BaseModel
    datasets: Mapping[str, Dataset]

    @property
    def replies(self) -> Dataset | None:
        """The data whose held-out part is replies to be learned; None if none is read."""
        return next((data for data in self.datasets.values() if data.rows_kind == REPLY_ROWS), None)

    @property
    def preferences(self) -> Dataset | None:
        """The data whose held-out part is pairs, or single replies with a label; None if none is read."""
        return next((data for data in self.datasets.values() if data.rows_kind != REPLY_ROWS), None)


def assemble(
    config: Config, rows_kinds: Mapping[str, str], *, adapters: Sequence[str] = (), trains: Sequence[str] = ()
) -> Experiment:
    """Mesh, weights' header, tokenizer and data of a config, without what only training needs.

    `rows_kinds` says which data are read: by name, the rows of each. `adapters` are directories in PEFT's format,
    merged into the model; batches of the stages `trains` must divide too. Raises the error of what cannot be used, and
    a ConfigError if processes find another model or other data under the same names.
    """
    with fail_together():
        experiment = _assemble(config, rows_kinds, adapters, trains)
    facts = {
        f"{name} {part}": value
        for name, data in experiment.datasets.items()
        for part, value in data.fingerprint.items()
    }
    check_agreement({"model": repr(experiment.model.source.config), **facts})
    return experiment


def _assemble(
    config: Config, rows_kinds: Mapping[str, str], adapters: Sequence[str], trains: Sequence[str]
) -> Experiment:
    sampling_from(config.eval)
    use_compilation_cache(config.compilation_cache)
    mesh = make_mesh(config.mesh)
    of_stages = {stage: config.stage(stage).rows_per_batch for stage in trains}
    check_batches(mesh, {"eval": config.eval.rows_per_batch, **of_stages})
    source = adapted_model(resolve_model(config.model.path), adapters)
    source.check()
    path = config.model.tokenizer_path
    tokenizer = (load_tokenizer(path) if path else source.tokenizer()).fitted_to(source.config.vocab_size)
    abstract = abstract_params(source.config, jnp.dtype(config.model.param_dtype))
    shardings = param_shardings(mesh, abstract, logical_axes(source.config), parse_rules(config.mesh.rules))
    datasets = {
        name: build_dataset(config.data, kind, tokenizer, source.config, config.seed)
        for name, kind in rows_kinds.items()
    }
    for name, dataset in datasets.items():
        stop_token_ids(dataset.template, config.eval.stop_tokens)
        if not len(dataset.eval):
            _check_nothing_held_out(config, name, trains)
    _check_rows(config, {stage: datasets[stage] for stage in trains}, source.config.model_dim)
    adapter = read_adapter(Path(config.lora.path), source.config) if config.lora.path else None
    return Experiment(config, BaseModel(config.model, source, tokenizer, mesh, shardings, adapter), datasets)


def _check_nothing_held_out(config: Config, name: str, trains: Sequence[str]) -> None:
    """Raises a DataError where held-out rows are needed, or were not given up with `data.eval_fraction` = 0."""
    fraction = config.data.eval_fraction
    if fraction or config.data.eval_path or not trains:
        raise DataError(f"{name}: no held-out rows; set data.eval_path or data.eval_fraction (now {fraction:g})")
    wanted: dict[str, Any] = {"eval.turns": config.eval.turns, "eval.in_loop_turns": config.eval.in_loop_turns}
    wanted |= {f"{name}.best_metric": config.stage(name).best_metric} if name in trains else {}
    for setting, value in wanted.items():
        if value:
            raise DataError(
                f"{setting} = {value!r} is measured on held-out rows, and there are none with data.eval_fraction = 0: "
                f"leave {setting} out, or hold rows out"
            )


def _check_rows(config: Config, datasets: Mapping[str, Dataset], model_dim: int) -> None:
    """Raises a ConfigError for micro-batches of which this machine could not hold a single layer's output."""
    there = machine_memory()
    for stage, dataset in datasets.items():
        rows, tokens = config.stage(stage).rows_per_batch, dataset.train.sizes.tokens
        if (needed := 2 * rows * tokens * model_dim) > there:
            raise ConfigError(
                f"{stage}.rows_per_batch = {rows:,} rows of {tokens:,} tokens (data.row_length): one layer's output of "
                f"them takes {needed / 2**30:,.1f} GiB, and this machine has {there / 2**30:,.1f} GiB; lower one"
            )


def describe(experiment: Experiment, num_steps: Mapping[str, int]) -> str:
    """What a run is about to do, for the terminal: model, mesh, data and the trained text of one row.

    `num_steps` are those of each stage.
    """
    model = experiment.model
    num_params = sum(leaf.size for leaf in jax.tree.leaves(model.abstract_params))
    lines = [
        f"model    {model.options.path}: {model.source.config.family}, {num_params / 1e6:,.1f}M parameters",
        f"mesh     {' x '.join(f'{axis}={size}' for axis, size in model.mesh.shape.items())}"
        f" on {model.mesh.devices.flat[0].device_kind}",
    ]
    for stage, steps in num_steps.items():
        dataset = experiment.datasets[stage]
        lines.append(f"{stage:<8} {_packing_in_words(dataset)}")
        held_out = f"{len(dataset.eval_examples):,} held out" if len(dataset.eval) else _NOTHING_HELD_OUT
        lines.append(f"         {held_out}; {steps:,} steps")
        lines += [
            f"         {name}: {count:,}"
            for name, count in {**dataset.report["dropped"], **dataset.report["counts"]}.items()
        ]
        replies = trained_tokens(dataset.train, 0, model.tokenizer)
        tokens = " ".join(map(repr, replies[0]))
        lines.append(f"         trained tokens of one row, first of {len(replies)} replies: {tokens}")
    return "\n".join(lines)


def _packing_in_words(dataset: Dataset) -> str:
    figures = dataset.report["train"]
    kind, kinds = ("pair", "pairs") if dataset.train.paired else ("reply", "replies")
    passes = figures["passes"]
    dealt = f", at most {dataset.train.max_units} of a dialogue in a step ({passes} passes)" if passes > 1 else ""
    return (
        f"{figures['units']:,} {kinds} in {figures['rows']:,} rows of {figures['row_length']:,} tokens{dealt}\n"
        f"         {figures['fill_ratio']:.0%} of tokens and {figures['trained_fill_ratio']:.0%} of "
        f"{figures['trained_slots']:,} trained slots in use, varying by {figures['tokens_spread']:.0%} "
        f"and {figures['trained_spread']:.0%} between rows\n"
        f"         {figures['tokens_per_unit']:.0f} tokens a {kind}, {figures['times_fewer_tokens']:.1f} times fewer "
        f"than one by one ({figures['tokens_per_unit_unshared']:.0f})"
    )
