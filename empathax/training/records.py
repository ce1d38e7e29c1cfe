"""What held-out data say of a model, as the parts of a record: metrics, the statistics behind them, curves."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from empathax.evaluation.level_plot import level_plot
from empathax.evaluation.reply_metrics import ReplyScorer
from empathax.evaluation.report.curves import read_curves
from empathax.evaluation.report.record import Curve
from empathax.evaluation.report.statistics import LogLikelihoods, MeanOfValues, RatioOfSums, RewardMargins, Statistic
from empathax.evaluation.validation import LevelCounts, count_levels
from empathax.training.held_out import HeldOut
from empathax.training.job import Job
from empathax.training.report import Measured
from empathax.training.tracking import METRICS_FILE

GENERATION = (
    "max_new_tokens", "temperature", "top_k", "top_p", "min_p", "repetition_penalty", "num_samples",
)  # fmt: skip


def model_statistics(
    job: Job, held_out: HeldOut, measured: Measured, reference: Measured | None
) -> dict[str, Statistic]:
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
        owners = tuple(example.dialogue_id for example in job.datasets["dpo"].eval_examples)
        logps_2P = held_out.by_pair(measured.pair_logps)
        sides = ("chosen", "rejected")
        found |= {f"logp_{side}": MeanOfValues.of(owners, row_P) for side, row_P in zip(sides, logps_2P, strict=True)}
        if reference and reference.pair_logps:
            rewards_2P = job.config.dpo.beta * (logps_2P - held_out.by_pair(reference.pair_logps))
            found |= {
                f"reward_{side}": MeanOfValues.of(owners, row_P) for side, row_P in zip(sides, rewards_2P, strict=True)
            }
            found["reward_margin"] = RewardMargins(owners, tuple((rewards_2P[0] - rewards_2P[1]).tolist()))
    return found


def model_metrics(held_out: HeldOut, measured: Measured, reference: Measured | None) -> dict[str, float]:
    """The language-model and preference metrics; rewards are against `reference`, left out without one."""
    found = held_out.reply_metrics(measured)
    if measured.pair_logps:
        against = reference.pair_logps if reference and reference.pair_logps else None
        pairs = held_out.pair_metrics(measured.pair_logps, against or measured.pair_logps)
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
    if not scores.levels or find_spec("matplotlib") is None:
        return dict(scores.metrics), None
    quartiles = [turn.quartile or 0 for turn in turns]
    named = [(name, _counts(scores.levels, quartiles)), ("reference", _counts(scores.reference_levels, quartiles))]
    return dict(scores.metrics), level_plot(named, scorer.normalise)


def _counts(levels: Sequence[int], quartiles: Sequence[int]) -> LevelCounts:
    return count_levels(jnp.array(levels), jnp.array(quartiles))
