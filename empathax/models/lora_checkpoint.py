"""Adapters in a run's checkpoints: the one that was trained, and those of earlier stages below it."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from empathax.lora_settings import LoraSpec
from empathax.models.lora import Adapter, abstract_adapter, with_adapters
from empathax.models.model_config import ModelConfig
from empathax.models.orbax_files import FROZEN, restore_params
from empathax.models.quantized import rounded_parameter
from empathax.models.transformer import abstract_params


def checkpoint_adapters(step_dir: Path, meta: Mapping[str, Any], config: ModelConfig) -> list[Adapter]:
    """The adapters of a checkpoint whose `meta` says "lora", the lowest first, on one device.

    Added to the model that the run began with, one after another, they make the model of the checkpoint.
    """
    specs = [LoraSpec(**{**spec, "targets": tuple(spec["targets"])}) for spec in meta["lora"]["adapters"]]
    shapes = [_on_one_device(abstract_adapter(abstract_params(config), spec)) for spec in specs]
    below = {str(number): tree for number, tree in enumerate(shapes[:-1])}
    frozen = restore_params(step_dir, below, item=FROZEN) if below else {}
    trees = [*(frozen[str(number)] for number in range(len(below))), restore_params(step_dir, shapes[-1])]
    return [Adapter(tree, spec) for tree, spec in zip(trees, specs, strict=True)]


def adapted_params(
    base: Any, step_dir: Path, meta: Mapping[str, Any], param_dtype: Any, shardings: Any = None
) -> dict[str, Any]:
    """The model of such a checkpoint: `base` (a ModelSource), rounded as it was below the adapters, with them merged
    in. Codes are those of the parameters in the dtype that they had in training."""
    kind = meta["lora"]["quantization"]
    if kind == "none":
        params = base.load_params(param_dtype, shardings)
    else:
        trained = jnp.dtype(meta["lora"]["param_dtype"])
        params = base.load_params(trained, shardings, partial(rounded_parameter, kind))
        params = jax.tree.map(lambda leaf: leaf.astype(param_dtype), params)
    return with_adapters(params, checkpoint_adapters(step_dir, meta, base.config))


def _on_one_device(abstract: Any) -> Any:
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), abstract)
