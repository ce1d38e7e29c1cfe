"""Stage dpo: preference training, DPO and its relatives (docs/objectives.md), on pairs or on single labeled replies.

The losses themselves are in objectives/; here a model's log-probs of a batch become what they take.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from empathax.config import Config, DpoOptions, losses
from empathax.data.batch import Batch, LabeledReplies
from empathax.data.packing import PackedRows
from empathax.errors import ConfigError, WeightsError
from empathax.models.architecture.model_config import ModelConfig
from empathax.objectives.logprobs import Sums, token_sums
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
    initial_loss,
    nll_weight,
    preference_loss,
)
from empathax.objectives.unpaired import Replies, unpaired_loss
from empathax.parallel.mesh import compute_dtype
from empathax.parallel.processes import is_leader
from empathax.training import reference
from empathax.training.experiment import Experiment
from empathax.training.forward import Scored, Scorer, make_scorer, per_reply
from empathax.training.held_out import PREFERENCES, HeldOut, Logps, Measured, objective_metrics
from empathax.training.stages.stage import LossFn, Reference, Stage
from empathax.training.state import Tree

FIRST_STEP_TOLERANCE = 1e-3


class Dpo(Stage):
    """Preference losses against a frozen reference, one that moves, or none."""

    name = "dpo"
    label = "DPO"
    measures = PREFERENCES

    def rows_kind(self, config: Config) -> str:
        return losses.rows_kind(config.dpo)

    def make_loss(self, model_config: ModelConfig, config: Config, mesh: Mesh | None = None) -> LossFn:
        check_options(config.dpo)
        make = _unpaired_loss if losses.reads_single_replies(config.dpo) else _preference_loss
        return make(model_config, config, mesh)

    def of_step(self, config: Config, batch: Batch) -> jax.Array | None:
        """Mean length of the chosen reply over all pairs; None where the loss does not need it."""
        if not nll_weight(config.dpo):
            return None
        _, num_tokens_BS = per_reply(batch.weight_BM, batch)
        chosen_BP, _ = take_pairs(num_tokens_BS, batch.chosen_index_BP, batch.rejected_index_BP)
        return (chosen_BP * batch.pair_weight_BP).sum() / batch.pair_weight_BP.sum()

    def reference_kind(self, config: Config) -> str:
        return losses.reference_kind(config.dpo, config.lora)

    def moves_reference(self, config: Config) -> bool:
        return config.dpo.ref_sync_steps > 0

    def reference(
        self, experiment: Experiment, cache_dir: Path, params: Tree, row_logps: Callable[[Tree, PackedRows], Logps]
    ) -> Reference:
        kind = self.reference_kind(experiment.config)
        if kind in ("none", "adapter_off") or self.moves_reference(experiment.config):
            return Reference()
        if kind == "resident":
            return Reference(params=reference.frozen_copy(params))
        dataset, model = experiment.datasets[self.name], experiment.model
        dtype = str(compute_dtype(model.options, model.mesh))
        wanted = reference.fingerprint(params, {**dataset.fingerprint, "compute_dtype": dtype})
        logps, from_disk = reference.cached_logps(cache_dir, wanted, partial(row_logps, params, dataset.train))
        if is_leader():
            how = "read from disk" if from_disk else "computed"
            print(f"{self.name} reference log-probs of {len(logps):,} replies {how}", flush=True)
        return Reference(train_logps=logps)

    def check_first_step(self, config: Config) -> Callable[[Mapping[str, float]], None] | None:
        """Before its first update the policy is the reference: no margin, and the loss is what it is without one."""
        if losses.reference_kind(config.dpo) == "none":
            return None
        return partial(_check_first_step, initial_loss(config.dpo))  # now: it compiles, which the loop must not

    def held_out_metrics(self, held_out: HeldOut, measured: Measured, before: Measured) -> dict[str, float]:
        logps, ref_logps = (each.pair_logps or () for each in (measured, before))
        return objective_metrics(held_out.preferences, logps, ref_logps, held_out.config.dpo)


STAGE = Dpo()


def _check_first_step(expected: float | None, metrics: Mapping[str, float]) -> None:
    found, margin = metrics.get("loss_pairs", metrics["loss"]), metrics.get("reward_margin", 0.0)
    is_off = expected is not None and abs(found - expected) > FIRST_STEP_TOLERANCE * max(1.0, abs(expected))
    if is_off or abs(margin) > FIRST_STEP_TOLERANCE:
        loss = "" if expected is None else f"loss {expected:.6f}, "
        raise WeightsError(
            f"dpo starts with loss {found:.6f} and reward margin {margin:.6f}, but policy and reference must be "
            f"the same model then ({loss}margin 0): delete the run's reference/ directory"
        )


def _preference_loss(model_config: ModelConfig, config: Config, mesh: Mesh | None) -> LossFn:
    options = config.dpo
    score = make_scorer(model_config, config.model, mesh, sum_squares=options.use_weighting)
    score_reference = make_scorer(model_config, config.model, mesh)

    def loss_fn(
        params: Tree, ref_params: Tree | None, batch: Batch, of_step: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array, Sums]:
        policy = score(params, batch)
        reference = _reference_scores(score_reference, ref_params, batch, policy, options)
        loss_sum, num_pairs, sums = preference_loss(_pairs(policy, reference, batch, options), options, of_step)
        chosen_weight_BM = chosen_token_weight(
            batch.weight_BM, batch.sequence_index_BM, batch.chosen_index_BP, batch.pair_weight_BP
        )
        sums |= token_sums(policy.tokens, chosen_weight_BM) | {"trained_tokens": batch.weight_BM.sum()}
        return loss_sum, num_pairs, sums

    return loss_fn


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


def _unpaired_loss(model_config: ModelConfig, config: Config, mesh: Mesh | None) -> LossFn:
    options, score = config.dpo, make_scorer(model_config, config.model, mesh)

    def loss_fn(
        params: Tree, ref_params: Tree | None, batch: Batch, of_step: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array, Sums]:
        labeled = batch.replies
        if labeled is None:
            raise ConfigError(f"dpo.loss = {options.loss} takes replies with a label, but these batches hold none")
        policy = score(params, batch)
        reference = _reference_scores(score, ref_params, batch, policy, options)
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


def _reference_scores(
    score: Scorer, ref_params: Tree | None, batch: Batch, policy: Scored, options: DpoOptions
) -> Scored:
    """What the reference says; a log-prob of 0 throughout where the loss has none."""
    if losses.reference_kind(options) == "none":
        zeros = jax.tree.map(jnp.zeros_like, policy)
        return zeros._replace(num_tokens_BS=policy.num_tokens_BS)
    if ref_params is not None:
        return score(jax.lax.stop_gradient(ref_params), batch)
    if batch.ref_logps_BS is None:
        raise ConfigError("dpo needs a reference: pass ref_params, or batches that carry ref_logps_BS")
    if options.ld_alpha != 1.0:
        raise ConfigError("dpo.ld_alpha needs the reference's log-prob of each token: pass ref_params")
    return policy._replace(logps_BS=batch.ref_logps_BS)  # whose tokens nothing reads
