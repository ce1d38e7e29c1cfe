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

from empathax.config import Config, ModelOptions
from empathax.data.batch import Batch
from empathax.errors import ConfigError
from empathax.models.model_config import ModelConfig
from empathax.models.transformer import hidden_states, output_projection
from empathax.objectives.logprobs import TokenLogps, sequence_logps, take_queries, token_logps
from empathax.objectives.preference import chosen_token_weight, dpo_loss, take_pairs
from empathax.objectives.sft import Sums, sft_loss, token_sums
from empathax.parallel.mesh import compute_dtype
from empathax.training import metrics
from empathax.training.optimizer import Schedule
from empathax.training.state import TrainState, Tree

# (parameters, reference parameters or None, batch) -> (loss sum, its count, metric sums)
LossFn = Callable[[Tree, Tree | None, Batch], tuple[jax.Array, jax.Array, Sums]]
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
) -> TrainStep:
    """Compiles `step(state, batch, ref_params=None) -> (state, metrics)`; the state is donated.

    `batch` has leading dims [A, B]: A micro-batches whose gradient and loss are those of one batch, whatever the counts
    of tokens (SFT) or pairs (DPO) in each. `tx` and `schedule` come from `make_optimizer`, `shardings` from
    `state_shardings`. A DPO reference is `ref_params`, or `batch.ref_logps_BS`. An update is skipped, and counted, if
    the loss or the gradient's norm is not finite: parameters and optimizer state then keep every bit.

    The result can be lowered with `jax.ShapeDtypeStruct`s, e.g. for hardware that is not there. Metrics are float32
    scalars: the names of docs/metrics.md, learning_rate, grad_norm (before clipping), skipped, nonfinite_streak,
    nonfinite_total, tokens and pairs.
    """
    replicated: Any = shardings.step if shardings else None  # the sharding of a scalar
    loss_fn = make_loss(objective, model_config, config, mesh=replicated.mesh if replicated else None)
    max_grad_norm = config.stage(objective).max_grad_norm

    def step(state: TrainState, batch: Batch, ref_params: Tree | None = None) -> tuple[TrainState, dict[str, Any]]:
        grads, sums = _accumulate(loss_fn, state.params, ref_params, batch, shardings)
        scalars = metrics.in_graph(sums)
        grad_norm = optax.tree.norm(grads)
        finite = jnp.isfinite(scalars["loss"]) & jnp.isfinite(grad_norm)
        learning_rate = schedule(state.step)
        updated = _update(state, _clipped(grads, grad_norm, max_grad_norm), learning_rate, tx)
        new_state = _gated(finite, state, updated)
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
    score = _scorer(model_config, options, mesh)

    def step(params: Tree, batch: Batch) -> SequenceScores:
        _, logps_BS, num_tokens_BS = score(params, batch)
        return SequenceScores(batch.sequence_id_BS, logps_BS, num_tokens_BS)

    return jax.jit(step, out_shardings=_replicated(mesh))


def make_reply_step(
    model_config: ModelConfig, options: ModelOptions, *, mesh: Mesh | None = None
) -> Callable[[Tree, Batch], ReplySums]:
    """Compiles `step(params, batch) -> ReplySums` for batches without the leading A."""
    score = _scorer(model_config, options, mesh)

    def step(params: Tree, batch: Batch) -> ReplySums:
        tokens, logps_BS, num_tokens_BS = score(params, batch)
        layout = (batch.sequence_index_BM, batch.weight_BM, batch.sequence_id_BS.shape[-1])
        correct_BS, entropy_BS = (
            sequence_logps(values, *layout)[0] for values in (tokens.correct_BM, tokens.entropy_BM)
        )
        return ReplySums(SequenceScores(batch.sequence_id_BS, logps_BS, num_tokens_BS), correct_BS, entropy_BS)

    return jax.jit(step, out_shardings=_replicated(mesh))


def make_loss(objective: str, model_config: ModelConfig, config: Config, *, mesh: Mesh | None = None) -> LossFn:
    """The loss of one micro-batch as sums, not compiled. Raises ConfigError for an objective that does not exist."""
    score = _scorer(model_config, config.model, mesh)
    if objective == "sft":
        return lambda params, _, batch: sft_loss(score(params, batch)[0], batch.weight_BM)
    if objective != "dpo":
        raise ConfigError(f"objective {objective!r} does not exist; expected 'sft' or 'dpo'")
    options = config.dpo

    def loss_fn(params: Tree, ref_params: Tree | None, batch: Batch) -> tuple[jax.Array, jax.Array, Sums]:
        tokens, logps_BS, _ = score(params, batch)
        ref_logps_BS = _reference_logps(score, ref_params, batch)
        pairs = (batch.chosen_index_BP, batch.rejected_index_BP)
        loss_sum, num_pairs, sums = dpo_loss(
            *take_pairs(logps_BS, *pairs),
            *take_pairs(ref_logps_BS, *pairs),
            batch.pair_weight_BP,
            beta=options.beta,
            label_smoothing=options.label_smoothing,
            loss=options.loss,
        )
        chosen_weight_BM = chosen_token_weight(
            batch.weight_BM, batch.sequence_index_BM, batch.chosen_index_BP, batch.pair_weight_BP
        )
        sums |= token_sums(tokens, chosen_weight_BM) | {"trained_tokens": batch.weight_BM.sum()}
        return loss_sum, num_pairs, sums

    return loss_fn


def _scorer(
    model_config: ModelConfig, options: ModelOptions, mesh: Mesh | None
) -> Callable[[Tree, Batch], tuple[TokenLogps, jax.Array, jax.Array]]:
    """(parameters, batch) -> (per trained token, log-probs per reply [B, S], trained tokens per reply [B, S])."""
    dtype = compute_dtype(options, mesh)

    def score(params: Tree, batch: Batch) -> tuple[TokenLogps, jax.Array, jax.Array]:
        hidden_BTD = hidden_states(
            params,
            model_config,
            batch.token_ids_BT,
            batch.positions_BT,
            batch.subtree_end_BT,
            compute_dtype=dtype,
            remat=options.remat,
            attention=options.attention,
            mesh=mesh,
        )
        tokens = token_logps(
            take_queries(hidden_BTD, batch.query_index_BM),
            output_projection(params, model_config),
            batch.target_id_BM,
            softcap=model_config.final_softcap,
            vocab_chunk=options.vocab_chunk,
        )
        num_sequences = batch.sequence_id_BS.shape[-1]
        per_reply = sequence_logps(tokens.logps_BM, batch.sequence_index_BM, batch.weight_BM, num_sequences)
        return tokens, *per_reply

    return score


def _reference_logps(score: Callable[..., Any], ref_params: Tree | None, batch: Batch) -> jax.Array:
    if ref_params is not None:
        return score(jax.lax.stop_gradient(ref_params), batch)[1]
    if batch.ref_logps_BS is None:
        raise ConfigError("dpo needs a reference: pass ref_params, or batches that carry ref_logps_BS")
    return batch.ref_logps_BS


def _accumulate(
    loss_fn: LossFn, params: Tree, ref_params: Tree | None, batch: Batch, shardings: TrainState | None
) -> tuple[Tree, Sums]:
    """Float32 gradients of the mean loss over all A micro-batches, and the metric sums."""

    def sums_and_grads(micro: Batch) -> tuple[Tree, jax.Array, Sums]:
        def loss(params: Tree) -> tuple[jax.Array, tuple[jax.Array, Sums]]:
            loss_sum, count, sums = loss_fn(params, ref_params, micro)
            return loss_sum, (count, sums)

        grads, (count, sums) = jax.grad(loss, has_aux=True)(params)
        grads = jax.tree.map(lambda grad: grad.astype(jnp.float32), grads)
        if shardings:
            grads = jax.lax.with_sharding_constraint(grads, shardings.params)
        return grads, count, sums

    first = jax.tree.map(lambda leaf: leaf[0], batch)
    if batch.token_ids_BT.shape[0] == 1:
        grads, count, sums = sums_and_grads(first)
    else:
        zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(sums_and_grads, first))

        def add(carry: Any, micro: Batch) -> tuple[Any, None]:
            return jax.tree.map(jnp.add, carry, sums_and_grads(micro)), None

        (grads, count, sums), _ = jax.lax.scan(add, zeros, batch)
    return jax.tree.map(lambda grad: grad / count, grads), sums


def _clipped(grads: Tree, grad_norm: jax.Array, max_grad_norm: float) -> Tree:
    """Gradients scaled down to a global norm of at most `max_grad_norm`; 0 leaves them as they are."""
    if not max_grad_norm:
        return grads
    scale = jnp.minimum(1.0, max_grad_norm / (grad_norm + 1e-6))  # as torch.nn.utils.clip_grad_norm_
    return jax.tree.map(lambda grad: grad * scale, grads)


def _update(state: TrainState, grads: Tree, learning_rate: jax.Array, tx: optax.GradientTransformation) -> TrainState:
    directions, opt_state = tx.update(grads, state.opt_state, state.params)

    def move(param: jax.Array, direction: jax.Array) -> jax.Array:
        return (param.astype(jnp.float32) - learning_rate * direction).astype(param.dtype)

    return state.replace(params=jax.tree.map(move, state.params, directions), opt_state=opt_state)


def _gated(finite: jax.Array, old: TrainState, new: TrainState) -> TrainState:
    """`new` if `finite`, else the old parameters and optimizer state, bit for bit; the step counts either way."""
    keep = partial(jax.tree.map, partial(jnp.where, finite))
    skipped = 1 - finite.astype(jnp.int32)
    return TrainState(
        step=old.step + 1,
        params=keep(new.params, old.params),
        opt_state=keep(new.opt_state, old.opt_state),
        nonfinite_streak=(old.nonfinite_streak + 1) * skipped,
        nonfinite_total=old.nonfinite_total + skipped,
    )


def _replicated(mesh: Mesh | None) -> NamedSharding | None:
    return NamedSharding(mesh, PartitionSpec()) if mesh else None
