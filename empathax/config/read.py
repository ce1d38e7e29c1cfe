"""The settings of a run: an ml-collections ConfigDict in, frozen and checked dataclasses out.

A file in configs/ starts from `default_config()`, changes what it needs and returns it from `get_config()`;
`from_config_dict` then reports every unknown key and every bad value at once.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from datetime import date
from typing import Any

import ml_collections
from ml_collections import FieldReference

from empathax.config import lora, losses, mesh
from empathax.config.fields import build, plain
from empathax.config.options import STAGES, Config, DataOptions, StageOptions
from empathax.errors import ConfigError, raise_all

BFLOAT16_MAX_DECAY = 0.99  # of a running mean kept in bfloat16


def default_config() -> ml_collections.ConfigDict:
    """Every setting at its default, for a config file to change. `stages` may be set to one stage or several."""
    found = ml_collections.ConfigDict(plain(Config()))
    for block in fields(Config):
        settings = getattr(Config(), block.name)
        for option in fields(settings) if is_dataclass(settings) else ():
            if option.metadata.get("json"):  # a dict or text: `build` checks which
                found[block.name][option.name] = FieldReference(option.default, field_type=object)
    return found


def to_dict(config: Config) -> dict[str, Any]:
    """The settings as nested dicts of plain values (JSON)."""
    return plain(config)


def from_config_dict(source: ml_collections.ConfigDict | dict[str, Any]) -> Config:
    """Checks every key, type and value of `source`; raises one ConfigError with all problems."""
    values = source.to_dict() if isinstance(source, ml_collections.ConfigDict) else source
    problems: list[str] = []
    config = build(Config, values, "", problems)
    _check_stages(config, problems)
    problems += _data_problems(config.data)
    problems += losses.problems(config.dpo) or losses.unpair_problems(config.dpo, config.data.unpair)
    problems += mesh.problems(config.mesh)
    problems += lora.problems(config)
    raise_all(ConfigError, "the config cannot be used", problems)
    return config


def _data_problems(options: DataOptions) -> Iterator[str]:
    if options.template_date != "today":
        try:
            date.fromisoformat(options.template_date)
        except ValueError:
            yield f"data.template_date = {options.template_date!r}: expected a day such as '2024-07-26', or 'today'"
    if not options.eval_split:
        yield "data.eval_split = '': expected valid, test, or the name of a split"


def _check_stages(config: Config, problems: list[str]) -> None:
    if not config.stages or any(stage not in STAGES for stage in config.stages):
        problems.append(f"stages = {config.stages!r}: expected one or more of {', '.join(map(repr, STAGES))}, in order")
    elif len(set(config.stages)) != len(config.stages):
        problems.append(f"stages = {config.stages!r}: each stage may run once")
    if any(stage not in STAGES for stage in config.eval.objectives):
        problems.append(f"eval.objectives = {config.eval.objectives!r}: expected some of {', '.join(STAGES)}")
    for block in dict.fromkeys(kind.options for kind in STAGES.values()):
        options: StageOptions = getattr(config, block)
        is_used = any(STAGES[stage].options == block for stage in config.stages if stage in STAGES)
        if is_used and not options.num_epochs and not options.max_steps:
            problems.append(
                f"{block}.num_epochs = 0.0 and {block}.max_steps = 0: a stage without steps; take it out of stages"
            )
        problems += [f"{block}.{problem}" for problem in _stage_problems(options, config.data.eval_split)]


def _stage_problems(options: StageOptions, eval_split: str) -> Iterator[str]:
    if reason := _moment_problem(options):
        yield f"first_moment_dtype = 'bfloat16': {reason}"
    if options.ema_decay == 1.0:
        yield "ema_decay = 1.0: the running mean would stay what it is at the start; expected less than 1"
    if eval_split == "test" and options.best_metric:
        yield (
            f"best_metric = {options.best_metric!r} chooses on the held-out data, which are the test split here; with "
            "data.eval_split = 'valid' the choice leaves the test split alone"
        )


def _moment_problem(options: StageOptions) -> str:
    """Why a first moment in bfloat16 would not do; "" if it does, or is not asked for."""
    decay = {"adamw": "b1", "lion": "b2"}.get(options.optimizer)
    if options.first_moment_dtype == "float32":
        return ""
    if decay is None:
        return f"{options.optimizer} has no first moment; its state is small as it is"
    value = getattr(options, decay)
    if value <= BFLOAT16_MAX_DECAY:
        return ""
    return (
        f"with {decay} = {value:g} a step moves it by a 1/{1 / (1 - value) if value < 1 else float('inf'):.0f} or so, "
        f"less than bfloat16 resolves (1/256), and it stays where it is; use {decay} <= {BFLOAT16_MAX_DECAY:g} "
        f"({options.optimizer}), or float32"
    )
