"""The compiled training step of any stage: a pure function of (state, batch)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import chex
import jax
import jax.numpy as jnp
import optax

from empathax.config import Config, DpoOptions, StageOptions
from empathax.config.lora import LoraSpec
from empathax.data.batch import Batch
from empathax.models.architecture.model_config import ModelConfig
from empathax.models.lora.adapters import overlay
from empathax.objectives.logprobs import Sums
from empathax.training import metrics
from empathax.training.optimizer import Schedule, merge, split
from empathax.training.stages.stage import find_stage
from empathax.training.state import TrainState, Tree

# (state, batch with leading dims [A, B], reference parameters or None) -> (state, metrics by name)
TrainStep = Callable[..., tuple[TrainState, dict[str, jax.Array]]]


def make_train_step(
    stage: str,
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
    of tokens or pairs in each. `tx` and `schedule` come from `make_optimizer`, `shardings` from `state_shardings`. The
    reference of a stage that has one is `state.ref_params`, `ref_params` or `batch.ref_logps_BS`. An update is
    skipped, and counted, if the loss, the gradient's norm, or any parameter or optimizer value that it makes is not
    finite: parameters and optimizer state then keep every bit, as frozen parameters always do. A running mean in the
    state follows each update.

    With `spec` the state's parameters are such an adapter on the model `base`, which is not trained, and is the
    reference where the stage's is "adapter_off".

    The result can be lowered with `jax.ShapeDtypeStruct`s, e.g. for hardware that is not there. Metrics are float32
    scalars: the names of docs/metrics.md, learning_rate, grad_norm (before clipping), skipped, nonfinite_streak,
    nonfinite_total, tokens and pairs.
    """
    kind, options = find_stage(stage), config.stage(stage)
    replicated: Any = shardings.step if shardings else None  # the sharding of a scalar
    loss_fn = kind.make_loss(model_config, config, replicated.mesh if replicated else None)
    grad_shardings = split(shardings.params, options.freeze)[0] if shardings else None
    is_adapter_off = spec is not None and kind.reference_kind(config) == "adapter_off"

    def step(
        state: TrainState, batch: Batch, ref_params: Tree | None = None, base: Tree | None = None
    ) -> tuple[TrainState, dict[str, Any]]:
        ref_params = ref_params if state.ref_params is None else state.ref_params
        ref_params = base if is_adapter_off else ref_params
        chex.assert_tree_shape_prefix(batch, batch.token_ids_BT.shape[:2])  # [A, B] in every array, when traced
        of_step = kind.of_step(config, batch)
        trained, frozen = split(state.params, options.freeze)
        model_of = _model_of(state.step, base, spec, config)

        def loss(params: Tree, micro: Batch, number: jax.Array) -> tuple[jax.Array, jax.Array, Sums]:
            return loss_fn(model_of(merge(params, frozen), number), ref_params, micro, of_step)

        grads, sums = _accumulate(loss, trained, batch, grad_shardings)
        scalars = metrics.in_graph(sums)
        grad_norm = optax.tree.norm(grads)
        learning_rate = schedule(state.step)
        grads = _clipped(grads, grad_norm, options.max_grad_norm)
        updated = _update(state, trained, frozen, grads, learning_rate, tx)
        finite = jnp.isfinite(scalars["loss"]) & jnp.isfinite(grad_norm)
        finite &= _all_finite((split(updated.params, options.freeze)[0], updated.opt_state))
        new_state = _with_moved_reference(_gated(finite, state, updated, options.ema_decay), options)
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


def _all_finite(tree: Any) -> jax.Array:
    floats = [leaf for leaf in jax.tree.leaves(tree) if jnp.issubdtype(leaf.dtype, jnp.inexact)]
    return jnp.stack([jnp.isfinite(leaf).all() for leaf in floats]).all()


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
    """The exponential moving average decay x mean + (1 - decay) x parameters, from the first step on; float32."""
    return optax.incremental_update(optax.tree.cast(params, jnp.float32), mean, 1.0 - decay)


def _with_moved_reference(state: TrainState, options: StageOptions) -> TrainState:
    """TR-DPO (Gorbatovski et al. 2024, arXiv 2404.09656): every n steps the reference becomes a mix of the policy
    (share `ref_mixup_alpha`) and itself."""
    if state.ref_params is None or not isinstance(options, DpoOptions):
        return state

    def mixed() -> Tree:  # inside the branch: a mix of all parameters is made every n steps only, and held no longer
        near, far = (optax.tree.cast(tree, jnp.float32) for tree in (state.ref_params, state.params))
        return optax.tree.cast_like(optax.incremental_update(far, near, options.ref_mixup_alpha), state.ref_params)

    moved = jax.lax.cond(state.step % options.ref_sync_steps == 0, mixed, lambda: state.ref_params)
    return state.replace(ref_params=moved)
