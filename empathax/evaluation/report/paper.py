"""The DBT paper's own Table 1 (Son and So, "Improving Empathetic Response Generation in LLMs Using DPO"), ESConv.

And where the order of a report's rows is the paper's, and where it is not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

from empathax.errors import ConfigError
from empathax.evaluation.metrics.bootstrap import Interval
from empathax.evaluation.report.table import Column, Results, table_1

CITATION = "Son and So, Improving Empathetic Response Generation in LLMs Using DPO, Table 1"
ROWS = ("base", "+SFT", "+DPO", "+SFT+DPO")
# The metrics that the paper prints, in its order, and what it calls them. Table 1 may have other columns too.
HEADINGS = {"bleu4_sentence": "B-4", "rouge_l": "R-L", "distinct_2": "Dist", "validation_gap": "DBT metric"}


@dataclass(frozen=True)
class PaperModel:
    """One block of the paper's table: the figures of each row by our metrics' names."""

    name: str
    figures: Mapping[str, Mapping[str, float]]

    def values(self, metric: str) -> dict[str, float]:
        """Row label -> the paper's figure for what our `metric` corresponds to; {} where the paper prints none."""
        return {label: row[metric] for label, row in self.figures.items() if metric in row}


def _block(name: str, *rows: tuple[float, ...]) -> PaperModel:
    return PaperModel(
        name, {label: dict(zip(HEADINGS, row, strict=True)) for label, row in zip(ROWS, rows, strict=True)}
    )


PAPER = {
    "llama8b": _block(
        "Llama-3-8B",
        (0.11, 10.78, 13.02, 0.2753),
        (0.29, 13.40, 33.40, 0.0255),
        (0.07, 10.55, 12.85, 0.2087),
        (0.38, 13.62, 33.70, 0.0205),
    ),
    "mistral7b": _block(
        "Mistral-7B",
        (0.05, 8.58, 7.45, 0.2835),
        (0.11, 14.30, 33.40, 0.0672),
        (0.06, 8.10, 6.75, 0.2735),
        (0.12, 14.25, 33.65, 0.0508),
    ),
    "gemma7b": _block(
        "Gemma-7B",
        (0.20, 2.98, 3.05, 0.1885),
        (0.21, 2.85, 2.90, 0.2002),
        (0.34, 5.75, 12.35, 0.1304),
        (0.40, 5.85, 12.80, 0.0175),
    ),
}


def paper_models(names: Sequence[str]) -> list[PaperModel]:
    """The blocks of these names; all of them for no name. Raises a ConfigError for an unknown one."""
    if unknown := [name for name in names if name not in PAPER]:
        raise ConfigError(f"--paper={unknown[0]} is not in the paper's table: expected one of {', '.join(PAPER)}")
    return [PAPER[name] for name in names or PAPER]


def paper_columns() -> list[Column]:
    """The columns of Table 1 that the paper prints too."""
    return [column for column in table_1() if column.metric in HEADINGS]


@dataclass(frozen=True)
class Disagreement:
    """Here `better` is ahead of `worse` (or level with it) by `lead`; in the paper it is the other way round."""

    better: str
    worse: str
    lead: float
    interval: Interval | None

    @property
    def is_clear(self) -> bool:
        """Whether the 95 % interval of the difference leaves out 0."""
        return self.interval is not None and not self.interval.low <= 0.0 <= self.interval.high

    def sentence(self, column: Column) -> str:
        if self.lead == 0.0:
            return f"{self.better} and {self.worse} are level here, but not in the paper."
        if self.interval is None:
            certainty = "no interval"
        else:
            low, high = (column.number(end) for end in self.interval)
            certainty = f"95% interval {low} to {high}, {'clear' if self.is_clear else 'not clear'}"
        return (
            f"{self.better} is better than {self.worse} here, by {column.number(self.lead)} ({certainty}); "
            f"in the paper it is worse."
        )


@dataclass(frozen=True)
class Ordering:
    """One column against one model of the paper; `ours` and `papers` are labels from best to worst."""

    column: Column
    paper_name: str
    ours: tuple[str, ...]
    papers: tuple[str, ...]
    num_pairs: int
    disagreements: tuple[Disagreement, ...]

    def sentences(self) -> list[str]:
        """What to say of it in words."""
        agreed = self.num_pairs - len(self.disagreements)
        if not agreed and not any(disagreement.lead for disagreement in self.disagreements):
            return [f"all rows are level here; best first in the paper: {', '.join(self.papers)}."]
        if self.ours == self.papers and not self.disagreements:
            first = f"the order is the paper's, best first: {', '.join(self.ours)}."
        else:
            first = (
                f"{agreed} of {self.num_pairs} pairs of rows are in the paper's order. Best first here: "
                f"{', '.join(self.ours)}; in the paper: {', '.join(self.papers)}."
            )
        return [first, *(disagreement.sentence(self.column) for disagreement in self.disagreements)]


def orderings(results: Results, papers: Sequence[PaperModel]) -> list[Ordering]:
    """Every column that Table 1 and the paper share, against every model of the paper; two rows must be in both."""
    found = [_ordering(results, paper, column) for paper in papers for column in paper_columns()]
    return [ordering for ordering in found if ordering.num_pairs]


def _ordering(results: Results, paper: PaperModel, column: Column) -> Ordering:
    theirs, ours = paper.values(column.metric), results.values(column.metric)
    labels = [label for label in theirs if label in ours]
    pairs = list(combinations(labels, 2))
    disagreements = [
        _disagreement(results, column, *(pair if column.is_better(theirs[pair[1]], theirs[pair[0]]) else pair[::-1]))
        for pair in pairs
        if _sign(column, ours, *pair) != _sign(column, theirs, *pair)
    ]
    return Ordering(
        column, paper.name, _ranked(column, ours, labels), _ranked(column, theirs, labels),
        len(pairs), tuple(disagreements),
    )  # fmt: skip


def _disagreement(results: Results, column: Column, better: str, worse: str) -> Disagreement:
    values = results.values(column.metric)
    lead = abs(values[better] - values[worse])
    interval = results.difference(better, worse, column.metric)
    if interval and column.better == "lower":  # a lead is positive, whichever way is better
        interval = Interval(-interval.high, -interval.low)
    return Disagreement(better, worse, lead, interval)


def _sign(column: Column, values: Mapping[str, float], first: str, second: str) -> int:
    return column.is_better(values[first], values[second]) - column.is_better(values[second], values[first])


def _ranked(column: Column, values: Mapping[str, float], labels: Sequence[str]) -> tuple[str, ...]:
    return tuple(sorted(labels, key=lambda label: values[label], reverse=column.better == "higher"))
