"""Held-out metrics of one set of parameters: a pass over the replies, one over the pairs, a few generated replies."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float32

from empathax.config import DpoOptions
from empathax.data.batch import Batch
from empathax.data.dataset import Example
from empathax.data.loader import eval_batches
from empathax.data.packing import PackedRows
from empathax.evaluation.replies import generate_replies
from empathax.objectives.pairs import Pairs
from empathax.objectives.preference import preference_loss, reference_kind
from empathax.parallel.distributed import put_batch
from empathax.parallel.rules import batch_sharding
from empathax.training import metrics
from empathax.training.job import Job, Params
from empathax.training.reference import precompute
from empathax.training.report import Measured
from empathax.training.step import make_eval_step, make_score_step

Logps = Float32[np.ndarray, " sequences"]


class HeldOut:
    """The held-out data of a run, with its compiled steps."""

    def __init__(self, job: Job) -> None:
        self._job = job
        model_config, options = job.source.config, job.config.model
        self._score_step = make_score_step(model_config, options, mesh=job.mesh)
        self._eval_step = make_eval_step("sft", model_config, job.config, mesh=job.mesh)

    def measure(self, params: Params, stages: Collection[str]) -> Measured:
        """Runs `params` over the held-out replies ("sft"), the held-out pairs ("dpo") and the sample prompts."""
        prompts, replies = self._replies(params)
        return Measured(
            reply_metrics=self._reply_metrics(params) if "sft" in stages else None,
            pair_logps=self.row_logps(params, self._job.datasets["dpo"].eval).tolist() if "dpo" in stages else None,
            prompts=prompts,
            replies=replies,
        )

    def pair_metrics(self, logps: Sequence[float] | Logps, ref_logps: Sequence[float] | Logps) -> dict[str, float]:
        """Rewards, margin, accuracy and both log-probs on the held-out pairs, from log-probs by sequence id.

        Rewards are beta x log-ratio to `ref_logps`, whatever the objective: one ruler for every model.
        """
        values = self._pair_metrics(logps, ref_logps, DpoOptions(beta=self._job.config.dpo.beta))
        return {name: value for name, value in values.items() if name != "loss"}

    def objective_metrics(self, logps: Sequence[float] | Logps, ref_logps: Sequence[float] | Logps) -> dict[str, float]:
        """The same as the stage's own objective sees the pairs, with its loss; `ref_logps` unused if it has none."""
        return self._pair_metrics(logps, ref_logps, self._job.config.dpo)

    def _pair_metrics(
        self, logps: Sequence[float] | Logps, ref_logps: Sequence[float] | Logps, options: DpoOptions
    ) -> dict[str, float]:
        dataset = self._job.datasets["dpo"]
        ids = np.asarray([example.sequence_ids for example in dataset.eval_examples])
        policy, ref = (np.asarray(values, np.float32)[ids].T for values in (logps, ref_logps))
        return metrics.finalize(metrics.total([pair_sums(policy, ref, dataset.eval.reply_lengths()[ids].T, options)]))

    def _reply_metrics(self, params: Params) -> dict[str, float]:
        sums = [self._eval_step(params, batch) for batch in self._batches(self._job.datasets["sft"].eval)]
        return metrics.finalize(metrics.total(sums))

    def row_logps(self, params: Params, rows: PackedRows) -> Logps:
        """Log-probs of every reply in `rows`, by sequence id."""
        return precompute(self._score_step, params, self._batches(rows), rows.num_sequences)

    def _replies(self, params: Params) -> tuple[list[str], list[str]]:
        dataset = next(iter(self._job.datasets.values()))
        examples = pick_examples(dataset.eval_examples, self._job.config.eval.num_replies)
        prompts = [last_turn(example) for example in examples for _ in range(self._job.config.eval.num_samples)]
        ids = [example.prompt_ids.tolist() for example in examples]
        model_config, config, mesh = self._job.source.config, self._job.config, self._job.mesh
        return prompts, generate_replies(params, model_config, dataset.template, ids, config, mesh=mesh)

    def _batches(self, rows: PackedRows) -> Iterator[Batch]:
        batches = eval_batches(
            rows,
            self._job.config.eval.rows_per_batch,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        )
        sharding = batch_sharding(self._job.mesh)
        return (put_batch(batch, sharding) for batch in batches)


@partial(jax.jit, static_argnames="options")
def pair_sums(
    logps_2P: jax.Array, ref_logps_2P: jax.Array, lengths_2P: jax.Array, options: DpoOptions
) -> dict[str, jax.Array]:
    """Metric sums over pairs from the log-probs and lengths of their (chosen, rejected) replies.

    Of whole replies and unweighted: `ld_alpha` and `use_weighting` are for training.
    """
    if reference_kind(options) == "none":
        ref_logps_2P = jnp.zeros_like(ref_logps_2P)
    lengths_2P = jnp.asarray(lengths_2P, jnp.float32)
    pairs = Pairs(
        chosen=logps_2P[0],
        rejected=logps_2P[1],
        ref_chosen=ref_logps_2P[0],
        ref_rejected=ref_logps_2P[1],
        weight=jnp.ones_like(logps_2P[0]),
        chosen_tokens=lengths_2P[0],
        rejected_tokens=lengths_2P[1],
    )
    return preference_loss(pairs, options)[2]


def pick_examples(examples: Sequence[Example], count: int) -> list[Example]:
    """`count` examples spread over the held-out dialogues, each from the middle of its dialogue."""
    by_dialogue: dict[str, list[Example]] = {}
    for example in examples:
        by_dialogue.setdefault(example.dialogue_id, []).append(example)
    dialogues = list(by_dialogue.values())
    step = max(1, len(dialogues) // max(1, count))
    return [dialogue[len(dialogue) // 2] for dialogue in dialogues[::step][:count]]


def last_turn(example: Example) -> str:
    """What the reply answers: the prompt's last message, or the end of a plain prompt."""
    return example.prompt[-400:] if isinstance(example.prompt, str) else example.prompt[-1].content
