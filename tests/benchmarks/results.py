"""What the benchmarks measured: rows of JSON, and a plain table of them."""

from __future__ import annotations

import dataclasses
import datetime
import importlib.metadata
import json
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

OURS = "empathax"
PACKAGES = ("jax", "jaxlib", "torch", "transformers", "trl")


@dataclass(frozen=True)
class Result:
    """One number, in `unit`: the median of `samples`, or for a rate all the work of the samples over all their time.

    `against` names the framework that took turns with this one, `run` when and with what (see `stamped`).
    """

    work: str
    framework: str
    metric: str
    value: float
    unit: str
    samples: tuple[float, ...]
    against: str = ""
    run: str = ""  # day and versions


def measured(work: str, framework: str, metric: str, unit: str, samples: Sequence[float], against: str = "") -> Result:
    """The result of one or several samples."""
    return Result(work, framework, metric, statistics.median(samples), unit, tuple(samples), against)


def stamped(results: Iterable[Result]) -> list[Result]:
    """The results with today's date and the versions of what they may have used."""
    versions = (f"{name} {version}" for name in PACKAGES if (version := _version(name)))
    run = ", ".join((datetime.date.today().isoformat(), *versions))
    return [dataclasses.replace(result, run=run) for result in results]


def read(path: Path) -> list[Result]:
    """The rows of a results file; none if it does not exist."""
    if not path.exists():
        return []
    return [Result(**{**row, "samples": tuple(row["samples"])}) for row in json.loads(path.read_text())]


def write(path: Path, results: Iterable[Result]) -> None:
    """Writes a results file, one result a line."""
    lines = [json.dumps(dataclasses.asdict(result)) for result in results]
    path.write_text("[\n" + ",\n".join(lines) + "\n]\n", encoding="utf-8")


def merged(old: Iterable[Result], new: Sequence[Result]) -> list[Result]:
    """`new`, and of `old` the works that were not measured again."""
    works = {result.work for result in new}
    return [*(result for result in old if result.work not in works), *new]


def as_text(results: Sequence[Result]) -> str:
    """A table with aligned columns."""
    head = ("work", "framework", "metric", "value", "unit", "samples", "in turns with")
    rows = [head, *map(_cells, results)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _cells(result: Result) -> tuple[str, ...]:
    samples = " ".join(f"{sample:.4g}" for sample in result.samples[:8]) if len(result.samples) > 1 else ""
    more = " ..." if len(result.samples) > 8 else ""
    value = f"{result.value:.4g}"
    return result.work, result.framework, result.metric, value, result.unit, samples + more, result.against
