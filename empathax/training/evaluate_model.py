"""One model on a config's held-out data: the numbers and replies of a run's report, without a run."""

from __future__ import annotations

import dataclasses
import sys
from dataclasses import dataclass

from empathax.config import Config
from empathax.training import report
from empathax.training.held_out import HeldOut, Logps
from empathax.training.job import Job, assemble

# Measured against a reference that reads the same tokens only.
REWARDS = frozenset({"reward_accuracy", "reward_margin", "reward_chosen", "reward_rejected"})


@dataclass(frozen=True)
class Evaluation:
    """What is measured: a model, and the config's base model as the reference of its rewards."""

    model: Job
    reference: Job

    def describe(self) -> str:
        """What is about to be done, for the terminal."""
        lines = [f"model     {self.model.config.model.path}"]
        if "dpo" in self.model.datasets:
            lines.append(f"reference {self.reference.config.model.path}")
        lines += [
            f"{stage:<9} {len(dataset.eval_examples):,} held-out {'pairs' if dataset.eval.paired else 'replies'} in "
            f"{len(dataset.eval):,} rows of {dataset.eval.sizes.tokens:,} tokens"
            for stage, dataset in self.model.datasets.items()
        ]
        return "\n".join(lines)


def prepare(config: Config, model_path: str = "") -> Evaluation:
    """Reads and checks config, data, tokenizers and the headers of both models; loads and compiles nothing.

    `model_path` "" evaluates the config's base model. The evaluated model reads the data with its own tokenizer, unless
    the config names one.
    """
    reference = assemble(config)
    if not model_path or model_path == config.model.path:
        return Evaluation(reference, reference)
    return Evaluation(
        assemble(dataclasses.replace(config, model=dataclasses.replace(config.model, path=model_path))), reference
    )


def evaluate(evaluation: Evaluation) -> report.Row:
    """Metrics by their names in docs/metrics.md, and greedy (or sampled: see `config.eval`) replies."""
    job = evaluation.model
    ref_logps = _reference_logps(evaluation)
    held_out = HeldOut(job)
    measured = held_out.measure(job.load_params(), job.datasets.keys())
    metrics = dict(measured.reply_metrics or {})
    if measured.pair_logps is not None:
        metrics |= held_out.pair_metrics(measured.pair_logps, measured.pair_logps if ref_logps is None else ref_logps)
    hidden = {"loss"}  # of replies or of pairs: perplexity and rewards say which
    if ref_logps is None and evaluation.model is not evaluation.reference:
        hidden |= REWARDS
    kept = {name: value for name, value in metrics.items() if name not in hidden}
    return report.Row(kept, measured.prompts, measured.replies)


def in_words(name: str, row: report.Row) -> str:
    """The table and the replies, for the terminal."""
    return f"{report.table({name: row})}\n\n{report.replies_text({name: row})}"


def _reference_logps(evaluation: Evaluation) -> Logps | None:
    """The reference's log-probs of the held-out pairs; None if it is the model itself, or reads other tokens."""
    model, reference = evaluation.model, evaluation.reference
    if model is reference or "dpo" not in model.datasets:
        return None
    if not _same_tokens(model, reference):
        print(
            f"rewards are not measured: {reference.config.model.path} (the config's model) reads the held-out pairs as "
            f"other tokens than {model.config.model.path}",
            file=sys.stderr,
        )
        return None
    return HeldOut(reference).row_logps(reference.load_params(), reference.datasets["dpo"].eval)


def _same_tokens(model: Job, reference: Job) -> bool:
    return model.datasets["dpo"].eval.fingerprint() == reference.datasets["dpo"].eval.fingerprint()
