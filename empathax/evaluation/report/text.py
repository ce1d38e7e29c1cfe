"""A report's tables in Markdown, LaTeX (booktabs) and JSON."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from empathax.evaluation.report.paper import CITATION, HEADINGS, Ordering, PaperModel, paper_columns
from empathax.evaluation.report.table import RECONSTRUCTION, Cell, Column, Results, Section

NOT_MEASURED = "not measured"
NOT_PRINTED = "–"  # a figure that the paper does not have
BEST, NEAR = "★", "≈"
FORMAT = 1
FEW_DIALOGUES = 20
_LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
    '"': r"\textquotedbl{}", "|": r"\textbar{}", "↑": r"$\uparrow$", "↓": r"$\downarrow$", NOT_PRINTED: "--",
}  # fmt: skip


@dataclass(frozen=True)
class Report:
    """What all formats show."""

    title: str
    results: Results
    papers: Sequence[PaperModel]
    orderings: Sequence[Ordering]

    def legend(self) -> str:
        """How to read a cell."""
        return (
            f"{BEST} best of its column; {NEAR} the difference from the best is not clear (its 95% interval holds 0). "
            f"Ranges: 95% bootstrap intervals, {self.results.num_resamples:,} resamples of whole dialogues, "
            f"seed {self.results.seed}.{self._cautions()}"
        )

    def _cautions(self) -> str:
        moved = "Dist and DBT metric: intervals moved by the bias that resampling whole dialogues gives them."
        number = self.results.records[0].data.num_dialogues
        few = f" {number} dialogues are few: intervals of so few are too narrow." if number < FEW_DIALOGUES else ""
        return f" {moved}{few}"

    def data(self) -> str:
        """What was evaluated."""
        data = self.results.records[0].data
        counts = {"replies": data.num_turns, "dialogues": data.num_dialogues, "preference pairs": data.num_pairs}
        parts = [f"{count:,} {what}" for what, count in counts.items() if count]
        return f"{data.path}, split {data.split}: {', '.join(parts)}."


def markdown(report: Report) -> str:
    """table.md: all tables, the paper's, and the note on orders."""
    blocks = [f"# {_markdown_text(report.title)}", _markdown_text(report.data())]
    sections = report.results.sections()
    blocks += [_markdown_section(sections[0]), _markdown_text(report.legend()), RECONSTRUCTION]
    for paper in report.papers:
        columns = paper_columns()
        head = _headings(columns, [HEADINGS[column.metric] for column in columns])
        blocks += [f"The paper's {paper.name} ({CITATION}):", _markdown_rows(head, _paper_rows(paper, columns))]
    if report.orderings:
        blocks.append("## Order of the rows against the paper's")
    notes = [
        f"- {ordering.column.heading}, {ordering.paper_name}: {_markdown_text(' '.join(ordering.sentences()))}"
        for ordering in report.orderings
    ]
    blocks += ["\n".join(notes)] if notes else []
    for section in sections[1:]:
        blocks += [f"## {section.heading}", _markdown_section(section)]
    return "\n\n".join(blocks) + "\n"


def latex(report: Report) -> str:
    """table.tex: Table 1 with the paper's rows below, for a document that loads booktabs."""
    section = report.results.sections()[0]
    columns = section.columns
    lines = [_latex_row(["", *(f"{_latex_text(column.heading)} {_latex_text(column.arrow)}" for column in columns)])]
    lines.append(r"\midrule")
    for label, cells in section.cells.items():
        row = [_latex_cell(cells[column.metric], column) for column in columns]
        lines.append(_latex_row([_latex_text(label), *row]))
    for paper in report.papers:
        name = rf"\emph{{{_latex_text(paper.name)}, in the paper}}"
        lines += [r"\midrule", rf"\multicolumn{{{len(columns) + 1}}}{{l}}{{{name}}} \\"]
        lines += [_latex_row(list(map(_latex_text, row))) for row in _paper_rows(paper, columns)]
    legend = report.legend().replace(BEST, "Bold:").replace(NEAR, r"\ensuremath{\approx}:")
    caption = (
        f"{_latex_text(report.title)}. {_latex_text(report.data())} {_latex_keep(legend)} {_latex_text(RECONSTRUCTION)}"
    )
    head = [r"\begin{table}", r"\centering", rf"\caption{{{caption}}}", rf"\begin{{tabular}}{{l{'r' * len(columns)}}}"]
    return "\n".join([*head, r"\toprule", *lines, r"\bottomrule", r"\end{tabular}", r"\end{table}"]) + "\n"


def as_json(report: Report) -> dict[str, Any]:
    """table.json: every number with its interval; the format is in docs/report.md."""
    sections = report.results.sections()
    return {
        "format": FORMAT,
        "title": report.title,
        "seed": report.results.seed,
        "resamples": report.results.num_resamples,
        "confidence": 0.95,
        "rows": [
            {
                "label": record.label,
                "model": record.model,
                "metrics": {
                    metric: _json_cell(cell)
                    for section in sections
                    for metric, cell in section.cells[record.label].items()
                    if cell is not None
                },
            }
            for record in report.results.records
        ],
        "paper": {
            paper.name: {
                label: {column.metric: row[column.metric] for column in paper_columns()}
                for label, row in paper.figures.items()
            }
            for paper in report.papers
        },
        "orders": [
            {
                "metric": ordering.column.metric,
                "paper": ordering.paper_name,
                "here": ordering.ours,
                "there": ordering.papers,
                "pairs": ordering.num_pairs,
                "disagreements": [
                    {"better": d.better, "worse": d.worse, "lead": d.lead, "interval": d.interval, "clear": d.is_clear}
                    for d in ordering.disagreements
                ],
            }
            for ordering in report.orderings
        ],
    }


def _json_cell(cell: Cell) -> dict[str, Any]:
    low, high = cell.interval or (None, None)
    return {"value": cell.value, "low": low, "high": high, "best": cell.is_best, "near_best": cell.is_near}


def _headings(columns: Sequence[Column], names: Sequence[str]) -> list[str]:
    return ["model", *(f"{name} {column.arrow}".strip() for name, column in zip(names, columns, strict=True))]


def _paper_rows(paper: PaperModel, columns: Sequence[Column]) -> list[list[str]]:
    """The paper's rows with their labels; a dash where it prints no figure."""
    return [
        [label, *(column.number(row[column.metric]) if column.metric in row else NOT_PRINTED for column in columns)]
        for label, row in paper.figures.items()
    ]


def _markdown_section(section: Section) -> str:
    rows = [
        [label, *(_markdown_cell(cells[column.metric], column) for column in section.columns)]
        for label, cells in section.cells.items()
    ]
    return _markdown_rows(_headings(section.columns, [column.heading for column in section.columns]), rows)


def _markdown_rows(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    escaped = [[cell if line is lines[1] else _markdown_text(cell) for cell in line] for line in lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in escaped)


def _markdown_cell(cell: Cell | None, column: Column) -> str:
    if cell is None:
        return NOT_MEASURED
    mark = BEST if cell.is_best else NEAR if cell.is_near else ""
    interval = f" [{column.number(cell.interval.low)}, {column.number(cell.interval.high)}]" if cell.interval else ""
    return f"{mark} {column.number(cell.value)}{interval}".strip()


def _markdown_text(text: str) -> str:
    return re.sub(r"([|<>*_`\\])", r"\\\1", " ".join(text.split()))


def _latex_row(cells: Sequence[str]) -> str:
    return " & ".join(cells) + r" \\"


def _latex_cell(cell: Cell | None, column: Column) -> str:
    if cell is None:
        return NOT_MEASURED
    number = column.number(cell.value).replace("-", "$-$")
    number = (
        rf"\textbf{{{number}}}" if cell.is_best else rf"\ensuremath{{\approx}} {number}" if cell.is_near else number
    )
    if cell.interval is None:
        return number
    low, high = (column.number(end).replace("-", "$-$") for end in cell.interval)
    return rf"{number} {{\scriptsize [{low}, {high}]}}"


def _latex_text(text: str) -> str:
    return "".join(_LATEX.get(character, character) for character in " ".join(text.split()))


def _latex_keep(text: str) -> str:
    return text.replace("%", r"\%")
