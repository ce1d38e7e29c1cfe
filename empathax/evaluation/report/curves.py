"""Learning curves from a training run's metrics.jsonl."""

from __future__ import annotations

import json
import math
from pathlib import Path

from empathax.errors import DataError
from empathax.evaluation.report.record import Curve
from empathax.evaluation.report.table import table_1

_LOSS_AND_REWARDS = (
    "loss", "perplexity", "token_accuracy", "entropy", "reward_accuracy", "reward_margin",
    "reward_chosen", "reward_rejected", "kl", "logp_chosen", "logp_rejected",
)  # fmt: skip


def names() -> tuple[str, ...]:
    """The metrics that say how a model learned; the rest of a line is about speed, memory and the optimizer."""
    return (*_LOSS_AND_REWARDS, *(column.metric for column in table_1()))


def read_curves(metrics_file: Path) -> tuple[Curve, ...]:
    """The curves of every stage and split, in the file's order; points that are not finite are left out.

    Raises a DataError for a file that is missing, or a line that is no record (but the last, which a run that was
    killed may have left unfinished).
    """
    try:
        lines = metrics_file.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise DataError(f"{metrics_file} cannot be read: {error.strerror}; expected a run's metrics.jsonl") from error
    known = names()
    points: dict[tuple[str, str, str], list[tuple[int, float]]] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
            key, step = (str(record["stage"]), str(record["split"])), int(record["step"])
        except (ValueError, KeyError, TypeError) as error:
            if number == len(lines):
                break
            raise DataError(f"{metrics_file}:{number}: expected a record with step, stage and split") from error
        for name in known:
            if isinstance(value := record.get(name), (int, float)) and math.isfinite(value):
                points.setdefault((*key, name), []).append((step, float(value)))
    return tuple(Curve(*key, *(tuple(column) for column in zip(*pairs, strict=True))) for key, pairs in points.items())
