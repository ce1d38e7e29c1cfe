"""report.html: one self-contained page that loads nothing. Whatever a model or a user wrote is escaped."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jinja2
import numpy as np
from markupsafe import Markup

from empathax.data.records import Message
from empathax.evaluation.metrics.levels import LEVELS
from empathax.evaluation.report import charts
from empathax.evaluation.report.paper import CITATION, HEADINGS, paper_columns
from empathax.evaluation.report.record import EvaluationRecord, Reply
from empathax.evaluation.report.table import RECONSTRUCTION
from empathax.evaluation.report.text import BEST, NEAR, NOT_MEASURED, Report

NUM_PROMPTS = 36  # with the replies of all models
_UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")


@dataclass(frozen=True)
class AnsweredPrompt:
    """A prompt, its reference, and every model's reply in the order of the rows."""

    prompt: tuple[Message, ...]
    reference: Reply
    replies: tuple[tuple[str, Reply], ...]

    @property
    def last_turn(self) -> str:
        """What is answered, shortened to a line."""
        text = " ".join(self.prompt[-1].content.split()) if self.prompt else ""
        return text if len(text) <= 140 else f"{text[:139].rstrip()}…"


def page(report: Report) -> str:
    """The HTML of a report."""
    records = report.results.records
    return (
        environment()
        .get_template("report.html")
        .render(
            report=report,
            records=records,
            sections=report.results.sections(),
            paper_columns=paper_columns(),
            paper_headings=HEADINGS,
            legend=report.legend(),
            marks={"best": BEST, "near": NEAR, "missing": NOT_MEASURED},
            reconstruction=RECONSTRUCTION,
            citation=CITATION,
            levels=LEVELS,
            charts=charts,
            line_charts=charts.line_charts(records),
            histograms=charts.histograms(records),
            level_charts=charts.level_charts(records),
            answers=side_by_side(records),
        )
    )


def side_by_side(records: Sequence[EvaluationRecord], limit: int = NUM_PROMPTS) -> list[AnsweredPrompt]:
    """Up to `limit` prompts that all records answer, spread evenly over them."""
    tables = [_numbered(record.replies) for record in records]
    common = [key for key in tables[0] if all(key in table for table in tables)]
    picked = np.unique(np.linspace(0, len(common) - 1, min(limit, len(common))).round().astype(int))
    return [
        AnsweredPrompt(
            prompt=common[number][1],
            reference=tables[0][common[number]],
            replies=tuple((record.label, table[common[number]]) for record, table in zip(records, tables, strict=True)),
        )
        for number in picked.tolist()
    ]


def _numbered(replies: Sequence[Reply]) -> dict[tuple[Any, ...], Reply]:
    """Replies by dialogue, prompt, reference and how many came before with all three: samples, or rows without one."""
    counts: Counter[tuple[Any, ...]] = Counter()
    found = {}
    for reply in replies:
        key = (reply.dialogue, reply.prompt, reply.reference)
        found[*key, counts[key]] = reply
        counts[key] += 1
    return found


def environment(*packages: str) -> jinja2.Environment:
    """Templates of self-contained pages: those of `packages`, then those of the report."""
    return jinja2.Environment(
        loader=jinja2.ChoiceLoader([jinja2.PackageLoader(name) for name in (*packages, "empathax.evaluation.report")]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=_printable,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _printable(value: Any) -> Any:
    """Text without characters that HTML cannot hold: control characters become U+FFFD."""
    if isinstance(value, str) and not isinstance(value, Markup):
        return _UNPRINTABLE.sub("\ufffd", value)
    return value
