"""Adapters on disk: PEFT's format, read and written, and the adapters in a run's checkpoints."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy

from empathax import json_text
from empathax.config.arguments import MAX_COUNT, MAX_FLOAT
from empathax.config.lora import TARGETS, LoraSpec, module_name
from empathax.errors import WeightsError, raise_all
from empathax.models.architecture.model_config import ModelConfig
from empathax.models.lora.adapters import Adapter, Params, abstract_adapter, with_adapters
from empathax.models.lora.quantized import rounded_parameter
from empathax.models.transformer import abstract_params, placed
from empathax.models.weights.checks import check_finite
from empathax.models.weights.names import HF_PREFIXES
from empathax.models.weights.safetensors import SafetensorsFiles, read_json, write_json
from empathax.models.weights.steps import FROZEN, Step
from empathax.shown import quoted, shown

Place = tuple[str, int, str]  # target, layer, part: ("q_proj", 0, "lora_a")
CONFIG_NAME, WEIGHTS_NAME = "adapter_config.json", "adapter_model.safetensors"
_PREFIX = "base_model.model."
_SUFFIXES = {"lora_a": "lora_A.weight", "lora_b": "lora_B.weight", "lora_magnitude": "lora_magnitude_vector"}
_DECODER = "|".join(re.escape(prefix) for prefix, _ in HF_PREFIXES)  # a vision tower's layers have the same names
_TENSOR = re.compile(
    rf"(?:{re.escape(_PREFIX)})?(?:{_DECODER})layers\.(?P<layer>\d+)\.(?:self_attn|mlp)\.(?P<target>\w+_proj)\."
    rf"(?P<suffix>{'|'.join(map(re.escape, _SUFFIXES.values()))})"
)
# what changes the model in a way that is not stored in an adapter's factors
_REFUSED = (
    "modules_to_save", "layer_replication", "trainable_token_indices", "target_parameters", "alora_invocation_tokens",
    "lora_bias", "fan_in_fan_out", "use_qalora", "use_bdlora", "arrow_config", "kasa_config", "velora_config",
    "monteclora_config",
)  # fmt: skip
_CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")  # initializations that subtract from the base weights


def read_adapter(directory: Path, config: ModelConfig) -> Adapter:
    """The adapter in `directory`, checked against the model that it is for.

    Raises one WeightsError with every setting that is not supported and every tensor that is missing, left over or of
    another shape.
    """
    with json_text.content_of(directory, WeightsError):
        return _read(directory, config)


def _read(directory: Path, config: ModelConfig) -> Adapter:
    settings = read_json(directory / CONFIG_NAME)
    if settings is None:
        raise WeightsError(f"{directory} holds no adapter: expected {CONFIG_NAME} and {WEIGHTS_NAME} there")
    raise_all(WeightsError, f"{directory / CONFIG_NAME} cannot be used", list(_unsupported(settings)))
    if not (directory / WEIGHTS_NAME).is_file():
        raise WeightsError(f"{directory} has no {WEIGHTS_NAME}: save the adapter with safe_serialization=True")
    files = SafetensorsFiles([directory / WEIGHTS_NAME])
    tensors, unknown = _by_place(files)
    spec = _spec(settings, {target for target, _, _ in tensors})
    expected = _expected(config, spec, {layer for _, layer, _ in tensors})
    problems = [f"{name}: found in the file, but no product of this model takes it" for name in unknown]
    for place, shape in expected.items():
        found = files.tensors[tensors[place]].shape if place in tensors else None
        if found != shape:
            problems.append(f"{_spell(*place)}: found {list(found) if found else 'nothing'}, expected {list(shape)}")
    problems += [f"{tensors[place]}: found, but expected none" for place in tensors.keys() - expected.keys()]
    raise_all(WeightsError, f"{directory / WEIGHTS_NAME} does not fit this {config.family} model", sorted(problems))
    tree = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), abstract_adapter(abstract_params(config), spec))
    for (target, layer, part), name in tensors.items():
        values = files.read(name, (slice(None),) * len(files.tensors[name].shape)).astype(np.float32).T
        block, product = TARGETS[target]
        tree["layers"][block][product][part][layer][tuple(slice(size) for size in values.shape)] = values
    check_finite(str(directory), tree)
    return Adapter(tree, spec)


def write_adapter(directory: Path, adapter: Adapter, base_model: str) -> None:
    """Writes the two files into `directory`; `base_model` is what PEFT loads below the adapter.

    Raises a WeightsError for one that is not finite.
    """
    check_finite(str(directory), adapter.tree)
    tensors = {_spell(*place): np.ascontiguousarray(values.T) for place, values in _parts(adapter)}
    safetensors.numpy.save_file(tensors, directory / WEIGHTS_NAME, metadata={"format": "pt"})
    write_json(directory / CONFIG_NAME, _settings(adapter.spec, base_model))


def joined(adapters: Sequence[Adapter]) -> Adapter:
    """One adapter that adds what all of `adapters` add: their factors side by side, scaled, ranks added up.

    Raises a WeightsError for DoRA, whose magnitudes rescale the sum.
    """
    if len(adapters) == 1:
        return adapters[0]
    if any(adapter.spec.dora for adapter in adapters):
        raise WeightsError("adapters with DoRA magnitudes do not add up to one adapter: merge them into the model")
    tree: Params = {}
    ranks: dict[str, int] = {}
    for target, (block, product) in TARGETS.items():
        parts = [_scaled(adapter, target) for adapter in adapters if target in adapter.spec.targets]
        if parts:
            a, b = np.concatenate([a for a, _ in parts], axis=2), np.concatenate([b for _, b in parts], axis=1)
            tree.setdefault("layers", {}).setdefault(block, {})[product] = {"lora_a": a, "lora_b": b}
            ranks[target] = a.shape[2]
    rank = max(ranks.values())
    others = {target: own for target, own in ranks.items() if own != rank}
    alphas = {target: float(own) for target, own in others.items()}  # alpha = rank: a scale of 1
    return Adapter(tree, LoraSpec(rank, float(rank), False, False, tuple(ranks), others, alphas))


def checkpoint_adapters(step: Step, config: ModelConfig) -> list[Adapter]:
    """The adapters of a checkpoint whose meta says "lora", the lowest first, on one device.

    Added to the model that the run began with, one after another, they make the model of the checkpoint.
    """
    specs = [LoraSpec(**{**spec, "targets": tuple(spec["targets"])}) for spec in step.meta["lora"]["adapters"]]
    one_device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    shapes = [placed(abstract_adapter(abstract_params(config), spec), one_device) for spec in specs]
    below = {str(number): tree for number, tree in enumerate(shapes[:-1])}
    frozen = step.read_as(below, FROZEN) if below else {}
    trees = [*(frozen[str(number)] for number in range(len(below))), step.read_as(shapes[-1])]
    return [Adapter(tree, spec) for tree, spec in zip(trees, specs, strict=True)]


def adapted_params(base: Any, step: Step, param_dtype: Any, shardings: Any = None) -> dict[str, Any]:
    """The model of such a checkpoint: `base` (a ModelSource) with the adapters merged in.

    A base that was in 4 or 8 bits below the adapters is rounded the same way first, from the dtype that it had in
    training.
    """
    lora = step.meta["lora"]
    if lora["quantization"] == "none":
        params = base.load_params(param_dtype, shardings)
    else:
        trained = jnp.dtype(lora["param_dtype"])
        params = base.load_params(trained, shardings, partial(rounded_parameter, lora["quantization"]))
        params = jax.tree.map(lambda leaf: leaf.astype(param_dtype), params)
    return with_adapters(params, checkpoint_adapters(step, base.config))


def _scaled(adapter: Adapter, target: str) -> tuple[np.ndarray, np.ndarray]:
    """(A, B times its scale) of all layers."""
    block, product = TARGETS[target]
    a, b = (np.asarray(adapter.tree["layers"][block][product][name], np.float32) for name in ("lora_a", "lora_b"))
    scales = [adapter.spec.scale_of(module_name(target, layer)) for layer in range(len(b))]
    return a, b * np.array(scales, np.float32)[:, None, None]


def _unsupported(settings: Mapping[str, Any]) -> Iterator[str]:
    if settings.get("peft_type") != "LORA":
        yield f"peft_type = {settings.get('peft_type')!r}: expected 'LORA'"
    if settings.get("bias", "none") != "none":
        yield f"bias = {settings['bias']!r}: expected 'none', trained biases are not supported"
    if str(settings.get("init_lora_weights", True)).lower().startswith(_CHANGES_BASE):
        yield (
            f"init_lora_weights = {settings['init_lora_weights']!r} changes the base weights too: save the adapter "
            "with PEFT's path_initial_model_for_weight_conversion, which makes a plain one of it"
        )
    for name in _REFUSED:
        if settings.get(name):
            yield f"{name} = {quoted(settings[name])} is not supported"
    if not _is_rank(settings.get("r")):
        yield f"r = {quoted(settings.get('r'))}: expected a whole number from 1"
    if not _is_alpha(settings.get("lora_alpha")):
        yield f"lora_alpha = {quoted(settings.get('lora_alpha'))}: expected a number"
    for name, fits, expected in (
        ("rank_pattern", _is_rank, "whole numbers from 1"),
        ("alpha_pattern", _is_alpha, "numbers"),
    ):
        patterns = settings.get(name) or {}
        if not isinstance(patterns, dict) or not all(map(fits, patterns.values())):
            yield f"{name} = {quoted(patterns)}: expected {expected} by pattern"
            continue
        for pattern in patterns:
            try:
                re.compile(pattern)
            except re.error as error:
                yield f"{name}: {quoted(pattern)} is no regular expression: {shown(str(error))}"


def _is_rank(value: Any) -> bool:
    return type(value) is int and 1 <= value <= MAX_COUNT


def _is_alpha(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) <= MAX_FLOAT


def _spec(settings: Mapping[str, Any], targets: set[str]) -> LoraSpec:
    return LoraSpec(
        rank=settings["r"],
        alpha=float(settings["lora_alpha"]),
        rslora=bool(settings.get("use_rslora")),
        dora=bool(settings.get("use_dora")),
        targets=tuple(name for name in TARGETS if name in targets),
        rank_pattern=_of_decoder(settings.get("rank_pattern") or {}),
        alpha_pattern=_of_decoder(settings.get("alpha_pattern") or {}),
    )


def _of_decoder(patterns: Mapping[str, Any]) -> dict[str, Any]:
    """Patterns over module names of a model with a vision tower, over those that the decoder has alone."""
    return {re.sub(r"language_model\\?\.", "", pattern): value for pattern, value in patterns.items()}


def _settings(spec: LoraSpec, base_model: str) -> dict[str, Any]:
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_model,
        "r": spec.rank,
        "lora_alpha": _whole(spec.alpha),
        "lora_dropout": 0.0,
        "use_rslora": spec.rslora,
        "use_dora": spec.dora,
        "target_modules": list(spec.targets),
        "rank_pattern": dict(spec.rank_pattern),
        "alpha_pattern": {pattern: _whole(alpha) for pattern, alpha in spec.alpha_pattern.items()},
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "modules_to_save": None,
    }


def _by_place(files: SafetensorsFiles) -> tuple[dict[Place, str], list[str]]:
    """Tensor names by (target, layer, part), and the names that belong to no adapter."""
    places: dict[Place, str] = {}
    unknown = []
    parts = {suffix: part for part, suffix in _SUFFIXES.items()}
    for name in files.tensors:
        match = _TENSOR.fullmatch(name)
        if match is None or match["target"] not in TARGETS:
            unknown.append(name)
        else:
            places[match["target"], int(match["layer"]), parts[match["suffix"]]] = name
    return places, unknown


def _expected(config: ModelConfig, spec: LoraSpec, layers: set[int]) -> dict[Place, tuple[int, ...]]:
    """The shape of every tensor of an adapter on `layers` (all, for DoRA), as its file has it."""
    known = set(range(config.num_layers))
    shapes = abstract_adapter(abstract_params(config), spec)["layers"] if spec.targets else {}
    expected: dict[Place, tuple[int, ...]] = {}
    for target in spec.targets:
        block, product = TARGETS[target]
        for layer in sorted(known if spec.dora else known & layers):
            rank = spec.rank_of(module_name(target, layer))
            for part, leaf in shapes[block][product].items():
                full = leaf.shape[1:]
                expected[target, layer, part] = {"lora_a": (rank, full[0]), "lora_b": (full[-1], rank)}.get(part, full)
    return expected


def _parts(adapter: Adapter) -> Iterator[tuple[Place, np.ndarray]]:
    """Every tensor of the file, as we have it, without the columns that only other layers use."""
    for target in adapter.spec.targets:
        block, product = TARGETS[target]
        for part, stack in adapter.tree["layers"][block][product].items():
            for layer, values in enumerate(np.asarray(stack, np.float32)):
                rank = adapter.spec.rank_of(module_name(target, layer))
                cut = {"lora_a": np.s_[:, :rank], "lora_b": np.s_[:rank]}.get(part, np.s_[:])
                yield (target, layer, part), values[cut]


def _spell(target: str, layer: int, part: str) -> str:
    return f"{_PREFIX}{module_name(target, layer)}.{_SUFFIXES[part]}"


def _whole(number: float) -> float | int:
    """An int where it is one: some readers of the format take no other."""
    return int(number) if number == int(number) else number
