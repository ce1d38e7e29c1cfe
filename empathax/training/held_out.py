"""Held-out data under one set of parameters: replies, pairs and prompts; what they say of a model, as numbers."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float32

from empathax.config import DpoOptions
from empathax.config.losses import reads_single_replies, reference_kind
from empathax.data.batch import Batch
from empathax.data.dataset import Dataset
from empathax.data.examples import Example
from empathax.data.loader import eval_batches
from empathax.data.packing import PackedRows
from empathax.evaluation.generation.replies import generate_replies
from empathax.evaluation.metrics.statistics import LogLikelihoods, MeanOfValues, RatioOfSums, RewardMargins, Statistic
from empathax.evaluation.reply_set import Turn, by_dialogue, pick_turns, turn_of
from empathax.evaluation.scoring import logps_by_sequence
from empathax.objectives.pairs import Pairs
from empathax.objectives.preference import preference_loss
from empathax.objectives.unpaired import Replies, unpaired_loss
from empathax.parallel.processes import put_batch, rows_of_process
from empathax.parallel.rules import batch_sharding
from empathax.training import metrics
from empathax.training.experiment import Experiment, Params
from empathax.training.forward import make_reply_step, make_score_step

Logps = Float32[np.ndarray, " sequences"]
Values = Sequence[float] | Logps
Value = TypeVar("Value")
REPLIES, PREFERENCES = "replies", "preferences"  # the parts of held-out data that are measured
SIDES = ("chosen", "rejected")


@dataclass(frozen=True)
class Measured:
    """What held-out data say of one model. Parts that were not measured are None."""

    reply_sums: (
        Mapping[str, Sequence[float]] | None
    )  # of held-out replies: nll, entropy, correct, tokens by sequence id
    pair_logps: Sequence[float] | None  # of the replies of held-out preferences, by sequence id
    prompts: Sequence[str]
    replies: Sequence[str]
    answers: Sequence[str] = ()  # a reply to each of the turns that are scored


class HeldOut:
    """The held-out data of an experiment, with its compiled steps.

    `turns` are answered and scored before the run and after each stage, `in_loop_turns` of them at every evaluation
    (all of them, if only `eval.in_loop_turns` is set). With `eval.num_samples` = n each stands n times in a row.
    """

    def __init__(self, experiment: Experiment) -> None:
        self.config, self._model = experiment.config, experiment.model
        model_config, options, mesh = self._model.source.config, self._model.options, self._model.mesh
        self._replies, self._preferences = experiment.replies, experiment.preferences
        self._score_step = make_score_step(model_config, options, mesh=mesh)
        self._reply_step = make_reply_step(model_config, options, mesh=mesh)
        dataset, limits = self._replies or next(iter(experiment.datasets.values())), self.config.eval
        self._template = dataset.template
        wanted = [example for example in dataset.eval_examples if example.is_wanted]
        self._shown = pick_examples(wanted, limits.num_replies)
        self._examples = pick_turns(wanted, limits.turns or limits.in_loop_turns)
        in_loop = {id(example) for example in pick_turns(self._examples, limits.in_loop_turns)}
        self._in_loop = [place for place, example in enumerate(self._examples) if id(example) in in_loop]
        self.turns: tuple[Turn, ...] = tuple(
            turn for example in self._examples for turn in [turn_of(example)] * limits.num_samples
        )

    @property
    def preferences(self) -> Dataset:
        """The data of pairs, or of single replies with a label."""
        assert self._preferences is not None, "no stage and no eval.objectives reads preferences"
        return self._preferences

    def measure(self, params: Params) -> Measured:
        """Runs `params` over all held-out data, the sample prompts and `turns`."""
        parts = [part for part, data in ((REPLIES, self._replies), (PREFERENCES, self._preferences)) if data]
        return self._measured(params, parts, range(len(self._examples)))

    def measure_in_loop(self, params: Params, part: str) -> Measured:
        """The same of one part, with the in-loop turns alone; its `answers` are theirs."""
        return self._measured(params, [part], self._in_loop)

    @property
    def in_loop_turns(self) -> list[Turn]:
        """The turns that are answered at every evaluation."""
        return self._of_in_loop(self.turns)

    def in_loop_answers(self, answers: Sequence[str]) -> list[str]:
        """Those of the answers to `turns` that are to the in-loop turns."""
        return self._of_in_loop(answers)

    def row_logps(self, params: Params, rows: PackedRows) -> Logps:
        """Log-probs of every reply in `rows`, by sequence id."""
        return logps_by_sequence(self._score_step, params, self._batches(rows), rows.num_sequences)[0]

    def reply_metrics(self, measured: Measured) -> dict[str, float]:
        """Perplexity, token accuracy, entropy and loss on the held-out replies; {} if none were measured."""
        if not measured.reply_sums or not measured.reply_sums["tokens"]:
            return {}
        return metrics.finalize(metrics.total([_totals(measured.reply_sums)]))

    def reward_metrics(self, measured: Measured, reference: Measured) -> dict[str, float]:
        """Rewards, margin, accuracy and both log-probs on the held-out preferences.

        Rewards are `reward_beta` x log-ratio to `reference`, whatever the objective: the same for every model.
        """
        logps, ref_logps = (each.pair_logps or () for each in (measured, reference))
        return reward_metrics(self.preferences, logps, ref_logps, self.config.reward_beta)

    def metrics(self, measured: Measured, reference: Measured | None) -> dict[str, float]:
        """The language-model and preference metrics; rewards are against `reference`, left out without one."""
        found = self.reply_metrics(measured)
        if measured.pair_logps:
            has_reference = reference is not None and bool(reference.pair_logps)
            pairs = self.reward_metrics(measured, reference if has_reference and reference else measured)
            found |= pairs if has_reference else {name: v for name, v in pairs.items() if name.startswith("logp_")}
        return {name: value for name, value in found.items() if name != "loss"}  # of replies or pairs: others say which

    def statistics(self, measured: Measured, reference: Measured | None) -> dict[str, Statistic]:
        """The same reply by reply and pair by pair, from which they are computed again for any set of dialogues."""
        found: dict[str, Statistic] = {}
        if measured.reply_sums and self._replies and self._replies.eval_examples:
            examples = self._replies.eval_examples
            owners = tuple(example.dialogue_id for example in examples)
            ids = [example.sequence_ids[0] for example in examples]
            sums = {name: np.asarray(values)[ids] for name, values in measured.reply_sums.items()}
            tokens = tuple(sums["tokens"].tolist())
            found["perplexity"] = LogLikelihoods(owners, tuple(sums["nll"].tolist()), tuple(map(int, tokens)))
            found["token_accuracy"] = RatioOfSums(owners, tuple(sums["correct"].tolist()), tokens)
            found["entropy"] = RatioOfSums(owners, tuple(sums["entropy"].tolist()), tokens)
        if measured.pair_logps:
            ref_logps = reference.pair_logps if reference else None
            found |= preference_statistics(self.preferences, measured.pair_logps, ref_logps, self.config.reward_beta)
        return found

    def _of_in_loop(self, values: Sequence[Value]) -> list[Value]:
        samples = self.config.eval.num_samples
        return [value for place in self._in_loop for value in values[place * samples : (place + 1) * samples]]

    def _measured(self, params: Params, parts: Collection[str], places: Sequence[int]) -> Measured:
        samples = self.config.eval.num_samples
        shown, asked = self._shown, [self._examples[place] for place in places]
        replies = self._generated(params, [*shown, *asked])
        return Measured(
            reply_sums=self._reply_sums(params) if REPLIES in parts else None,
            pair_logps=self._pair_logps(params).tolist() if PREFERENCES in parts else None,
            prompts=[last_turn(example) for example in shown for _ in range(samples)],
            replies=replies[: len(shown) * samples],
            answers=replies[len(shown) * samples :],
        )

    def _pair_logps(self, params: Params) -> Logps:
        rows = self.preferences.eval
        return np.where(rows.reply_lengths() > 0, self.row_logps(params, rows), np.float32(0.0))

    def _generated(self, params: Params, examples: Sequence[Example]) -> list[str]:
        """`eval.num_samples` replies to each prompt, one after another."""
        ids = [example.prompt_ids.tolist() for example in examples]
        model = self._model
        return generate_replies(params, model.source.config, self._template, ids, self.config, mesh=model.mesh)

    def _reply_sums(self, params: Params) -> dict[str, list[float]]:
        assert self._replies is not None
        rows = self._replies.eval
        found = {name: np.zeros(rows.num_sequences, np.float32) for name in ("nll", "entropy", "correct", "tokens")}
        for batch in self._batches(rows):
            sums = jax.device_get(self._reply_step(params, batch))
            used_BS = sums.scores.sequence_id_BS >= 0
            columns = (-sums.scores.logps_BS, sums.entropy_BS, sums.correct_BS, sums.scores.num_tokens_BS)
            for name, values_BS in zip(found, columns, strict=True):
                found[name][sums.scores.sequence_id_BS[used_BS]] = values_BS[used_BS]
        return {name: values.tolist() for name, values in found.items()}

    def _batches(self, rows: PackedRows) -> Iterator[Batch]:
        parts, num_parts = rows_of_process(self._model.mesh)
        batches = eval_batches(rows, self.config.eval.rows_per_batch, parts=parts, num_parts=num_parts)
        sharding = batch_sharding(self._model.mesh)
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


def has_pairs(dataset: Dataset) -> bool:
    """Whether every held-out example has a chosen and a rejected reply, also where these are trained apart."""
    return all(len(example.sequence_ids) == 2 for example in dataset.eval_examples)


def by_pair(dataset: Dataset, values: Values) -> Float32[np.ndarray, "2 P"]:
    """Values by sequence id as those of the (chosen, rejected) replies of each held-out pair."""
    ids = np.asarray([example.sequence_ids for example in dataset.eval_examples])
    return np.asarray(values, np.float32)[ids].T


def by_side(dataset: Dataset, values: Values) -> dict[str, tuple[tuple[str, ...], Float32[np.ndarray, " N"]]]:
    """ "chosen" and "rejected" -> (dialogue, value) of each such reply; a single one is on the side of its label."""
    found: dict[str, tuple[list[str], list[int]]] = {side: ([], []) for side in SIDES}
    for example in dataset.eval_examples:
        for sequence_id, label in zip(example.sequence_ids, example.labels or (True, False), strict=True):
            owners, ids = found[SIDES[not label]]
            owners.append(example.dialogue_id)
            ids.append(sequence_id)
    return {side: (tuple(owners), np.asarray(values, np.float32)[ids]) for side, (owners, ids) in found.items()}


def reward_metrics(dataset: Dataset, logps: Values, ref_logps: Values, beta: float) -> dict[str, float]:
    """Rewards, their margin, log-probs, and of pairs the accuracy. Rewards are beta x log-ratio, whatever the loss."""
    if has_pairs(dataset):
        values = objective_metrics(dataset, logps, ref_logps, DpoOptions(beta=beta))
    else:
        values = objective_metrics(dataset, logps, ref_logps, DpoOptions(loss=("apo_zero_unpaired",), beta=beta))
    return {name: value for name, value in values.items() if name != "loss"}


def objective_metrics(dataset: Dataset, logps: Values, ref_logps: Values, options: DpoOptions) -> dict[str, float]:
    """The same as the losses of `options` see them, with their mean; an estimate of the KL is that of all replies.

    {} where nothing is held out.
    """
    if not dataset.eval_examples:
        return {}
    if not reads_single_replies(options):
        lengths = dataset.eval.reply_lengths()
        sums = pair_sums(*(by_pair(dataset, values) for values in (logps, ref_logps, lengths)), options)
        return metrics.finalize(metrics.total([sums]))
    found = metrics.finalize(metrics.total([_reply_sums(_replies(dataset, logps, ref_logps), options)]))
    if has_pairs(dataset):
        found["reward_accuracy"] = reward_metrics(dataset, logps, ref_logps, options.beta)["reward_accuracy"]
    return found


def preference_statistics(
    dataset: Dataset, logps: Values, ref_logps: Values | None, beta: float
) -> dict[str, Statistic]:
    """`reward_metrics` reply by reply; a margin belongs to a pair."""
    if not dataset.eval_examples:
        return {}
    kinds = {"logp": np.asarray(logps, np.float32)}
    if ref_logps:
        kinds["reward"] = beta * (kinds["logp"] - np.asarray(ref_logps, np.float32))
    found: dict[str, Statistic] = {
        f"{kind}_{side}": MeanOfValues.of(owners, values_N)
        for kind, values in kinds.items()
        for side, (owners, values_N) in by_side(dataset, values).items()
        if owners
    }
    if ref_logps and has_pairs(dataset):
        chosen_P, rejected_P = by_pair(dataset, kinds["reward"])
        owners = tuple(example.dialogue_id for example in dataset.eval_examples)
        found["reward_margin"] = RewardMargins(owners, tuple((chosen_P - rejected_P).tolist()))
    return found


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


@partial(jax.jit, static_argnames="options")
def _reply_sums(replies: Replies, options: DpoOptions) -> dict[str, jax.Array]:
    return unpaired_loss(replies, options)[2]


def _replies(dataset: Dataset, logps: Values, ref_logps: Values) -> Replies:
    """Of log-probs by sequence id; that of a mismatched reply is its own reply's plus the number of replies."""
    labels = np.asarray([label for example in dataset.eval_examples for label in example.labels], np.float32)
    num_replies = len(labels)
    lengths = dataset.eval.reply_lengths()[num_replies:]
    is_there = np.pad(lengths > 0, (0, num_replies - len(lengths)))

    def parts(values: Values) -> tuple[np.ndarray, np.ndarray]:
        mismatched = np.zeros(num_replies, np.float32)
        mismatched[is_there] = np.asarray(values, np.float32)[num_replies:][is_there[: len(lengths)]]
        return np.asarray(values, np.float32)[:num_replies], mismatched

    (own, mismatched), (ref_own, ref_mismatched) = parts(logps), parts(ref_logps)
    arrays = (own, ref_own, labels, np.ones_like(own), mismatched, ref_mismatched, is_there.astype(np.float32))
    return Replies(*map(jnp.asarray, arrays))
