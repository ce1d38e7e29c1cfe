"""The losses of the two stages as functions of (parameters, batch): the model's log-probs, handed to objectives/."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Float

from empathax.config import Config, DpoOptions, ModelOptions
from empathax.data.batch import Batch, LabeledReplies
from empathax.errors import ConfigError
from empathax.models.architecture.model_config import ModelConfig
from empathax.models.transformer import hidden_states, output_projection
from empathax.objectives.logprobs import (
    Sums,
    TokenLogps,
    sequence_logps,
    sft_loss,
    take_queries,
    token_logps,
    token_sums,
)
from empathax.objectives.pairs import (
    Pairs,
    chosen_token_weight,
    importance_weights,
    tail_discounted,
    take_pairs,
    token_numbers,
)
from empathax.objectives.preference import (
    check_options,
    nll_weight,
    preference_loss,
    reads_single_replies,
    reference_kind,
)
from empathax.objectives.unpaired import Replies, unpaired_loss
from empathax.parallel.mesh import compute_dtype
from empathax.training.state import Tree


class LossFn(Protocol):
    """(parameters, reference parameters or None, batch) -> (loss sum, its count, metric sums).

    `tokens_per_pair` is `tokens_per_pair` of all micro-batches of a step; left out, the batch is taken to be all.
    """

    def __call__(
        self, params: Tree, ref_params: Tree | None, batch: Batch, tokens_per_pair: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array, Sums]: ...


class Scored(NamedTuple):
    """What a model says about the trained tokens of a batch, and about its replies."""

    tokens: TokenLogps
    logps_BS: Float[Array, "B S"]
    num_tokens_BS: Float[Array, "B S"]


Scorer = Callable[[Tree, Batch], Scored]


def make_loss(objective: str, model_config: ModelConfig, config: Config, *, mesh: Mesh | None = None) -> LossFn:
    """The loss of one micro-batch as sums, not compiled.

    Raises ConfigError for an objective that does not exist, and for settings of "dpo" that do not fit together.
    """
    if objective == "sft":
        score = make_scorer(model_config, config.model, mesh)
        return lambda params, _, batch, tokens_per_pair=None: sft_loss(score(params, batch).tokens, batch.weight_BM)
    if objective != "dpo":
        raise ConfigError(f"objective {objective!r} does not exist; expected 'sft' or 'dpo'")
    check_options(config.dpo)
    make = _unpaired_loss if reads_single_replies(config.dpo) else _preference_loss
    return make(model_config, config, mesh)


def make_scorer(
    model_config: ModelConfig, options: ModelOptions, mesh: Mesh | None, *, sum_squares: bool = False
) -> Scorer:
    """The forward pass over a batch without the leading A; `sum_squares` as in `token_logps`."""
    dtype = compute_dtype(options, mesh)

    def score(params: Tree, batch: Batch) -> Scored:
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
            sum_squares=sum_squares,
        )
        return Scored(tokens, *per_reply(tokens.logps_BM, batch))

    return score


def tokens_per_pair(objective: str, options: DpoOptions, batch: Batch) -> Float[Array, ""] | None:
    """Mean length of the chosen reply over all pairs of a batch [..., B]; None where the loss does not need it."""
    if objective != "dpo" or not nll_weight(options):
        return None
    _, num_tokens_BS = per_reply(batch.weight_BM, batch)
    chosen_BP, _ = take_pairs(num_tokens_BS, batch.chosen_index_BP, batch.rejected_index_BP)
    return (chosen_BP * batch.pair_weight_BP).sum() / batch.pair_weight_BP.sum()


def _preference_loss(model_config: ModelConfig, config: Config, mesh: Mesh | None) -> LossFn:
    options = config.dpo
    score = make_scorer(model_config, config.model, mesh, sum_squares=options.use_weighting)
    score_reference = make_scorer(model_config, config.model, mesh)

    def loss_fn(
        params: Tree, ref_params: Tree | None, batch: Batch, tokens_per_pair: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array, Sums]:
        policy = score(params, batch)
        reference = _reference(score_reference, ref_params, batch, policy, options)
        loss_sum, num_pairs, sums = preference_loss(_pairs(policy, reference, batch, options), options, tokens_per_pair)
        chosen_weight_BM = chosen_token_weight(
            batch.weight_BM, batch.sequence_index_BM, batch.chosen_index_BP, batch.pair_weight_BP
        )
        sums |= token_sums(policy.tokens, chosen_weight_BM) | {"trained_tokens": batch.weight_BM.sum()}
        return loss_sum, num_pairs, sums

    return loss_fn


def _unpaired_loss(model_config: ModelConfig, config: Config, mesh: Mesh | None) -> LossFn:
    options, score = config.dpo, make_scorer(model_config, config.model, mesh)

    def loss_fn(
        params: Tree, ref_params: Tree | None, batch: Batch, tokens_per_pair: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array, Sums]:
        labeled = batch.replies
        if labeled is None:
            raise ConfigError(f"dpo.loss = {options.loss} takes replies with a label, but these batches hold none")
        policy = score(params, batch)
        reference = _reference(score, ref_params, batch, policy, options)
        loss_sum, num_replies, sums = unpaired_loss(_replies(policy, reference, labeled), options)
        places = (batch.weight_BM, batch.sequence_index_BM, labeled.index_BR)
        desirable_weight_BM = chosen_token_weight(*places, labeled.weight_BR * labeled.desirable_BR)
        trained_weight_BM = chosen_token_weight(*places, labeled.weight_BR)
        sums |= token_sums(policy.tokens, desirable_weight_BM) | {"trained_tokens": trained_weight_BM.sum()}
        return loss_sum, num_replies, sums

    return loss_fn


def _replies(policy: Scored, reference: Scored, labeled: LabeledReplies) -> Replies:
    index = (labeled.index_BR, labeled.mismatched_index_BR)
    logps_BR, mismatched_BR = take_pairs(policy.logps_BS, *index)
    ref_logps_BR, ref_mismatched_BR = take_pairs(reference.logps_BS, *index)
    return Replies(
        logps=logps_BR,
        ref_logps=ref_logps_BR,
        desirable=labeled.desirable_BR,
        weight=labeled.weight_BR,
        mismatched_logps=mismatched_BR,
        ref_mismatched_logps=ref_mismatched_BR,
        mismatched_weight=labeled.mismatched_weight_BR,
    )


def _reference(score: Scorer, ref_params: Tree | None, batch: Batch, policy: Scored, options: DpoOptions) -> Scored:
    """What the reference says; a log-prob of 0 throughout where the loss has none."""
    if reference_kind(options) == "none":
        zeros = jax.tree.map(jnp.zeros_like, policy)
        return zeros._replace(num_tokens_BS=policy.num_tokens_BS)
    if ref_params is not None:
        return score(jax.lax.stop_gradient(ref_params), batch)
    if batch.ref_logps_BS is None:
        raise ConfigError("dpo needs a reference: pass ref_params, or batches that carry ref_logps_BS")
    if options.ld_alpha != 1.0:
        raise ConfigError("dpo.ld_alpha needs the reference's log-prob of each token: pass ref_params")
    return policy._replace(logps_BS=batch.ref_logps_BS)  # whose tokens nothing reads


def _pairs(policy: Scored, reference: Scored, batch: Batch, options: DpoOptions) -> Pairs:
    index = (batch.chosen_index_BP, batch.rejected_index_BP)
    chosen_BP, rejected_BP = take_pairs(policy.logps_BS, *index)
    ref_chosen_BP, ref_rejected_BP = take_pairs(reference.logps_BS, *index)
    chosen_tokens_BP, rejected_tokens_BP = take_pairs(policy.num_tokens_BS, *index)
    pairs = Pairs(
        chosen=chosen_BP,
        rejected=rejected_BP,
        ref_chosen=ref_chosen_BP,
        ref_rejected=ref_rejected_BP,
        weight=batch.pair_weight_BP,
        chosen_tokens=chosen_tokens_BP,
        rejected_tokens=rejected_tokens_BP,
    )
    if options.ld_alpha != 1.0:
        shorter_BP = jnp.minimum(chosen_tokens_BP, rejected_tokens_BP)
        pairs = _discounted(pairs, shorter_BP, policy, reference, batch, options.ld_alpha)
    if policy.tokens.log_sum_squares_BM is not None:
        log_weight_BS, _ = per_reply(policy.tokens.logps_BM - policy.tokens.log_sum_squares_BM, batch)
        pairs = pairs.replace(importance=importance_weights(log_weight_BS, policy.num_tokens_BS, *index))
    return pairs


def _discounted(
    pairs: Pairs, shorter_BP: jax.Array, policy: Scored, reference: Scored, batch: Batch, alpha: float
) -> Pairs:
    """`pairs` by LD-DPO: tokens past the shorter reply's length count `alpha`."""
    numbers_BM = token_numbers(batch.sequence_index_BM, batch.weight_BM, policy.num_tokens_BS)

    def discount(scored: Scored, index_BP: jax.Array) -> jax.Array:
        places = (numbers_BM, batch.sequence_index_BM, batch.weight_BM)
        return tail_discounted(scored.tokens.logps_BM, *places, index_BP, shorter_BP, alpha)

    return pairs.replace(
        chosen=discount(policy, batch.chosen_index_BP),
        rejected=discount(policy, batch.rejected_index_BP),
        ref_chosen=discount(reference, batch.chosen_index_BP),
        ref_rejected=discount(reference, batch.rejected_index_BP),
        whole_chosen=pairs.chosen,
        whole_rejected=pairs.rejected,
    )


def per_reply(values_BM: jax.Array, batch: Batch) -> tuple[jax.Array, jax.Array]:
    """Sums of a value of the trained tokens, and the number of these, per reply [..., B, S]."""
    return sequence_logps(values_BM, batch.sequence_index_BM, batch.weight_BM, batch.sequence_id_BS.shape[-1])
