"""The comparison as numbers: its columns, and each row's values with intervals, the best and what is near it.

`COLUMNS` is the registry. A metric that is entered there has its heading, digits and direction in every table; any
other one stands under `OTHER` by its own name. Definitions of the metrics: docs/metrics.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from empathax.evaluation.metrics.bootstrap import NUM_RESAMPLES, Interval, Resampled, difference, resample
from empathax.evaluation.metrics.levels import LEVELS
from empathax.evaluation.report.record import EvaluationRecord

RECONSTRUCTION = (
    "validation_gap is a reconstruction: the DBT paper does not define its metric; this is the definition in a later "
    "paper of its first author (EVAEval, Findings of ACL 2026), with a level classifier of our own. Compare orders of "
    "rows with the paper, not magnitudes."
)
ARROWS = {"higher": "↑", "lower": "↓", "": ""}

# The tables, in their order.
TABLE_1 = "Table 1"
OVERLAP = "Overlap with the reference"
DIVERSITY = "Diversity"
GAP_BY_LEVEL = "validation_gap of each level (reconstruction)"
JUDGED = "An LLM's judgement"
MODEL = "Language model and preferences"
OTHER = "Other measurements"


@dataclass(frozen=True)
class Column:
    """One metric in the table `section`; `better` is "higher", "lower", or "" where neither is."""

    metric: str
    section: str
    heading: str
    digits: int | None = 2  # None: four significant ones
    better: str = ""

    @property
    def arrow(self) -> str:
        return ARROWS[self.better]

    def number(self, value: float) -> str:
        return f"{value:.4g}" if self.digits is None else f"{value:.{self.digits}f}"

    def is_better(self, first: float, second: float) -> bool:
        """Whether `first` is the better value; False where neither way is better."""
        return first > second if self.better == "higher" else self.better == "lower" and first < second


COLUMNS = {
    column.metric: column
    for column in (
        Column("bleu4_sentence", TABLE_1, "B-4", 2, "higher"),
        Column("rouge_l", TABLE_1, "R-L", 2, "higher"),
        Column("distinct_2", TABLE_1, "Dist", 2, "higher"),
        Column("validation_gap", TABLE_1, "DBT metric, reconstructed", 4, "lower"),
        Column("bleu4_corpus", OVERLAP, "BLEU-4, corpus", 2, "higher"),
        Column("bleu4_sacre", OVERLAP, "BLEU-4, sacrebleu", 2, "higher"),
        Column("rouge_l_coco", OVERLAP, "ROUGE-L, beta 1.2", 2, "higher"),
        Column("semantic_similarity", OVERLAP, "sentence cosine", 3, "higher"),
        Column("bertscore_f1", OVERLAP, "BERTScore F1", 3, "higher"),
        Column("distinct_1", DIVERSITY, "Distinct-1", 2, "higher"),
        Column("distinct_3", DIVERSITY, "Distinct-3", 2, "higher"),
        Column("distinct_1_reply", DIVERSITY, "Distinct-1 a reply", 2, "higher"),
        Column("distinct_2_reply", DIVERSITY, "Distinct-2 a reply", 2, "higher"),
        Column("distinct_3_reply", DIVERSITY, "Distinct-3 a reply", 2, "higher"),
        *(
            Column(f"validation_gap_{level}", GAP_BY_LEVEL, f"{number} {level}", 4, "lower")
            for number, level in enumerate(LEVELS, start=1)
        ),
        Column("empathy", JUDGED, "empathy, 1 to 5", 2, "higher"),
        Column("politeness", JUDGED, "politeness, 1 to 5", 2, "higher"),
        Column("factuality", JUDGED, "entailed by the reference, %", 1, "higher"),
        Column("win_rate", JUDGED, "wins against the first row, %", 1, "higher"),
        Column("perplexity", MODEL, "perplexity", 2, "lower"),
        Column("token_accuracy", MODEL, "token accuracy", 3, "higher"),
        Column("entropy", MODEL, "entropy", 3),
        Column("reward_accuracy", MODEL, "reward accuracy", 3, "higher"),
        Column("reward_margin", MODEL, "reward margin", 3, "higher"),
        Column("reward_chosen", MODEL, "reward chosen", 3),
        Column("reward_rejected", MODEL, "reward rejected", 3),
        Column("logp_chosen", MODEL, "log-prob chosen", 1),
        Column("logp_rejected", MODEL, "log-prob rejected", 1),
    )
}


def table_1() -> tuple[Column, ...]:
    """The columns of Table 1, whether they were measured or not."""
    return tuple(column for column in COLUMNS.values() if column.section == TABLE_1)


def better_metrics() -> dict[str, str]:
    """The metrics of which one way is better: "higher" or "lower"."""
    found = {metric: column.better for metric, column in COLUMNS.items() if column.better}
    return found | {"loss": "lower"}  # of a stage's evaluations, never of a table


def better_way(metric: str) -> str:
    """ "higher" or "lower"; "" where neither is better, or the metric is unknown."""
    return better_metrics().get(metric, "")


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
        """Table 1, then a section for each table of other metrics that any row has."""
        measured = {metric for record in self.records for metric in record.metrics}
        columns = [column for column in COLUMNS.values() if column.section == TABLE_1 or column.metric in measured]
        others = [Column(name, OTHER, name.replace("_", " "), None) for name in sorted(measured - COLUMNS.keys())]
        by_section: dict[str, list[Column]] = {}
        for column in (*columns, *others):
            by_section.setdefault(column.section, []).append(column)
        return [self._section(heading, tuple(found)) for heading, found in by_section.items()]

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
