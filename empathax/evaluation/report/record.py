"""One model's evaluation as a record: what `evaluate` writes to evaluation.json and `report` makes tables of.

docs/report.md specifies the file.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from empathax import json_text
from empathax.data.records import Message
from empathax.errors import DataError, raise_all
from empathax.evaluation import output
from empathax.evaluation.metrics.levels import NUM_LEVELS
from empathax.evaluation.metrics.statistics import KINDS, ReplyLevels, Statistic
from empathax.evaluation.typed_json import decode

FILE = "evaluation.json"
FORMAT = 1
MAX_BYTES = 1 << 30  # of a record: statistics and replies of all held-out turns
Scalar = str | bool | int | float
Rows = tuple[tuple[float, ...], ...]
AGREEMENT = 1e-3  # relative: float32 sums on a device against float64 here


@dataclass(frozen=True)
class EvaluatedData:
    """The held-out data. Counts are of what was evaluated: 0 where there was nothing of the kind."""

    path: str
    split: str
    num_turns: int
    num_dialogues: int
    num_pairs: int = 0


@dataclass(frozen=True)
class Reply:
    """A generated reply beside the reference; levels are 0 to 3, None where none was read."""

    dialogue: str
    prompt: tuple[Message, ...]
    reference: str
    reply: str
    level: int | None = None
    reference_level: int | None = None


@dataclass(frozen=True)
class Curve:
    """One metric of one stage of training; `split` is train or eval."""

    stage: str
    split: str
    name: str
    steps: tuple[int, ...]
    values: tuple[float, ...]


@dataclass(frozen=True)
class LevelShares:
    """Shares [quartile, level] of the model's and of the reference replies; a quartile sums to 1, or to 0 if empty."""

    model: Rows
    reference: Rows

    @classmethod
    def of(cls, levels: ReplyLevels) -> LevelShares:
        """The shares of replies whose levels are known one by one."""
        model_QL, reference_QL = levels.shares_in_quartiles()
        return cls(*(tuple(map(tuple, shares_QL.tolist())) for shares_QL in (model_QL, reference_QL)))


@dataclass(frozen=True)
class EvaluationRecord:
    """An evaluation of one model. Raises a DataError that lists every contradiction between its parts.

    Attributes:
        label: the model's row in a table: "base", "+SFT", "+DPO", "+SFT+DPO" or any other name.
        model: where the model came from, as the user wrote it.
        command: the command line that made the record.
        decoding: settings of generation by name.
        metrics: by the names of docs/metrics.md; what was not measured is left out.
        per_example: statistics from which metrics can be computed again on resampled dialogues (docs/report.md).
        replies: all of them or a sample; the same prompts for every model of a table.
        curves: of the training run that made the model; none for a model that was not trained here.
    """

    label: str
    model: str
    data: EvaluatedData
    seed: int
    command: str
    metrics: Mapping[str, float]
    decoding: Mapping[str, Scalar] = field(default_factory=dict)
    per_example: Mapping[str, Statistic] = field(default_factory=dict)
    level_shares: LevelShares | None = None
    replies: tuple[Reply, ...] = ()
    curves: tuple[Curve, ...] = ()

    def __post_init__(self) -> None:
        problems = [] if self.label.strip() else ["label is empty: expected the model's name in the table"]
        problems += [
            f"metrics.{name} is {value}: leave it out"
            for name, value in self.metrics.items()
            if not math.isfinite(value)
        ]
        for name, statistic in self.per_example.items():
            wrong = statistic.problems() or self._disagreements(name, statistic)
            problems += [f"per_example.{name} {problem}" for problem in wrong]
        if self.level_shares:
            problems += _share_problems(self.level_shares)
        problems += [
            f"curves[{number}] ({curve.stage}, {curve.split}, {curve.name}) has {len(curve.steps)} steps and "
            f"{len(curve.values)} values"
            for number, curve in enumerate(self.curves)
            if len(curve.steps) != len(curve.values)
        ]
        for number, reply in enumerate(self.replies):
            outside = [level for level in (reply.level, reply.reference_level) if level not in (None, 0, 1, 2, 3)]
            if outside:
                problems.append(f"replies[{number}] has level {outside[0]}: expected 0 to {NUM_LEVELS - 1}, or none")
        raise_all(DataError, f"the evaluation of {self.label!r} contradicts itself", problems)

    def _disagreements(self, name: str, statistic: Statistic) -> list[str]:
        """A metric and its statistic must be one measurement: otherwise the interval belongs to something else."""
        order = statistic.all_dialogues()
        found = statistic.estimates(name, order, np.ones((1, len(order))))
        return [
            f"gives {metric} = {float(value_R[0]):.6g}, but metrics.{metric} is {self.metrics[metric]:.6g}: expected "
            "the same number from the same replies"
            for metric, value_R in found.items()
            if metric in self.metrics
            and not math.isclose(self.metrics[metric], value_R[0], rel_tol=AGREEMENT, abs_tol=1e-6)
        ]


def write_record(path: Path, record: EvaluationRecord) -> None:
    """Writes the file whole or not at all, one top-level entry a line. Raises a ConfigError if the disk refuses."""
    value = {"format": FORMAT, **asdict(record)}
    value["per_example"] = {
        name: {"kind": statistic.kind, **asdict(statistic)} for name, statistic in record.per_example.items()
    }
    lines = [f"{json.dumps(key)}: {json_text.dumps(entry, ensure_ascii=False)}" for key, entry in value.items()]
    text = "{\n" + ",\n".join(lines) + "\n}\n"
    # half a surrogate pair, which a model may emit, has no UTF-8 form but a JSON escape
    output.write_text(path, text.encode("utf-8", "backslashreplace").decode("utf-8"))


def read_record(path: Path) -> EvaluationRecord:
    """Reads `path`. Raises a DataError that names the entry, what was found there and what was expected."""
    try:
        value = json_text.read(path, DataError, max_bytes=MAX_BYTES, half_pairs=True)
    except FileNotFoundError:
        raise DataError(f"{path} cannot be read: there is no such file; expected an evaluation's record") from None
    if not isinstance(value, dict) or "format" not in value:
        raise DataError(f"{path} has no format number: expected an evaluation's record, see docs/report.md")
    if value.pop("format") != FORMAT:
        raise DataError(f"{path} is not of format {FORMAT}, the one this version reads: evaluate the model again")
    with json_text.content_of(path, DataError):
        try:
            return decode(EvaluationRecord, value, {Statistic: KINDS}, remedy="evaluate the model again")
        except DataError as error:
            raise DataError(f"{path}: {error}") from error


def _share_problems(levels: LevelShares) -> list[str]:
    problems = []
    for name, rows in (("model", levels.model), ("reference", levels.reference)):
        if len(rows) != NUM_LEVELS or any(len(row) != NUM_LEVELS for row in rows):
            problems.append(f"level_shares.{name} is not 4 quartiles of 4 levels")
        elif bad := [row for row in rows if min(row) < 0 or min(abs(sum(row) - 1), abs(sum(row))) > AGREEMENT]:
            problems.append(f"level_shares.{name} has a quartile {list(bad[0])}: expected shares that sum to 1 (or 0)")
    return problems
