"""From scored replies to a record: the one place where an EvaluationRecord is put together."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from empathax.evaluation.metrics.statistics import Statistic
from empathax.evaluation.reply_metrics import ReplyScores
from empathax.evaluation.reply_set import Turn
from empathax.evaluation.report.record import Curve, EvaluatedData, EvaluationRecord, LevelShares, Reply, Scalar


def make_record(
    label: str,
    model: str,
    turns: Sequence[Turn],
    replies: Sequence[str],
    scores: ReplyScores,
    *,
    path: str,
    split: str,
    seed: int = 0,
    decoding: Mapping[str, Scalar] | None = None,
    metrics: Mapping[str, float] | None = None,
    per_example: Mapping[str, Statistic] | None = None,
    curves: tuple[Curve, ...] = (),
) -> EvaluationRecord:
    """One model's row of a table, from the scores of its replies and whatever else was measured of it.

    `path` and `split` name the held-out data; the command is the one that is running.
    """
    statistics = {**(per_example or {}), **scores.per_example}
    pairs = statistics.get("logp_chosen")
    return EvaluationRecord(
        label=label,
        model=model,
        data=EvaluatedData(
            path=path,
            split=split,
            num_turns=len(turns),
            num_dialogues=len({turn.dialogue for turn in turns}),
            num_pairs=len(pairs.dialogues) if pairs else 0,
        ),
        seed=seed,
        command=_command(),
        metrics={**(metrics or {}), **scores.metrics},
        decoding=decoding or {},
        per_example=statistics,
        level_shares=LevelShares.of(scores.gap) if scores.gap else None,
        replies=_replies(turns, replies, scores),
        curves=curves,
    )


def slug(label: str) -> str:
    """A row's label as a directory's name: "+SFT+DPO" is sft_dpo."""
    return re.sub(r"[^a-z0-9]+", "_", label.lower()).strip("_") or "model"


def _command() -> str:
    """The command line, as a user would write it again."""
    return shlex.join(["python", "-m", f"empathax.{Path(sys.argv[0]).stem}", *sys.argv[1:]])


def _replies(turns: Sequence[Turn], replies: Sequence[str], scores: ReplyScores) -> tuple[Reply, ...]:
    unknown = (None,) * len(turns)
    levels, reference_levels = (gap.levels, gap.reference_levels) if (gap := scores.gap) else (unknown, unknown)
    return tuple(
        Reply(turn.dialogue, turn.prompt, turn.reference, reply, level, reference_level)
        for turn, reply, level, reference_level in zip(turns, replies, levels, reference_levels, strict=True)
    )
