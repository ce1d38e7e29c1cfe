"""Learning curves from a training run's metrics.jsonl."""

from __future__ import annotations

import math
import sys
from pathlib import Path

from empathax import json_text
from empathax.config.arguments import MAX_COUNT
from empathax.errors import DataError
from empathax.evaluation.report.record import Curve
from empathax.evaluation.report.table import table_1
from empathax.shown import quoted, shown

MAX_BYTES = 1 << 30  # of a run's metrics.jsonl

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
        lines = json_text.read_bytes(metrics_file, DataError, MAX_BYTES).splitlines()
    except FileNotFoundError:
        raise DataError(
            f"{metrics_file} cannot be read: there is no such file; expected a run's metrics.jsonl"
        ) from None
    known = names()
    points: dict[tuple[str, str, str], list[tuple[int, float]]] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            record = json_text.parse(line, non_finite=True)
            key, step = (str(record["stage"]), str(record["split"])), record["step"]
            if type(step) is not int or not 0 <= step <= MAX_COUNT:
                raise ValueError(f"step = {quoted(step)}")
        except (ValueError, KeyError, TypeError) as error:
            if number == len(lines):
                print(f"{metrics_file}:{number}: the last line is not whole and was left out", file=sys.stderr)
                break
            raise DataError(
                f"{metrics_file}:{number}: expected a record with step, stage and split ({shown(str(error))}); a run "
                "that is continued mends its file"
            ) from error
        for name in known:
            if isinstance(value := record.get(name), (int, float)) and math.isfinite(value):
                points.setdefault((*key, name), []).append((step, float(value)))
    return tuple(Curve(*key, *(tuple(column) for column in zip(*pairs, strict=True))) for key, pairs in points.items())
