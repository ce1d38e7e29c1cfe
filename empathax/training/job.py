"""What a run needs, read and checked before anything compiles."""

from __future__ import annotations

import functools
import json
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float32

from empathax.config import Config, to_dict
from empathax.config.losses import rows_kind
from empathax.config.mesh import parse_rules
from empathax.data.dataset import Dataset, build_dataset, trained_texts
from empathax.data.loader import Loader
from empathax.errors import ConfigError, DataError
from empathax.evaluation.generation.replies import stop_token_ids
from empathax.evaluation.generation.sampling import sampling_from
from empathax.models.lora.adapters import Adapter, overlay
from empathax.models.lora.files import read_adapter
from empathax.models.lora.quantized import quantized_parameter
from empathax.models.tokenizers.tokenizer import Tokenizer
from empathax.models.transformer import abstract_params, logical_axes
from empathax.models.weights.loading import identity
from empathax.models.weights.source import ModelSource, adapted_model, fingerprint_with, load_tokenizer, resolve_model
from empathax.parallel.agreement import check_agreement, check_shared_directory, fail_together, from_leader
from empathax.parallel.host import use_compilation_cache
from empathax.parallel.mesh import make_mesh
from empathax.parallel.processes import is_leader, rows_of_process
from empathax.parallel.rules import check_batches, param_shardings
from empathax.training import workdirs
from empathax.training.best import check_best_metric

Params = Any


@dataclass
class Job:
    """What a run works with, checked and ready before anything compiles."""

    config: Config
    workdir: Path
    mesh: Mesh
    source: ModelSource
    tokenizer: Tokenizer
    datasets: dict[str, Dataset]  # of the stages, and of eval.objectives
    param_shardings: Any
    adapter: Adapter | None = None  # that `lora.path` names

    @property
    def abstract_params(self) -> Params:
        """Shapes, dtypes and shardings of the parameters."""
        abstract = abstract_params(self.source.config, jnp.dtype(self.config.model.param_dtype))
        return jax.tree.map(
            lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
            abstract,
            self.param_shardings,
        )

    @functools.cached_property
    def weights_digest(self) -> str:
        """The digest of config and weights, the adapter of `lora.path` included, which the first process reads for
        all."""
        adapters = [self.adapter] if self.adapter else []
        return from_leader(lambda: fingerprint_with(self.source.fingerprint(), adapters))

    def load_params(self) -> Params:
        """The parameters that the run begins with on the mesh: the base model's, with the adapter of `lora.path`."""
        options = self.config.model
        finish = identity if options.quantization == "none" else partial(quantized_parameter, options.quantization)
        base = self.source.load_params(jnp.dtype(options.param_dtype), self.param_shardings, finish)
        return (
            base
            if self.adapter is None
            else overlay(base, self.adapter.placed(self.abstract_params), self.adapter.spec)
        )

    def num_steps(self, stage: str) -> int:
        """Steps of a stage."""
        options = self.config.stage(stage)
        return self.loader(stage).num_steps(options.num_epochs, options.max_steps)

    def loader(self, stage: str, ref_logps: Float32[np.ndarray, " sequences"] | None = None) -> Loader:
        """This process's training batches of a stage, with reference log-probs by sequence id if given."""
        options, dataset = self.config.stage(stage), self.datasets[stage]
        parts, num_parts = rows_of_process(self.mesh)
        return Loader(
            dataset.train,
            rows_per_batch=options.rows_per_batch,
            accumulation_steps=options.accumulation_steps,
            seed=self.config.seed,
            parts=parts,
            num_parts=num_parts,
            ref_logps=ref_logps,
        )


def read(config: Config, workdir: Path) -> Job:
    """Everything of a training run that a user can get wrong, read and checked, but for the directory itself.

    Raises an EmpathaxError of the kind that failed. Nothing is compiled and no weights are read.
    """
    if re.match(r"\w+:/", str(workdir)):
        raise ConfigError(
            f"--workdir={workdir} is in a store, but a run appends to its files: name a directory on a disk, or on a "
            "file system that all hosts share (Filestore, NFS)"
        )
    job = assemble(config, workdir, trains=config.stages)
    with fail_together():
        for stage in config.stages:
            if metric := config.stage(stage).best_metric:
                check_best_metric(f"{stage}.best_metric", metric, config.eval.every_steps)
            job.loader(stage)  # too few rows for one step are refused here
    return job


def open_workdir(job: Job, overwrite: bool = False) -> None:
    """Makes the run's directory, or finds it to be an earlier run's, which `overwrite` empties first.

    Raises a ConfigError if it cannot be used, a CheckpointError if another process works in it.
    """
    with fail_together():
        if is_leader():
            workdirs.open_workdir(job.workdir, overwrite)
    check_shared_directory(job.workdir)


def assemble(config: Config, workdir: Path = Path(), adapters: Sequence[str] = (), trains: Sequence[str] = ()) -> Job:
    """Mesh, weights' header, tokenizer and data of a config, without what only training needs.

    `adapters` are directories in PEFT's format, merged into the model; batches of the stages `trains` must divide too.
    Raises a ConfigError too if processes find another model or other data under the same names.
    """
    with fail_together():
        job = _assemble(config, workdir, adapters, trains)
    facts = {f"{name} {part}": value for name, data in job.datasets.items() for part, value in data.fingerprint.items()}
    check_agreement({"model": repr(job.source.config), **facts})
    return job


def _assemble(config: Config, workdir: Path, adapters: Sequence[str], trains: Sequence[str]) -> Job:
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
    objectives = dict.fromkeys((*config.stages, *config.eval.objectives))
    kind = rows_kind(config.dpo)
    datasets = {
        name: build_dataset(config.data, name, tokenizer, source.config, config.seed, kind) for name in objectives
    }
    for stage, dataset in datasets.items():
        stop_token_ids(dataset.template, config.eval.stop_tokens)
        if not len(dataset.eval):
            fraction = config.data.eval_fraction
            raise DataError(f"{stage}: no held-out rows; set data.eval_path or data.eval_fraction (now {fraction:g})")
    adapter = read_adapter(Path(config.lora.path), source.config) if config.lora.path else None
    return Job(config, workdir, mesh, source, tokenizer, datasets, shardings, adapter)


def describe(job: Job) -> str:
    """What the run is about to do, for the terminal: model, mesh, data and the trained text of one row."""
    model = job.source.config
    num_params = sum(leaf.size for leaf in jax.tree.leaves(job.abstract_params))
    lines = [
        f"model    {job.config.model.path}: {model.family}, {num_params / 1e6:,.1f}M parameters",
        f"mesh     {' x '.join(f'{axis}={size}' for axis, size in job.mesh.shape.items())}"
        f" on {job.mesh.devices.flat[0].device_kind}",
    ]
    for stage in job.config.stages:
        dataset = job.datasets[stage]
        lines.append(f"{stage:<8} {_packing_in_words(dataset)}")
        lines.append(f"         {len(dataset.eval_examples):,} held out; {job.num_steps(stage):,} steps")
        lines += [
            f"         {name}: {count:,}"
            for name, count in {**dataset.report["dropped"], **dataset.report["counts"]}.items()
        ]
        texts = trained_texts(dataset.train, 0, job.tokenizer)
        lines.append(f"         trained text of one row, first of {len(texts)} replies: {texts[0]!r}")
    return "\n".join(lines)


def _packing_in_words(dataset: Dataset) -> str:
    figures = dataset.report["train"]
    kind = "pair" if dataset.train.paired else "reply"
    kinds = "pairs" if dataset.train.paired else "replies"
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


def record_settings(job: Job) -> None:
    """Writes config.json and the rows that could not be read; says which settings an earlier run here had otherwise."""
    if not is_leader():
        return
    path, settings = job.workdir / "config.json", to_dict(job.config)
    if path.exists():
        _say_differences(json.loads(path.read_text(encoding="utf-8")), settings)
    path.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    for stage, dataset in job.datasets.items():
        if dataset.rejects:
            dataset.write_rejects(job.workdir / f"rejected_rows_{stage}.txt")


def _say_differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    old, new = (dict(_flat(json.loads(json.dumps(settings)))) for settings in (before, now))
    changed = [
        f"{key}: {old.get(key)!r} -> {new.get(key)!r}" for key in sorted(old | new) if old.get(key) != new.get(key)
    ]
    if changed:
        print("settings that changed since this directory's last run:\n  " + "\n  ".join(changed), file=sys.stderr)


def _flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in settings.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value
