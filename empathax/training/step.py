"""The compiled steps: train, evaluate, score. Each is a pure function of (state or parameters, batch)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int

from empathax.config import Config, DpoOptions, ModelOptions
from empathax.config.lora import LoraSpec
from empathax.data.batch import Batch
from empathax.models.architecture.model_config import ModelConfig
from empathax.models.lora.adapters import overlay
from empathax.objectives.logprobs import Sums
from empathax.training import metrics
from empathax.training.objective import make_loss, make_scorer, per_reply, tokens_per_pair
from empathax.training.optimizer import Schedule, merge, split
from empathax.training.state import TrainState, Tree

# (state, batch with leading dims [A, B], reference parameters or None) -> (state, metrics by name)
TrainStep = Callable[..., tuple[TrainState, dict[str, jax.Array]]]


@flax.struct.dataclass
class SequenceScores:
    """What a score step says about the replies of a batch; unused slots have sequence_id -1."""

    sequence_id_BS: Int[Array, "B S"]
    logps_BS: Float[Array, "B S"]
    num_tokens_BS: Float[Array, "B S"]


@flax.struct.dataclass
class ReplySums:
    """Sums over the trained tokens of each reply: what held-out metrics of replies are made of."""

    scores: SequenceScores
    correct_BS: Float[Array, "B S"]
    entropy_BS: Float[Array, "B S"]


def make_train_step(
    objective: str,
    model_config: ModelConfig,
    config: Config,
    tx: optax.GradientTransformation,
    schedule: Schedule,
    *,
    shardings: TrainState | None = None,
    spec: LoraSpec | None = None,
) -> TrainStep:
    """Compiles `step(state, batch, ref_params=None, base=None) -> (state, metrics)`; the state is donated.

    `batch` has leading dims [A, B]: A micro-batches whose gradient and loss are those of one batch, whatever the counts
    of tokens (SFT) or pairs (DPO) in each. `tx` and `schedule` come from `make_optimizer`, `shardings` from
    `state_shardings`. A DPO reference is `state.ref_params`, `ref_params` or `batch.ref_logps_BS`. An update is
    skipped, and counted, if the loss or the gradient's norm is not finite: parameters and optimizer state then keep
    every bit, as frozen parameters always do. A running mean in the state follows each update.

    With `spec` the state's parameters are such an adapter on the model `base`, which is not trained, and is the
    reference where `dpo.reference` says "adapter_off".

    The result can be lowered with `jax.ShapeDtypeStruct`s, e.g. for hardware that is not there. Metrics are float32
    scalars: the names of docs/metrics.md, learning_rate, grad_norm (before clipping), skipped, nonfinite_streak,
    nonfinite_total, tokens and pairs.
    """
    replicated: Any = shardings.step if shardings else None  # the sharding of a scalar
    loss_fn = make_loss(objective, model_config, config, mesh=replicated.mesh if replicated else None)
    options = config.stage(objective)
    grad_shardings = split(shardings.params, options.freeze)[0] if shardings else None
    is_adapter_off = spec is not None and config.dpo_reference == "adapter_off"

    def step(
        state: TrainState, batch: Batch, ref_params: Tree | None = None, base: Tree | None = None
    ) -> tuple[TrainState, dict[str, Any]]:
        ref_params = ref_params if state.ref_params is None else state.ref_params
        ref_params = base if is_adapter_off else ref_params
        reply_tokens = tokens_per_pair(objective, config.dpo, batch)
        trained, frozen = split(state.params, options.freeze)
        model_of = _model_of(state.step, base, spec, config)

        def loss(params: Tree, micro: Batch, number: jax.Array) -> tuple[jax.Array, jax.Array, Sums]:
            return loss_fn(model_of(merge(params, frozen), number), ref_params, micro, reply_tokens)

        grads, sums = _accumulate(loss, trained, batch, grad_shardings)
        scalars = metrics.in_graph(sums)
        grad_norm = optax.tree.norm(grads)
        finite = jnp.isfinite(scalars["loss"]) & jnp.isfinite(grad_norm)
        learning_rate = schedule(state.step)
        grads = _clipped(grads, grad_norm, options.max_grad_norm)
        updated = _update(state, trained, frozen, grads, learning_rate, tx)
        new_state = _with_moved_reference(_gated(finite, state, updated, options.ema_decay), config.dpo)
        scalars |= {
            "grad_norm": grad_norm,
            "learning_rate": learning_rate,
            "skipped": 1.0 - finite,
            "nonfinite_streak": new_state.nonfinite_streak,
            "nonfinite_total": new_state.nonfinite_total,
        }
        return new_state, {name: value.astype(jnp.float32) for name, value in scalars.items()}

    out_shardings = (shardings, replicated) if shardings else None
    return jax.jit(step, donate_argnums=0, out_shardings=out_shardings)


def make_eval_step(
    objective: str, model_config: ModelConfig, config: Config, *, mesh: Mesh | None = None
) -> Callable[..., Sums]:
    """Compiles `step(params, batch, ref_params=None) -> sums` for batches without the leading A; see metrics.total."""
    loss_fn = make_loss(objective, model_config, config, mesh=mesh)

    def step(params: Tree, batch: Batch, ref_params: Tree | None = None) -> Sums:
        return loss_fn(params, ref_params, batch)[2]

    return jax.jit(step, out_shardings=_replicated(mesh))


def make_score_step(
    model_config: ModelConfig, options: ModelOptions, *, mesh: Mesh | None = None
) -> Callable[[Tree, Batch], SequenceScores]:
    """Compiles `step(params, batch) -> SequenceScores` for batches without the leading A."""
    score = make_scorer(model_config, options, mesh)

    def step(params: Tree, batch: Batch) -> SequenceScores:
        scored = score(params, batch)
        return SequenceScores(batch.sequence_id_BS, scored.logps_BS, scored.num_tokens_BS)

    return jax.jit(step, out_shardings=_replicated(mesh))


def make_reply_step(
    model_config: ModelConfig, options: ModelOptions, *, mesh: Mesh | None = None
) -> Callable[[Tree, Batch], ReplySums]:
    """Compiles `step(params, batch) -> ReplySums` for batches without the leading A."""
    score = make_scorer(model_config, options, mesh)

    def step(params: Tree, batch: Batch) -> ReplySums:
        scored = score(params, batch)
        values = (scored.tokens.correct_BM, scored.tokens.entropy_BM)
        correct_BS, entropy_BS = (per_reply(values_BM, batch)[0] for values_BM in values)
        scores = SequenceScores(batch.sequence_id_BS, scored.logps_BS, scored.num_tokens_BS)
        return ReplySums(scores, correct_BS, entropy_BS)

    return jax.jit(step, out_shardings=_replicated(mesh))


def _model_of(
    step: jax.Array, base: Tree | None, spec: LoraSpec | None, config: Config
) -> Callable[[Tree, jax.Array], Tree]:
    """(trained parameters, number of the micro-batch) -> the model's; adapters with the dropout of that micro-batch."""
    if spec is None or base is None:
        return lambda params, _: params
    key = jax.random.fold_in(jax.random.key(config.seed), step)
    return lambda params, number: overlay(
        base, params, spec, dropout=(jax.random.fold_in(key, number), config.lora.dropout)
    )


def _accumulate(
    loss_fn: Callable[[Tree, Batch, jax.Array], tuple[jax.Array, jax.Array, Sums]],
    params: Tree,
    batch: Batch,
    shardings: Tree | None,
) -> tuple[Tree, Sums]:
    """Float32 gradients of the mean loss over all A micro-batches, and the metric sums.

    `loss_fn` is given the parameters, a micro-batch and its number.
    """

    def sums_and_grads(micro: Batch, number: jax.Array) -> tuple[Tree, jax.Array, Sums]:
        def loss(params: Tree) -> tuple[jax.Array, tuple[jax.Array, Sums]]:
            loss_sum, count, sums = loss_fn(params, micro, number)
            return loss_sum, (count, sums)

        grads, (count, sums) = jax.grad(loss, has_aux=True)(params)
        grads = jax.tree.map(lambda grad: grad.astype(jnp.float32), grads)
        if shardings:
            grads = jax.lax.with_sharding_constraint(grads, shardings)
        return grads, count, sums

    first, numbers = jax.tree.map(lambda leaf: leaf[0], batch), jnp.arange(batch.token_ids_BT.shape[0])
    if batch.token_ids_BT.shape[0] == 1:
        grads, count, sums = sums_and_grads(first, numbers[0])
    else:
        shapes = jax.eval_shape(sums_and_grads, first, numbers[0])
        zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)

        def add(carry: Any, micro: tuple[Batch, jax.Array]) -> tuple[Any, None]:
            return jax.tree.map(jnp.add, carry, sums_and_grads(*micro)), None

        (grads, count, sums), _ = jax.lax.scan(add, zeros, (batch, numbers))
    return jax.tree.map(lambda grad: grad / count, grads), sums


def _clipped(grads: Tree, grad_norm: jax.Array, max_grad_norm: float) -> Tree:
    """Gradients scaled down to a global norm of at most `max_grad_norm`; 0 leaves them as they are."""
    if not max_grad_norm:
        return grads
    scale = jnp.minimum(1.0, max_grad_norm / (grad_norm + 1e-6))  # as torch.nn.utils.clip_grad_norm_
    return jax.tree.map(lambda grad: grad * scale, grads)


def _update(
    state: TrainState,
    trained: Tree,
    frozen: Tree,
    grads: Tree,
    learning_rate: jax.Array,
    tx: optax.GradientTransformation,
) -> TrainState:
    """`state` with its parameters `trained` moved; `frozen` are the others."""
    directions, opt_state = tx.update(grads, state.opt_state, state.params)

    def move(param: jax.Array, direction: jax.Array) -> jax.Array:
        return (param.astype(jnp.float32) - learning_rate * direction).astype(param.dtype)

    moved = jax.tree.map(move, trained, directions)
    return state.replace(params=merge(moved, frozen), opt_state=opt_state)


def _gated(finite: jax.Array, old: TrainState, new: TrainState, ema_decay: float) -> TrainState:
    """`new` if `finite`, else the old parameters and optimizer state, bit for bit; the step counts either way."""
    keep = partial(jax.tree.map, partial(jnp.where, finite))
    mean = old.mean_params
    if mean is not None:
        mean = keep(_moved_mean(mean, new.params, ema_decay), mean)
    skipped = 1 - finite.astype(jnp.int32)
    return TrainState(
        step=old.step + 1,
        params=keep(new.params, old.params),
        opt_state=keep(new.opt_state, old.opt_state),
        nonfinite_streak=(old.nonfinite_streak + 1) * skipped,
        nonfinite_total=old.nonfinite_total + skipped,
        ref_params=old.ref_params,
        mean_params=mean,
    )


def _moved_mean(mean: Tree, params: Tree, decay: float) -> Tree:
    """The exponential moving average decay x mean + (1 - decay) x parameters, from the first step on."""
    return jax.tree.map(lambda old, new: decay * old + (1.0 - decay) * new.astype(jnp.float32), mean, params)


def _with_moved_reference(state: TrainState, options: DpoOptions) -> TrainState:
    """TR-DPO (Gorbatovski et al. 2024, arXiv 2404.09656): every n steps the reference becomes a mix of the policy
    (share `ref_mixup_alpha`) and itself."""
    if state.ref_params is None:
        return state
    share = options.ref_mixup_alpha

    def mix(reference: jax.Array, param: jax.Array) -> jax.Array:
        near, far = reference.astype(jnp.float32), param.astype(jnp.float32)
        return ((1.0 - share) * near + share * far).astype(reference.dtype)

    moved = jax.lax.cond(
        state.step % options.ref_sync_steps == 0,
        lambda: jax.tree.map(mix, state.ref_params, state.params),
        lambda: state.ref_params,
    )
    return state.replace(ref_params=moved)


def _replicated(mesh: Mesh | None) -> NamedSharding | None:
    return NamedSharding(mesh, PartitionSpec()) if mesh else None
