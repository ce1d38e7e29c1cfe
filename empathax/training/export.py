"""From a training checkpoint to a Hugging Face directory, with the tokenizer and chat template it was trained with."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from empathax.config import MeshOptions
from empathax.data.chat import ChatTemplate
from empathax.errors import CheckpointError, ConfigError, raise_all
from empathax.models.architecture.model_config import ModelConfig
from empathax.models.lora.adapters import Adapter
from empathax.models.lora.files import adapted_params, checkpoint_adapters, joined, write_adapter
from empathax.models.tokenizers.tokenizer import Tokenizer
from empathax.models.transformer import abstract_params, logical_axes, placed
from empathax.models.weights.export import export_directory, export_model, export_orbax
from empathax.models.weights.source import ModelSource, first_model, load_tokenizer, resolve_model
from empathax.models.weights.steps import Step, find_steps, newest_verified
from empathax.parallel.mesh import make_mesh
from empathax.parallel.rules import param_shardings


@dataclass(frozen=True)
class Checkpoint:
    """One verified checkpoint, and what the model in it is."""

    step: Step
    model_config: ModelConfig
    tokenizer: Tokenizer
    base: ModelSource  # what the run began with

    @property
    def has_adapters(self) -> bool:
        """Whether the run trained adapters, which are then all that its checkpoints hold."""
        return "lora" in self.step.meta

    def adapters(self) -> list[Adapter]:
        """Its adapters, the lowest first."""
        return checkpoint_adapters(self.step, self.model_config)

    def describe(self) -> str:
        """One line for the terminal."""
        num_params = sum(leaf.size for leaf in jax.tree.leaves(abstract_params(self.model_config)))
        return f"{self.step.directory}: {self.model_config.family}, {num_params / 1e6:,.1f}M parameters"


def open_checkpoint(path: Path, model_path: str = "") -> Checkpoint:
    """The newest checkpoint at or below `path` (a run's workdir, a stage or a step) that is what was saved.

    Its parameters are read once to be sure of that. Architecture and tokenizer come from the model that the run began
    with: its path is in the checkpoint, `model_path` names another place where it is now. Raises a CheckpointError if
    that is another model, or no checkpoint can be used.
    """
    step, _ = newest_verified(find_steps(path), _verify)
    meta = step.meta
    source = first_model(step, model_path)
    _check_same_model(meta["model_config"], source.config, step.directory, source.path)
    tokenizer = source.tokenizer() if model_path else load_tokenizer(meta["tokenizer_path"])
    tokenizer = tokenizer.fitted_to(source.config.vocab_size)
    if not tokenizer.chat_template or meta.get("chat_template"):
        # vLLM and transformers must render chats as training did, also where the tokenizer brought no template
        fallback = ChatTemplate(tokenizer, "auto", source.config.family).source
        tokenizer.chat_template = meta.get("chat_template") or fallback
    return Checkpoint(step, source.config, tokenizer, source)


def _verify(step: Step) -> None:
    step.verify([item for item in step.leaves if item != "rest"])


def check_form(checkpoint: Checkpoint, adapter: bool, merge: bool) -> None:
    """Raises a ConfigError if adapters are to be written (`adapter`) or merged that the checkpoint does not have."""
    if (adapter or merge) and not checkpoint.has_adapters:
        flag = "--adapter" if adapter else "--merge"
        raise ConfigError(
            f"{flag}: {checkpoint.step.directory} is of a run without adapters (lora.rank = 0); leave it out"
        )


def export_checkpoint(checkpoint: Checkpoint, out_dir: Path, dtype: str) -> Path:
    """Writes the whole model's directory, adapters merged in, whole or not at all; returns it."""
    if checkpoint.has_adapters:
        params = adapted_params(checkpoint.base, checkpoint.step, jnp.float32)
    else:
        one_device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        params = checkpoint.step.read_as(placed(abstract_params(checkpoint.model_config, jnp.float32), one_device))
    return export_model(params, checkpoint.model_config, checkpoint.tokenizer, out_dir, dtype=dtype)


def export_adapters(checkpoint: Checkpoint, out_dir: Path) -> Path:
    """Writes the run's adapters as one, in PEFT's format, with the tokenizer, whole or not at all; returns it.

    It belongs on the model that the run began with. Raises a WeightsError for DoRA on top of another adapter.
    """
    adapter = joined(checkpoint.adapters())
    with export_directory(out_dir, "float32") as directory:
        write_adapter(directory, adapter, checkpoint.step.meta["model_path"])
        checkpoint.tokenizer.save(directory)
    return Path(out_dir).absolute()


def convert_to_orbax(path: str, out_dir: Path, dtype: str) -> Path:
    """Writes any model that `resolve_model` knows as an Orbax directory, whole or not at all; returns it.

    It is loaded onto all devices of this machine, sharded where they are several.
    """
    source, mesh = resolve_model(path), make_mesh(MeshOptions())
    source.check()
    abstract = abstract_params(source.config, jnp.dtype(dtype))
    shardings = param_shardings(mesh, abstract, logical_axes(source.config))
    params = source.load_params(jnp.dtype(dtype), shardings)
    return export_orbax(params, source.config, source.tokenizer(), out_dir, dtype=dtype)


def check_out_dir(out_dir: Path) -> None:
    """Raises a ConfigError unless `out_dir` is new or empty, before any weights are read."""
    if out_dir.exists() and (not out_dir.is_dir() or any(out_dir.iterdir())):
        raise ConfigError(f"--out={out_dir} exists already: export to a new directory, or remove it first")


def _check_same_model(trained: Mapping[str, Any], config: ModelConfig, step_dir: Path, place: str) -> None:
    found = json.loads(json.dumps(dataclasses.asdict(config)))
    problems = [
        f"{name} was {trained.get(name)!r}, is {found.get(name)!r}"
        for name in sorted(found.keys() | trained.keys())
        if found.get(name) != trained.get(name)
    ]
    raise_all(CheckpointError, f"{step_dir} was trained from another model than the one at {place} (--model)", problems)
