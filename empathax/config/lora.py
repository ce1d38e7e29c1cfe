"""What `config.lora` may say: which products get an adapter, by PEFT's names, and what goes with what."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from empathax.config.options import STAGES, Config, DpoOptions, LoraOptions
from empathax.errors import did_you_mean

# PEFT's name of a product -> its place in a layer of our tree
TARGETS = {
    "q_proj": ("attention", "query"),
    "k_proj": ("attention", "key"),
    "v_proj": ("attention", "value"),
    "o_proj": ("attention", "output"),
    "gate_proj": ("mlp", "gate"),
    "up_proj": ("mlp", "up"),
    "down_proj": ("mlp", "down"),
}
PRESETS = {
    "attention": ("q_proj", "k_proj", "v_proj", "o_proj"),
    "mlp": ("gate_proj", "up_proj", "down_proj"),
    "all-linear": tuple(TARGETS),
}


@dataclass(frozen=True)
class LoraSpec:
    """An adapter without its numbers: targets, ranks and scales, in PEFT's terms.

    `rank_pattern` and `alpha_pattern` hold what differs, by (a pattern that ends) a module's name.
    """

    rank: int
    alpha: float
    rslora: bool = False
    dora: bool = False
    targets: tuple[str, ...] = PRESETS["all-linear"]
    rank_pattern: Mapping[str, int] = field(default_factory=dict)
    alpha_pattern: Mapping[str, float] = field(default_factory=dict)

    def rank_of(self, module: str) -> int:
        """The rank of a module, e.g. "model.layers.0.self_attn.q_proj"."""
        return self.rank_pattern.get(_key(self.rank_pattern, module), self.rank)

    def scale_of(self, module: str) -> float:
        """What its low-rank product is multiplied with: alpha / rank, or alpha / sqrt(rank) by rsLoRA (Kalajdzievski
        2023, arXiv 2312.03732)."""
        alpha, rank = self.alpha_pattern.get(_key(self.alpha_pattern, module), self.alpha), self.rank_of(module)
        return alpha / math.sqrt(rank) if self.rslora else alpha / rank


def module_name(target: str, layer: int) -> str:
    """A target's name in Hugging Face's model."""
    return f"model.layers.{layer}.{'mlp' if TARGETS[target][0] == 'mlp' else 'self_attn'}.{target}"


def spec_of(options: LoraOptions) -> LoraSpec | None:
    """The adapter that `config.lora` asks for; None if it asks for none."""
    if not options.rank:
        return None
    named = {name for target in options.targets for name in PRESETS.get(target, (target,))}
    targets = tuple(name for name in TARGETS if name in named)
    return LoraSpec(options.rank, options.alpha, options.rslora, options.dora, targets)


def problems(config: Config) -> list[str]:
    """Everything in `config.lora` that cannot be used, alone and with the stages, the reference and quantization."""
    if not config.lora.rank:
        return list(_without_adapters(config))
    found = ["lora.alpha = 0.0: the adapters would do nothing; expected more than 0"] if not config.lora.alpha else []
    return [*found, *_targets(config.lora.targets), *_reference(config.dpo), *_stacking(config)]


def _without_adapters(config: Config) -> Iterator[str]:
    options, defaults = vars(config.lora), vars(LoraOptions())
    changed = [name for name in defaults if options[name] != defaults[name]]
    if changed:
        yield f"lora.{changed[0]} = {options[changed[0]]!r} does nothing: lora.rank is 0, which trains all parameters"
    if config.dpo.reference == "adapter_off":
        yield "dpo.reference = 'adapter_off': there is no adapter; set lora.rank, or take 'resident'"
    quantization = config.model.quantization
    if quantization != "none":
        yield f"model.quantization = {quantization!r}: quantized weights cannot be trained; set lora.rank for adapters"


def _targets(targets: tuple[str, ...]) -> Iterator[str]:
    if not targets:
        yield f"lora.targets = (): expected some of {', '.join((*PRESETS, *TARGETS))}"
    for target in targets:
        if target not in PRESETS and target not in TARGETS:
            known = (*PRESETS, *TARGETS)
            near = did_you_mean(target, known)
            yield f"lora.targets = {target!r} does not exist; expected some of {', '.join(known)}{near}"


def _reference(dpo: DpoOptions) -> Iterator[str]:
    if dpo.reference == "resident":
        yield (
            "dpo.reference = 'resident': with lora.rank the frozen weights are the reference already, a copy of them "
            "would double the memory; expected 'auto', 'adapter_off' or 'precomputed'"
        )
    if dpo.ref_sync_steps:
        yield (
            f"dpo.ref_sync_steps = {dpo.ref_sync_steps}: a mix of two adapters' factors is no mix of their weights; "
            "set it to 0, or lora.rank to 0"
        )


def _stacking(config: Config) -> Iterator[str]:
    lora, quantization, stages = config.lora, config.model.quantization, config.stages
    goes_on = bool(stages) and stages[0] in STAGES and STAGES[stages[0]].continues_adapter
    comes_second = len(stages) > 1 or (bool(lora.path) and not goes_on)
    if not comes_second:
        return
    if lora.after_sft == "keep" and lora.dora:
        yield (
            "lora.after_sft = 'keep': a second DoRA adapter on top of a first one is not defined (its magnitudes "
            "rescale the merged weights); set it to 'merge'"
        )
    if lora.after_sft == "merge" and quantization != "none":
        yield (
            f"lora.after_sft = 'merge': weights in {quantization} cannot take an adapter in without being rounded "
            "again; set it to 'keep'"
        )


def _key(patterns: Mapping[str, Any], module: str) -> str:
    """The first pattern that a module's name ends with, as PEFT finds it."""
    return next((key for key in patterns if re.match(rf"(.*\.)?({key})$", module)), module)
