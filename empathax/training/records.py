"""What held-out data say of a model, as the parts of a record: metrics, the statistics behind them, curves."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from empathax.evaluation.metrics.statistics import LogLikelihoods, MeanOfValues, RatioOfSums, RewardMargins, Statistic
from empathax.evaluation.reply_metrics import ReplyScorer
from empathax.evaluation.report.curves import read_curves
from empathax.evaluation.report.level_plot import level_plot
from empathax.evaluation.report.record import Curve
from empathax.training.held_out import HeldOut
from empathax.training.held_out_preferences import by_pair, by_side, has_pairs
from empathax.training.job import Job
from empathax.training.report import Measured
from empathax.training.tracking import METRICS_FILE

GENERATION = (
    "max_new_tokens", "temperature", "top_k", "top_p", "min_p", "repetition_penalty", "num_samples",
)  # fmt: skip


def model_statistics(job: Job, measured: Measured, reference: Measured | None) -> dict[str, Statistic]:
    """Per-reply and per-pair statistics of the language-model and preference metrics.

    Rewards are against `reference`; they are left out without one.
    """
    found: dict[str, Statistic] = {}
    if measured.reply_sums:
        examples = job.datasets["sft"].eval_examples
        owners = tuple(example.dialogue_id for example in examples)
        ids = [example.sequence_ids[0] for example in examples]
        sums = {name: np.asarray(values)[ids] for name, values in measured.reply_sums.items()}
        tokens = tuple(sums["tokens"].tolist())
        found["perplexity"] = LogLikelihoods(owners, tuple(sums["nll"].tolist()), tuple(map(int, tokens)))
        found["token_accuracy"] = RatioOfSums(owners, tuple(sums["correct"].tolist()), tokens)
        found["entropy"] = RatioOfSums(owners, tuple(sums["entropy"].tolist()), tokens)
    if measured.pair_logps:
        found |= _preference_statistics(job, measured.pair_logps, reference.pair_logps if reference else None)
    return found


def _preference_statistics(job: Job, logps: Sequence[float], ref_logps: Sequence[float] | None) -> dict[str, Statistic]:
    """Of held-out pairs or single replies; a margin belongs to a pair."""
    dataset = job.datasets["dpo"]
    kinds = {"logp": np.asarray(logps, np.float32)}
    if ref_logps:
        kinds["reward"] = job.config.reward_beta * (kinds["logp"] - np.asarray(ref_logps, np.float32))
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


def model_metrics(held_out: HeldOut, measured: Measured, reference: Measured | None) -> dict[str, float]:
    """The language-model and preference metrics; rewards are against `reference`, left out without one."""
    found = held_out.reply_metrics(measured)
    if measured.pair_logps:
        against = reference.pair_logps if reference and reference.pair_logps else None
        pairs = held_out.reward_metrics(measured.pair_logps, against or measured.pair_logps)
        found |= pairs if against else {name: value for name, value in pairs.items() if name.startswith("logp_")}
    return {name: value for name, value in found.items() if name != "loss"}  # of replies or pairs: others say which


def data_of(job: Job, scorer: ReplyScorer) -> dict[str, Any]:
    """What a record says of a job's held-out data, and of how replies to them were generated and scored."""
    options = dataclasses.asdict(job.config.eval)
    return {
        "path": job.config.data.eval_path or job.config.data.path,
        "split": job.config.data.eval_split,
        "seed": job.config.seed,
        "decoding": {
            **{name: options[name] for name in GENERATION},
            "stop_tokens": " ".join(options["stop_tokens"]),
            **scorer.facts(),
        },
    }


def curves_of(workdir: Path, stages: Sequence[str]) -> tuple[Curve, ...]:
    """The learning curves of a run's stages so far."""
    path = workdir / METRICS_FILE
    return tuple(curve for curve in read_curves(path) if curve.stage in stages) if path.exists() else ()


def in_loop_scores(
    held_out: HeldOut, scorer: ReplyScorer, answers: Sequence[str], name: str
) -> tuple[dict[str, float], bytes | None]:
    """Metrics of the answers to the in-loop turns, and the picture of their levels (None without a classifier, or
    without matplotlib)."""
    turns = held_out.in_loop_turns
    if not turns:
        return {}, None
    scores = scorer.score(turns, answers)
    if scores.gap is None or find_spec("matplotlib") is None:
        return dict(scores.metrics), None
    model_QL, reference_QL = scores.gap.counts()
    return dict(scores.metrics), level_plot([(name, model_QL), ("reference", reference_QL)], scorer.normalise)
