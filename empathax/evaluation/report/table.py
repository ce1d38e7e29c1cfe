"""The numbers of a report: values with intervals, the best of a column, and what is not clearly behind it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from empathax.evaluation.report.bootstrap import NUM_RESAMPLES, Interval, Resampled, difference, resample
from empathax.evaluation.report.columns import TABLE_1, Column, groups_of
from empathax.evaluation.report.record import EvaluationRecord


@dataclass(frozen=True)
class Cell:
    """`is_near`: not the best, but the 95 % interval of the difference in pairs from the best holds 0."""

    value: float
    interval: Interval | None = None
    is_best: bool = False
    is_near: bool = False


@dataclass(frozen=True)
class Section:
    """One table: the cell of each row (by label) and metric; None is "not measured"."""

    heading: str
    columns: tuple[Column, ...]
    cells: Mapping[str, Mapping[str, Cell | None]]


class Results:
    """The records of a report, resampled once: rows in order, the sections of its tables, differences of rows."""

    def __init__(self, records: Sequence[EvaluationRecord], seed: int = 0, num_resamples: int = NUM_RESAMPLES) -> None:
        self.records, self.seed, self.num_resamples = tuple(records), seed, num_resamples
        self._resampled = {
            record.label: resample(record.per_example, record.metrics, seed, num_resamples) for record in records
        }

    @property
    def labels(self) -> tuple[str, ...]:
        return tuple(record.label for record in self.records)

    def sections(self) -> list[Section]:
        """Table 1, then a section for each group of other metrics that any row has."""
        measured = {metric for record in self.records for metric in record.metrics}
        return [
            self._section("Table 1", TABLE_1),
            *(self._section(heading, columns) for heading, columns in groups_of(measured).items()),
        ]

    def values(self, metric: str) -> dict[str, float]:
        """Row label -> value, of the rows that have it."""
        return {record.label: record.metrics[metric] for record in self.records if metric in record.metrics}

    def resampled(self, label: str, metric: str) -> Resampled | None:
        """None for a metric without per-example statistics."""
        return self._resampled[label].get(metric)

    def difference(self, first: str, second: str, metric: str) -> Interval | None:
        """The interval of row `first` less row `second`; None where it cannot be known."""
        one, other = self.resampled(first, metric), self.resampled(second, metric)
        return difference(one, other) if one and other else None

    def _section(self, heading: str, columns: tuple[Column, ...]) -> Section:
        by_metric = {column.metric: self._cells(column) for column in columns}
        cells = {
            label: {column.metric: by_metric[column.metric].get(label) for column in columns} for label in self.labels
        }
        return Section(heading, columns, cells)

    def _cells(self, column: Column) -> dict[str, Cell]:
        values = self.values(column.metric)
        best = _best(column, values)
        return {label: self._cell(column, label, value, best) for label, value in values.items()}

    def _cell(self, column: Column, label: str, value: float, best: Sequence[str]) -> Cell:
        resampled = self.resampled(label, column.metric)
        is_best = label in best
        apart = self.difference(label, best[0], column.metric) if best and not is_best else None
        is_near = apart is not None and apart.low <= 0.0 <= apart.high
        return Cell(value, resampled.interval() if resampled else None, is_best, is_near)


def _best(column: Column, values: Mapping[str, float]) -> list[str]:
    """The labels with the best value; none if no way is better or all rows are alike, as far as they are shown."""
    if not column.better or len(set(map(column.number, values.values()))) < 2:
        return []
    best = (max if column.better == "higher" else min)(values.values())
    return [label for label, value in values.items() if value == best]
