"""What a model says of a batch: log-probs of the trained tokens and of whole replies, alone and as compiled steps."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import flax.struct
import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int

from empathax.config import ModelOptions
from empathax.data.batch import Batch
from empathax.models.architecture.model_config import ModelConfig
from empathax.models.transformer import ComputeOptions, hidden_states, output_projection
from empathax.objectives.logprobs import TokenLogps, sequence_logps, take_queries, token_logps
from empathax.parallel.mesh import compute_dtype
from empathax.training.state import Tree


class Scored(NamedTuple):
    """The trained tokens of a batch and its replies under a model."""

    tokens: TokenLogps
    logps_BS: Float[Array, "B S"]
    num_tokens_BS: Float[Array, "B S"]


Scorer = Callable[[Tree, Batch], Scored]


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


def make_scorer(
    model_config: ModelConfig, options: ModelOptions, mesh: Mesh | None, *, sum_squares: bool = False
) -> Scorer:
    """The forward pass over a batch without the leading A, not compiled; `sum_squares` as in `token_logps`."""
    compute = ComputeOptions(compute_dtype(options, mesh), options.remat, options.attention, mesh)

    def score(params: Tree, batch: Batch) -> Scored:
        hidden_BTD = hidden_states(
            params,
            model_config,
            batch.token_ids_BT,
            batch.positions_BT,
            batch.subtree_end_BT,
            compute,
        )
        tokens = token_logps(
            take_queries(hidden_BTD, batch.query_index_BM),
            output_projection(params, model_config),
            batch.target_id_BM,
            softcap=model_config.final_softcap,
            vocab_chunk=options.vocab_chunk,
            sum_squares=sum_squares,
        )
        return Scored(tokens, *per_reply(tokens.logps_BM, batch))

    return score


def per_reply(values_BM: jax.Array, batch: Batch) -> tuple[jax.Array, jax.Array]:
    """Sums of a value of the trained tokens, and the number of these, per reply [..., B, S]."""
    return sequence_logps(values_BM, batch.sequence_index_BM, batch.weight_BM, batch.sequence_id_BS.shape[-1])


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


def _replicated(mesh: Mesh | None) -> NamedSharding | None:
    return NamedSharding(mesh, PartitionSpec()) if mesh else None
