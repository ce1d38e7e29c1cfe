"""The functions that `train` compiles, lowered with the shapes and shardings that it would call them with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from empathax.config import Config
from empathax.config.lora import LoraSpec, spec_of
from empathax.config.mesh import parse_rules
from empathax.data.batch import Batch, LabeledReplies
from empathax.data.packing import RowSizes
from empathax.errors import ConfigError
from empathax.evaluation.generation.decoding import DecodeOptions, generate
from empathax.evaluation.generation.prompt_tree import PromptTree, rounded_up
from empathax.models.architecture.model_config import ModelConfig
from empathax.models.lora.adapters import abstract_adapter, check_rank, overlay
from empathax.models.lora.quantized import abstract_quantized
from empathax.models.transformer import abstract_params, logical_axes, placed
from empathax.parallel.rules import batch_sharding, check_batches, param_shardings, replicated
from empathax.training.forward import make_reply_step, make_score_step
from empathax.training.held_out import REPLIES
from empathax.training.optimizer import make_optimizer
from empathax.training.stages.stage import find_stage
from empathax.training.state import TrainState, Tree, abstract_state, state_shardings
from empathax.training.step import make_train_step

_ANY_NUM_STEPS = 1000  # of the learning rate's schedule: constants of the program, no shapes
_FLOATS = {"weight_BM", "pair_weight_BP", "ref_logps_BS", "desirable_BR", "weight_BR", "mismatched_weight_BR"}


@dataclass(frozen=True)
class Setup:
    """A stage of a config on a mesh."""

    config: Config
    stage: str
    model: ModelConfig
    mesh: Mesh
    sizes: RowSizes

    @property
    def reference(self) -> str:
        """Where the stage's reference is: as the stage says or, where it moves, "in the state"."""
        stage = find_stage(self.stage)
        kind = stage.reference_kind(self.config)
        return "in the state" if kind != "none" and stage.moves_reference(self.config) else kind

    @property
    def passes_reference(self) -> bool:
        """Whether each step runs a reference over its rows too."""
        return self.reference in ("resident", "in the state", "adapter_off")

    @property
    def spec(self) -> LoraSpec | None:
        """The adapter that is trained; None if the whole model is."""
        return spec_of(self.config.lora)


@dataclass(frozen=True)
class Lowered:
    """A function ready to be compiled.

    `arguments` are its abstract arguments by kind (bytes_per_device of the report), `held` what lies on the devices
    meanwhile and is no argument, `unknown_trips` the rounds of a loop that depends on the data.
    """

    lowered: Any
    arguments: dict[str, Tree]
    held: dict[str, Tree]
    unknown_trips: int = 1


def lower_parts(setup: Setup, parts: tuple[str, ...]) -> dict[str, Lowered]:
    """Those of `parts` that a run of the stage has, by name; raises ConfigError if mesh, model and rows do not fit."""
    options = setup.config.stage(setup.stage)
    check_batches(setup.mesh, {"eval": setup.config.eval.rows_per_batch, setup.stage: options.rows_per_batch})
    lowered = {}
    if "train" in parts:
        lowered["train"] = _train(setup)
    if "reference" in parts and setup.reference == "precomputed":
        lowered["reference"] = _reference(setup)
    if "eval" in parts:
        lowered["eval"] = _eval(setup)
    if "decode" in parts:
        lowered["decode"] = _decode(setup)
    if not lowered:
        raise ConfigError(f"--parts={','.join(parts)}: a stage {setup.stage} of this config has none of these steps")
    return lowered


def params_of(setup: Setup) -> Tree:
    """The base model's parameters, abstract, with their shardings."""
    abstract = abstract_params(setup.model, jnp.dtype(setup.config.model.param_dtype))
    rules = parse_rules(setup.config.mesh.rules)
    return placed(abstract, param_shardings(setup.mesh, abstract, logical_axes(setup.model), rules))


def base_of(setup: Setup) -> Tree:
    """The same in the form that is kept below an adapter: perhaps quantized."""
    kind = setup.config.model.quantization
    return params_of(setup) if kind == "none" else abstract_quantized(params_of(setup), kind)


def trained_of(setup: Setup) -> Tree:
    """What is trained, abstract, with its shardings: the parameters, or an adapter's."""
    params = params_of(setup)
    if not setup.spec:
        return params
    check_rank(params, setup.spec)
    return abstract_adapter(params, setup.spec)


def state_of(setup: Setup) -> TrainState:
    """The train state, abstract, with its shardings."""
    params, (tx, _) = trained_of(setup), _optimizer(setup)
    abstract = abstract_state(
        params,
        tx,
        moving_reference=setup.reference == "in the state",
        running_mean=setup.config.stage(setup.stage).ema_decay > 0.0,
    )
    return placed(abstract, state_shardings(abstract, jax.tree.map(lambda leaf: leaf.sharding, params)))


def batch_of(setup: Setup, rows: int, micro_batches: int = 0, with_reference: bool = False) -> Batch:
    """A batch of `rows` rows, abstract; with the leading dim of a training batch if `micro_batches` are given."""
    sizes = {
        "T": setup.sizes.tokens,
        "M": setup.sizes.trained,
        "S": setup.sizes.sequences,
        "P": setup.sizes.pairs,
        "R": setup.sizes.labeled,
    }
    leading = (micro_batches,) if micro_batches else ()

    def array(name: str) -> jax.ShapeDtypeStruct | None:
        if name == "ref_logps_BS" and not with_reference:
            return None
        dtype = jnp.float32 if name in _FLOATS else jnp.int32
        return jax.ShapeDtypeStruct((*leading, rows, sizes[name[-1]]), dtype)

    replies = LabeledReplies(**{name: array(name) for name in LabeledReplies.__dataclass_fields__})
    arrays = {name: array(name) for name in Batch.__dataclass_fields__ if name != "replies"}
    batch = Batch(**arrays, replies=replies if setup.sizes.labeled else None)
    return placed(batch, batch_sharding(setup.mesh, num_leading=len(leading)))


def _train(setup: Setup) -> Lowered:
    tx, schedule = _optimizer(setup)
    state, options = state_of(setup), setup.config.stage(setup.stage)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, state)
    step = make_train_step(setup.stage, setup.model, setup.config, tx, schedule, shardings=shardings, spec=setup.spec)
    batch = batch_of(setup, options.rows_per_batch, options.accumulation_steps, setup.reference == "precomputed")
    ref_params = params_of(setup) if setup.reference == "resident" else None
    base = base_of(setup) if setup.spec else None
    return Lowered(
        step.lower(state, batch, ref_params=ref_params, base=base),  # type: ignore[attr-defined]  # a jitted function
        {
            "frozen": base,
            "parameters": state.params,
            "optimizer": (state.opt_state, state.mean_params),
            "reference": (ref_params, state.ref_params),
            "batch": batch,
        },
        {},
    )


def _reference(setup: Setup) -> Lowered:
    """The pass over the training rows before the first step; there is no optimizer state yet."""
    step = make_score_step(setup.model, setup.config.model, mesh=setup.mesh)
    params, batch = base_of(setup), batch_of(setup, setup.config.eval.rows_per_batch)
    kind = "frozen" if setup.spec else "parameters"
    return Lowered(step.lower(params, batch), {kind: params, "batch": batch}, {})  # type: ignore[attr-defined]


def _eval(setup: Setup) -> Lowered:
    """Held-out replies or pairs, in mid-training."""
    make_step = make_reply_step if find_stage(setup.stage).measures == REPLIES else make_score_step
    step: Any = make_step(setup.model, setup.config.model, mesh=setup.mesh)
    model, batch = _model_of(setup), batch_of(setup, setup.config.eval.rows_per_batch)
    return Lowered(step.lower(model, batch), {**_by_kind(setup), "batch": batch}, _held(setup))


def _decode(setup: Setup) -> Lowered:
    """Replies to prompts of `data.max_length` tokens that share nothing, in mid-training."""
    options, mesh = setup.config.eval, setup.mesh
    num_rows = mesh.shape["data"]
    num_prompts = -(-options.generation_batch // num_rows) * num_rows
    num_slots = rounded_up(setup.config.data.max_length)
    num_tokens = rounded_up(num_prompts // num_rows * num_slots)
    tokens_RT, row_ids = _ints(num_rows, num_tokens), _ints(num_prompts)
    prompts = PromptTree(
        token_ids_RT=tokens_RT,
        positions_RT=tokens_RT,
        subtree_end_RT=tokens_RT,
        path_BS=_ints(num_prompts, num_slots),
        lengths_B=row_ids,
    )
    prompts, row_ids = placed((prompts, row_ids), NamedSharding(mesh, PartitionSpec("data")))
    lowered = generate.lower(
        _model_of(setup),
        setup.model,
        prompts,
        row_ids,
        placed(_ints(), replicated(mesh)),
        row_ids,
        options=DecodeOptions.of(setup.config, stop_ids=(0,), mesh=mesh),
    )
    arguments = {**_by_kind(setup), "batch": prompts}
    return Lowered(lowered, arguments, _held(setup), unknown_trips=options.max_new_tokens - 1)


def _model_of(setup: Setup) -> Tree:
    """The model in mid-training, as evaluations see it."""
    params, spec = base_of(setup), setup.spec
    return overlay(params, trained_of(setup), spec) if spec else params


def _by_kind(setup: Setup) -> dict[str, Tree]:
    """The arrays of that model."""
    return {"frozen": base_of(setup) if setup.spec else None, "parameters": trained_of(setup)}


def _held(setup: Setup) -> dict[str, Tree]:
    """What training keeps on the devices while it evaluates."""
    state = state_of(setup)
    resident = params_of(setup) if setup.reference == "resident" else None
    return {"optimizer": (state.opt_state, state.mean_params), "reference": (resident, state.ref_params)}


def _optimizer(setup: Setup) -> Any:
    return make_optimizer(setup.config.stage(setup.stage), _ANY_NUM_STEPS)


def _ints(*shape: int) -> Any:
    return jax.ShapeDtypeStruct(shape, jnp.int32)
