"""Geometry of the report's charts, in the units of their viewBox; templates/charts.html draws them.

Colours and dashes are CSS classes by number (series-0, level-2, ...): a style sheet, not a chart, knows light and dark.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from empathax.evaluation.metrics.levels import LEVELS
from empathax.evaluation.metrics.statistics import RewardMargins
from empathax.evaluation.report.curves import names
from empathax.evaluation.report.record import EvaluationRecord, LevelShares

WIDTH, HEIGHT = 360, 230
LEFT, RIGHT, TOP, BOTTOM = 46, 350, 12, 190  # of the plotting area
MAX_POINTS = 300
NUM_BINS = 24
NUM_STYLES = 6  # of lines


@dataclass(frozen=True)
class Tick:
    """A place on an axis and its number."""

    at: float
    text: str


@dataclass(frozen=True)
class Line:
    """A curve; `points` as SVG writes them, `markers` apart for those that are measured seldom."""

    label: str
    style: int
    split: str
    points: str
    markers: tuple[tuple[float, float], ...]
    first: str
    last: str


@dataclass(frozen=True)
class LineChart:
    """One metric of one stage, for every model that went through it."""

    title: str
    lines: tuple[Line, ...]
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]


@dataclass(frozen=True)
class Bar:
    """A rectangle; `level` is 0 to 3, or None in a histogram."""

    x: float
    y: float
    width: float
    height: float
    level: int | None = None
    share: str = ""


@dataclass(frozen=True)
class Histogram:
    """Reward margins of one model's pairs."""

    label: str
    share_above: str
    num_pairs: int
    bars: tuple[Bar, ...]
    zero: float
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]


@dataclass(frozen=True)
class LevelChart:
    """Shares of levels per quartile, model (first bar of two) beside reference."""

    label: str
    bars: tuple[Bar, ...]
    shares: LevelShares
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]


def line_charts(records: Sequence[EvaluationRecord]) -> list[LineChart]:
    """A chart for each stage and metric that any record has curves of; stages in the order of the records."""
    kinds = {(curve.stage, curve.name): None for record in records for curve in record.curves}  # in their order
    known = names()
    titles = [*known, *sorted({name for _, name in kinds} - set(known))]
    stages = dict.fromkeys(stage for stage, _ in kinds)
    ordered = [(stage, name) for stage in stages for name in titles if (stage, name) in kinds]
    return [_line_chart(records, stage, name) for stage, name in ordered]


def histograms(records: Sequence[EvaluationRecord]) -> list[Histogram]:
    """Margins of all models on one x axis; a model whose margins are all 0 (the reference itself) has none."""
    margins = {record.label: _margins(record) for record in records}
    shown = {label: values for label, values in margins.items() if np.any(values)}
    if not shown:
        return []
    everything = np.concatenate([*shown.values(), [0.0]])
    edges = np.linspace(everything.min(), everything.max() + 1e-9, NUM_BINS + 1)
    return [_histogram(label, values, edges) for label, values in shown.items()]


def level_charts(records: Sequence[EvaluationRecord]) -> list[LevelChart]:
    """A chart for each model whose levels were read."""
    return [_level_chart(record.label, record.level_shares) for record in records if record.level_shares]


def nice_ticks(low: float, high: float, most: int = 5) -> list[float]:
    """About `most` round numbers (1, 2 or 5 times a power of ten apart) from `low` to `high`."""
    span = (high - low) or 1.0
    power = 10.0 ** math.floor(math.log10(span / most))
    step = next(power * times for times in (1, 2, 5, 10, 20) if span / (power * times) <= most)
    return [number * step for number in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def _line_chart(records: Sequence[EvaluationRecord], stage: str, name: str) -> LineChart:
    found: dict[tuple[str, tuple[int, ...], tuple[float, ...]], list[int]] = {}
    for number, record in enumerate(records):
        for curve in record.curves:
            if (curve.stage, curve.name) == (stage, name) and curve.steps:
                found.setdefault((curve.split, curve.steps, curve.values), []).append(number)
    x_low, x_high = _range([step for _, steps, _ in found for step in steps])
    y_low, y_high = _range([value for _, _, values in found for value in values])
    x_scale, y_scale = _scale(x_low, x_high, LEFT, RIGHT), _scale(y_low, y_high, BOTTOM, TOP)
    lines = []
    for (split, steps, values), numbers in found.items():
        kept = np.unique(np.linspace(0, len(steps) - 1, MAX_POINTS).round().astype(int))
        points = [(round(x_scale(steps[i]), 1), round(y_scale(values[i]), 1)) for i in kept]
        lines.append(
            Line(
                label=", ".join(records[number].label for number in numbers),
                style=numbers[0] % NUM_STYLES,
                split=split,
                points=" ".join(f"{x},{y}" for x, y in points),
                markers=tuple(points) if split == "eval" and len(points) <= 40 else (),
                first=f"{values[0]:.3g}",
                last=f"{values[-1]:.3g}",
            )
        )
    return LineChart(f"{stage}: {name}", tuple(lines), _ticks(x_low, x_high, x_scale), _ticks(y_low, y_high, y_scale))


def _margins(record: EvaluationRecord) -> np.ndarray:
    found = [entry.margins for entry in record.per_example.values() if isinstance(entry, RewardMargins)]
    return np.array(found[0] if found else ())


def _histogram(label: str, margins: np.ndarray, edges: np.ndarray) -> Histogram:
    counts, _ = np.histogram(margins, edges)
    x_scale, y_scale = _scale(edges[0], edges[-1], LEFT, RIGHT), _scale(0, counts.max(), BOTTOM, TOP)
    width = (RIGHT - LEFT) / NUM_BINS
    bars = [
        Bar(LEFT + number * width + 0.5, y_scale(count), width - 1, BOTTOM - y_scale(count))
        for number, count in enumerate(counts)
        if count
    ]
    return Histogram(
        label=label,
        share_above=f"{np.mean(margins > 0):.0%}",
        num_pairs=len(margins),
        bars=tuple(bars),
        zero=x_scale(0.0),
        x_ticks=_ticks(edges[0], edges[-1], x_scale),
        y_ticks=tuple(tick for tick in _ticks(0, counts.max(), y_scale) if "." not in tick.text),
    )


def _level_chart(label: str, shares: LevelShares) -> LevelChart:
    y_scale = _scale(0.0, 1.0, BOTTOM, TOP)
    room = (RIGHT - LEFT) / len(shares.model)
    bars = []
    for quartile, pair in enumerate(zip(shares.model, shares.reference, strict=True)):
        for place, row in enumerate(pair):
            x, top = LEFT + quartile * room + 5 + place * (room / 2 - 4), 0.0
            for level, share in enumerate(row):
                top += share
                if share:
                    height = BOTTOM - y_scale(share)
                    bars.append(Bar(x, y_scale(top), room / 2 - 7, height, level, f"{share:.0%}"))
    x_ticks = [Tick(LEFT + (quartile + 0.5) * room, f"quartile {quartile + 1}") for quartile in range(len(LEVELS))]
    return LevelChart(label, tuple(bars), shares, tuple(x_ticks), _ticks(0.0, 1.0, y_scale))


@dataclass(frozen=True)
class _Scale:
    """A number of the data to a coordinate."""

    low: float
    per_unit: float
    start: float

    def __call__(self, value: float) -> float:
        return self.start + (value - self.low) * self.per_unit


def _scale(low: float, high: float, start: float, end: float) -> _Scale:
    return _Scale(low, (end - start) / ((high - low) or 1.0), start)


def _range(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    return (low, high) if low < high else (low - 0.5, high + 0.5)


def _ticks(low: float, high: float, scale: _Scale) -> tuple[Tick, ...]:
    return tuple(Tick(round(scale(value), 1), f"{value:.6g}") for value in nice_ticks(low, high))
