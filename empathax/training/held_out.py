"""Held-out data under one set of parameters: a pass over the replies, one over the pairs, generated replies."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import TypeVar

import jax
import numpy as np
from jaxtyping import Float32

from empathax.data.batch import Batch
from empathax.data.dataset import Dataset
from empathax.data.examples import Example
from empathax.data.loader import eval_batches
from empathax.data.packing import PackedRows
from empathax.evaluation.generation.replies import generate_replies
from empathax.evaluation.reply_set import Turn, by_dialogue, pick_turns, turn_of
from empathax.parallel.processes import put_batch, rows_of_process
from empathax.parallel.rules import batch_sharding
from empathax.training import held_out_preferences, metrics
from empathax.training.job import Job, Params
from empathax.training.reference import precompute
from empathax.training.report import Measured
from empathax.training.step import make_reply_step, make_score_step

Logps = Float32[np.ndarray, " sequences"]
Value = TypeVar("Value")


class HeldOut:
    """The held-out data of a run, with its compiled steps.

    `turns` are answered and scored before the run and after each stage, `in_loop_turns` of them at every evaluation
    (all of them, if only `eval.in_loop_turns` is set). With `eval.num_samples` = n each stands n times in a row.
    """

    def __init__(self, job: Job) -> None:
        self._job = job
        model_config, options = job.source.config, job.config.model
        self._score_step = make_score_step(model_config, options, mesh=job.mesh)
        self._reply_step = make_reply_step(model_config, options, mesh=job.mesh)
        first = next(iter(job.datasets.values()))
        dataset, limits = job.datasets.get("sft", first), job.config.eval
        self._template = dataset.template
        wanted = [example for example in dataset.eval_examples if example.is_wanted]
        self._shown = pick_examples(wanted, limits.num_replies)
        self._examples = pick_turns(wanted, limits.turns or limits.in_loop_turns)
        in_loop = {id(example) for example in pick_turns(self._examples, limits.in_loop_turns)}
        self._in_loop = [place for place, example in enumerate(self._examples) if id(example) in in_loop]
        self.turns: tuple[Turn, ...] = tuple(
            turn for example in self._examples for turn in [turn_of(example)] * limits.num_samples
        )

    def measure(self, params: Params, objectives: Collection[str]) -> Measured:
        """Runs `params` over the held-out replies ("sft") and pairs ("dpo"), the sample prompts and `turns`."""
        return self._measured(params, objectives, range(len(self._examples)))

    def measure_in_loop(self, params: Params, objectives: Collection[str]) -> Measured:
        """The same with the in-loop turns alone; its `answers` are theirs."""
        return self._measured(params, objectives, self._in_loop)

    @property
    def in_loop_turns(self) -> list[Turn]:
        """The turns that are answered at every evaluation."""
        return self._of_in_loop(self.turns)

    def in_loop_answers(self, answers: Sequence[str]) -> list[str]:
        """Those of the answers to `turns` that are to the in-loop turns."""
        return self._of_in_loop(answers)

    def _of_in_loop(self, values: Sequence[Value]) -> list[Value]:
        samples = self._job.config.eval.num_samples
        return [value for place in self._in_loop for value in values[place * samples : (place + 1) * samples]]

    def reply_metrics(self, measured: Measured) -> dict[str, float]:
        """Perplexity, token accuracy, entropy and loss on the held-out replies; {} if they were not measured."""
        return metrics.finalize(metrics.total([_totals(measured.reply_sums)])) if measured.reply_sums else {}

    def reward_metrics(self, logps: Sequence[float] | Logps, ref_logps: Sequence[float] | Logps) -> dict[str, float]:
        """Rewards, margin, accuracy and both log-probs on the held-out pairs, from log-probs by sequence id.

        Rewards are `reward_beta` x log-ratio to `ref_logps`, whatever the objective: one ruler for every model.
        """
        return held_out_preferences.reward_metrics(self._preferences, logps, ref_logps, self._job.config.reward_beta)

    def objective_metrics(self, logps: Sequence[float] | Logps, ref_logps: Sequence[float] | Logps) -> dict[str, float]:
        """The same as the stage's own objective sees the pairs, with its loss; `ref_logps` unused if it has none."""
        return held_out_preferences.objective_metrics(self._preferences, logps, ref_logps, self._job.config.dpo)

    @property
    def _preferences(self) -> Dataset:
        return self._job.datasets["dpo"]

    def row_logps(self, params: Params, rows: PackedRows) -> Logps:
        """Log-probs of every reply in `rows`, by sequence id."""
        return precompute(self._score_step, params, self._batches(rows), rows.num_sequences)

    def _measured(self, params: Params, objectives: Collection[str], places: Sequence[int]) -> Measured:
        samples = self._job.config.eval.num_samples
        shown, asked = self._shown, [self._examples[place] for place in places]
        replies = self._replies(params, [*shown, *asked])
        return Measured(
            reply_sums=self._reply_sums(params) if "sft" in objectives else None,
            pair_logps=self._pair_logps(params).tolist() if "dpo" in objectives else None,
            prompts=[last_turn(example) for example in shown for _ in range(samples)],
            replies=replies[: len(shown) * samples],
            answers=replies[len(shown) * samples :],
        )

    def _pair_logps(self, params: Params) -> Logps:
        rows = self._preferences.eval
        return np.where(rows.reply_lengths() > 0, self.row_logps(params, rows), np.float32(0.0))

    def _replies(self, params: Params, examples: Sequence[Example]) -> list[str]:
        """`eval.num_samples` replies to each prompt, one after another."""
        job, ids = self._job, [example.prompt_ids.tolist() for example in examples]
        return generate_replies(params, job.source.config, self._template, ids, job.config, mesh=job.mesh)

    def _reply_sums(self, params: Params) -> dict[str, list[float]]:
        rows = self._job.datasets["sft"].eval
        found = {name: np.zeros(rows.num_sequences, np.float32) for name in ("nll", "entropy", "correct", "tokens")}
        for batch in self._batches(rows):
            sums = jax.device_get(self._reply_step(params, batch))
            used_BS = sums.scores.sequence_id_BS >= 0
            columns = (-sums.scores.logps_BS, sums.entropy_BS, sums.correct_BS, sums.scores.num_tokens_BS)
            for name, values_BS in zip(found, columns, strict=True):
                found[name][sums.scores.sequence_id_BS[used_BS]] = values_BS[used_BS]
        return {name: values.tolist() for name, values in found.items()}

    def _batches(self, rows: PackedRows) -> Iterator[Batch]:
        parts, num_parts = rows_of_process(self._job.mesh)
        batches = eval_batches(rows, self._job.config.eval.rows_per_batch, parts=parts, num_parts=num_parts)
        sharding = batch_sharding(self._job.mesh)
        return (put_batch(batch, sharding) for batch in batches)


def pick_examples(examples: Sequence[Example], count: int) -> list[Example]:
    """`count` examples spread over the held-out dialogues, each from the middle of its dialogue."""
    dialogues = by_dialogue(examples)
    step = max(1, len(dialogues) // max(1, count))
    return [dialogue[len(dialogue) // 2] for dialogue in dialogues[::step][:count]]


def last_turn(example: Example) -> str:
    """What the reply answers: the prompt's last message, or the end of a plain prompt."""
    return example.prompt[-400:] if isinstance(example.prompt, str) else example.prompt[-1].content


def _totals(sums: Mapping[str, Sequence[float]]) -> dict[str, np.float64]:
    return {name: np.float64(np.sum(np.asarray(values, np.float64))) for name, values in sums.items()}
