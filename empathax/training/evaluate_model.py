"""One model on a config's held-out data, without a run: metrics, replies, and the record that `report` reads."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from empathax.config import Config, LoraOptions
from empathax.data.dataset import Dataset
from empathax.evaluation.judging.chat_server import ChatServer
from empathax.evaluation.judging.server_replies import generate_from_server
from empathax.evaluation.reply_metrics import ReplyScorer
from empathax.evaluation.reply_record import make_record
from empathax.evaluation.reply_set import read_predictions
from empathax.evaluation.report.record import EvaluationRecord
from empathax.parallel.agreement import fail_together
from empathax.parallel.processes import is_leader
from empathax.training import results
from empathax.training.experiment import Experiment, assemble
from empathax.training.held_out import HeldOut, Measured
from empathax.training.results import data_of
from empathax.training.stages.stage import rows_kinds

SHOWN_REPLIES = 3


@dataclass(frozen=True)
class Evaluation:
    """What is measured: a model, and the config's base model as the reference of its rewards."""

    model: Experiment
    reference: Experiment
    scorer: ReplyScorer
    held_out: HeldOut
    adapters: Sequence[str] = ()  # on top of the model

    @property
    def model_path(self) -> str:
        """What is evaluated."""
        return " + ".join([self.model.config.model.path, *self.adapters])

    def describe(self) -> str:
        """What is about to be done, for the terminal."""
        lines = [f"model     {self.model_path}"]
        if self.model.preferences:
            lines.append(f"reference {self.reference.config.model.path}")
        lines += [
            f"{stage:<9} {len(dataset.eval_examples):,} held-out {'pairs' if dataset.eval.paired else 'replies'} in "
            f"{len(dataset.eval):,} rows of {dataset.eval.sizes.tokens:,} tokens"
            for stage, dataset in self.model.datasets.items()
        ]
        lines.append(f"answers   {len(self.held_out.turns):,} held-out turns")
        return "\n".join(lines)


def prepare(
    config: Config, model_path: str = "", scorer: ReplyScorer | None = None, adapters: Sequence[str] = ()
) -> Evaluation:
    """Reads and checks config, data, tokenizers, classifiers and both models' headers; loads and compiles nothing.

    `model_path` "" evaluates the config's base model; `adapters`, directories in PEFT's format, are added to it. The
    evaluated model reads the data with its own tokenizer, unless the config names one. `scorer` takes the place of the
    config's own. All held-out turns are answered, unless `eval.turns` says how many.
    """
    options = dataclasses.replace(config.eval, turns=config.eval.turns or -1, num_replies=0)
    config = dataclasses.replace(config, eval=options)
    reads = rows_kinds(config)
    reference = assemble(config, reads)
    scorer = scorer or ReplyScorer.of(config.eval)
    path = model_path or config.model.path
    if path == config.model.path and not adapters:
        return Evaluation(reference, reference, scorer, HeldOut(reference))
    model_options = dataclasses.replace(config.model, path=path)
    config = dataclasses.replace(config, model=model_options, lora=LoraOptions())  # lora.path is the base model's
    model = assemble(config, reads, adapters=adapters)
    return Evaluation(model, reference, scorer, HeldOut(model), adapters)


def evaluate(evaluation: Evaluation, label: str) -> EvaluationRecord | None:
    """Every metric of docs/metrics.md that the config asks for, of greedy (or sampled: `config.eval`) replies.

    Several processes generate together; the first alone scores, and the others get None.
    """
    reference = _reference(evaluation)
    measured = evaluation.held_out.measure(evaluation.model.model.load_params())
    against = measured if evaluation.model is evaluation.reference else reference
    with fail_together():
        return _record(evaluation, label, measured, against) if is_leader() else None


def _record(evaluation: Evaluation, label: str, measured: Measured, against: Measured | None) -> EvaluationRecord:
    held_out = evaluation.held_out
    return make_record(
        label,
        evaluation.model_path,
        held_out.turns,
        measured.answers,
        evaluation.scorer.score(held_out.turns, measured.answers),
        **data_of(evaluation.model.config, evaluation.scorer),
        metrics=held_out.metrics(measured, against),
        per_example=held_out.statistics(measured, against),
    )


def evaluate_server(evaluation: Evaluation, server: ChatServer, label: str) -> EvaluationRecord:
    """The row of a model behind a server: its replies to the held-out turns, and the metrics of replies alone."""
    config, turns = evaluation.model.config, evaluation.held_out.turns
    prompts = [turn.prompt for turn in turns[:: config.eval.num_samples]]
    answered = generate_from_server(
        server, prompts, config.eval, config.seed, opening_user_turn=config.data.opening_user_turn
    )
    print(f"server    {answered.in_words()}\n          {server.tally.in_words()}", file=sys.stderr)
    scores = evaluation.scorer.score(turns, answered.replies)
    return make_record(
        label,
        server.options.model,
        turns,
        answered.replies,
        scores,
        **data_of(evaluation.model.config, evaluation.scorer),
    )


def record_of_files(scorer: ReplyScorer, predictions: Path, references: Path, label: str) -> EvaluationRecord:
    """A record of the texts in two files (evaluation/reply_set.py)."""
    turns, replies = read_predictions(predictions, references)
    scores = scorer.score(turns, replies)
    return make_record(
        label, str(predictions), turns, replies, scores, path=str(references), split="given", decoding=scorer.facts()
    )


def in_words(record: EvaluationRecord) -> str:
    """The table and a few replies, for the terminal."""
    step = max(1, len(record.replies) // SHOWN_REPLIES)
    shown = record.replies[step // 2 :: step][:SHOWN_REPLIES]
    prompts = [reply.prompt[-1].content if reply.prompt else f"reference: {reply.reference}" for reply in shown]
    rows = {record.label: results.Row(record.metrics, prompts, [reply.reply for reply in shown])}
    return f"{results.table(rows)}\n\n{results.replies_text(rows)}"


def _reference(evaluation: Evaluation) -> Measured | None:
    """The reference's log-probs of the held-out preferences; None if it is the model itself, or reads other tokens."""
    model, reference = evaluation.model, evaluation.reference
    own, other = model.preferences, reference.preferences
    if model is reference or own is None or other is None:
        return None
    if not _same_tokens(own, other):
        if is_leader():
            print(
                f"rewards are not measured: {reference.config.model.path} (the config's model) reads the held-out "
                f"pairs as other tokens than {model.config.model.path}",
                file=sys.stderr,
            )
        return None
    logps = HeldOut(reference).row_logps(reference.model.load_params(), other.eval)
    return Measured(reply_sums=None, pair_logps=logps.tolist(), prompts=(), replies=())


def _same_tokens(first: Dataset, second: Dataset) -> bool:
    return first.eval.fingerprint() == second.eval.fingerprint()
