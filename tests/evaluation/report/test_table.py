"""The registry of columns: a new column of Table 1 is one entry, with or without a figure in the paper."""

import json
import re
from dataclasses import replace

import pytest

from empathax import report
from empathax.evaluation.report import paper
from empathax.evaluation.report.curves import names
from empathax.evaluation.report.paper import PAPER
from empathax.evaluation.report.record import FILE, write_record
from empathax.evaluation.report.table import COLUMNS, TABLE_1, Column, table_1
from tests.evaluation.report import made_up


@pytest.fixture
def made(tmp_path, monkeypatch):
    """A report with a fifth column in Table 1, beside one block of the paper: a function that makes it again."""
    monkeypatch.setitem(COLUMNS, "reply_length", Column("reply_length", TABLE_1, "Len & more", 1, "lower"))
    for label in ("base", "+SFT"):
        (tmp_path / "runs" / label).mkdir(parents=True)
        write_record(tmp_path / "runs" / label / FILE, made_up.record(label))

    def make():
        out = tmp_path / "out"
        assert report.main([f"--runs={tmp_path / 'runs'}", f"--out={out}", "--paper=gemma7b"]) == 0
        return {path.suffix: path.read_text(encoding="utf-8") for path in out.iterdir()}

    return make


def test_a_column_without_a_figure_in_the_paper(made):
    files = made()
    ours, papers = files[".md"].split("The paper's Gemma-7B")
    assert " Len & more ↓ |" in ours
    assert "| ★ 11.5 |" in ours
    assert "| model | B-4 ↑ | R-L ↑ | Dist ↑ | DBT metric ↓ |" in papers
    assert "| base | 0.20 | 2.98 | 3.05 | 0.1885 |" in papers
    assert "Len" not in papers
    assert rf"\begin{{tabular}}{{l{'r' * len(table_1())}}}" in files[".tex"]
    assert r" & Len \& more $\downarrow$ \\" in files[".tex"]
    assert re.search(r"base & 0.20 & 2.98 & 3.05 & 0.1885( & --)+ \\\\", files[".tex"])
    table = json.loads(files[".json"])
    assert [row["metrics"]["reply_length"]["best"] for row in table["rows"]] == [True, False]
    assert list(table["paper"]["Gemma-7B"]["base"]) == ["bleu4_sentence", "rouge_l", "distinct_2", "validation_gap"]
    assert "reply_length" not in {order["metric"] for order in table["orders"]}
    first, second = files[".html"].split("<caption>The paper's Gemma-7B</caption>")
    assert "Len &amp; more" in first
    assert "Len" not in second.split("</table>")[0]
    assert "Other measurements" not in files[".html"]  # the metric stood there before
    assert names()[-1] == "reply_length"  # its learning curve is drawn too


def test_a_column_with_a_figure_in_the_paper(made, monkeypatch):
    figures = {
        label: {**row, "reply_length": length}
        for (label, row), length in zip(PAPER["gemma7b"].figures.items(), (9.0, 8.0, 7.0, 6.0), strict=True)
    }
    monkeypatch.setitem(paper.HEADINGS, "reply_length", "Length")
    monkeypatch.setitem(PAPER, "gemma7b", replace(PAPER["gemma7b"], figures=figures))
    files = made()
    assert "| DBT metric ↓ | Length ↓ |" in files[".md"]
    assert "| base | 0.20 | 2.98 | 3.05 | 0.1885 | 9.0 |" in files[".md"]
    assert r"base & 0.20 & 2.98 & 3.05 & 0.1885 & 9.0 \\" in files[".tex"]
    table = json.loads(files[".json"])
    assert table["paper"]["Gemma-7B"]["+SFT"]["reply_length"] == 8.0
    (order,) = [order for order in table["orders"] if order["metric"] == "reply_length"]
    assert order["disagreements"] == [
        {"better": "base", "worse": "+SFT", "lead": 1.0, "interval": None, "clear": False}
    ]
    assert "<td>9.0</td>" in files[".html"]


def test_a_metric_that_is_in_no_column_is_shown_under_its_own_name(made, monkeypatch):
    monkeypatch.delitem(COLUMNS, "reply_length")
    files = made()
    assert "## Other measurements" in files[".md"]
    assert "| model | reply length |" in files[".md"]
