"""The report command: its files, their numbers, hostile text, and the page in a browser."""

import json
import re
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from empathax import report
from empathax.data.records import Message
from empathax.evaluation.metrics.statistics import MeanOfValues
from empathax.evaluation.report.page import side_by_side
from empathax.evaluation.report.paper import PAPER
from empathax.evaluation.report.record import FILE, Reply, write_record
from empathax.evaluation.report.table import table_1
from tests.evaluation.report import made_up

CHROMIUM = "/usr/bin/chromium"
HOSTILE = (
    "</p></svg><script>alert(1)</script><img src=https://evil.example/x onerror=alert(1)>{{ 7*7 }} & \x00 \u202e \"'"
)


def leave(directory, *records):
    for number, record in enumerate(records):
        (directory / f"run{number}").mkdir(parents=True)
        write_record(directory / f"run{number}" / FILE, record)
    return directory


def run(directory, *flags, runs=None):
    return report.main([f"--runs={runs or directory / 'runs'}", f"--out={directory / 'out'}", *flags])


@pytest.fixture(scope="module")
def all_four(tmp_path_factory):
    """A report of the four rows; their records were found in no particular order."""
    directory = tmp_path_factory.mktemp("report")
    leave(directory / "runs", *map(made_up.record, ("+SFT+DPO", "+DPO", "base", "+SFT")))
    assert run(directory, "--title=Made-up numbers") == 0
    return directory / "out"


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    """A report in which everything that a model or a user wrote is hostile."""
    directory = tmp_path_factory.mktemp("hostile")
    prompt = (Message(HOSTILE, HOSTILE), Message("user", HOSTILE + " \ud83d"))
    changes = {
        "replies": (Reply(f"d{HOSTILE}", prompt, HOSTILE, HOSTILE, 1, 2),),
        "model": HOSTILE,
        "command": HOSTILE,
        "decoding": {HOSTILE: HOSTILE},
    }
    records = []
    for label in ("base", f"+SFT{HOSTILE}"):
        record = made_up.record("+SFT")
        curves = tuple(replace(curve, name=HOSTILE) for curve in record.curves)
        data = replace(record.data, path=HOSTILE, split=HOSTILE)
        metrics = {**record.metrics, HOSTILE: 1.0}
        records.append(replace(record, label=label, curves=curves, data=data, metrics=metrics, **changes))
    leave(directory / "runs", *records)
    assert run(directory, f"--title={HOSTILE}") == 0
    return directory / "out"


class Page(HTMLParser):
    """Every tag with its attributes, and the text outside tags."""

    def __init__(self, path):
        super().__init__()
        self.tags, self.text = [], ""
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data

    def all(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


def test_the_numbers_of_the_files_are_the_records(all_four):
    table = json.loads((all_four / "table.json").read_text())
    text = (all_four / "table.md").read_text()
    assert [row["label"] for row in table["rows"]] == list(made_up.LABELS)
    for row in table["rows"]:
        record = made_up.record(row["label"])
        assert {name: cell["value"] for name, cell in row["metrics"].items()} == pytest.approx(dict(record.metrics))
        intervals = {name: (cell["low"], cell["high"]) for name, cell in row["metrics"].items()}
        assert intervals.pop("reply_length") == (None, None)
        assert all(low <= record.metrics[name] <= high for name, (low, high) in intervals.items())
        first = next(line for line in text.splitlines() if line.startswith(f"| {row['label']} |"))
        for metric, digits in (("bleu4_sentence", 2), ("rouge_l", 2), ("distinct_2", 2), ("validation_gap", 4)):
            cell = row["metrics"][metric]
            shown = f"{cell['value']:.{digits}f} [{cell['low']:.{digits}f}, {cell['high']:.{digits}f}]"
            assert shown in first.replace("\\", "")


def test_the_best_of_each_column(all_four):
    rows = {row["label"]: row["metrics"] for row in json.loads((all_four / "table.json").read_text())["rows"]}
    for metric, pick in (("rouge_l", max), ("distinct_2", max), ("validation_gap", min), ("perplexity", min)):
        values = {label: cells[metric]["value"] for label, cells in rows.items()}
        best = [label for label, cells in rows.items() if cells[metric]["best"]]
        assert best == [pick(values, key=values.get)]
    assert not any(cells["reply_length"]["best"] for cells in rows.values())


def test_nothing_is_the_best_of_numbers_that_are_shown_alike(tmp_path):
    records = [made_up.record("base"), made_up.record("+SFT")]
    small = [
        replace(record, metrics={"rouge_l": value}, per_example={}, level_shares=None)
        for record, value in zip(records, (0.0012, 0.0031), strict=True)
    ]
    leave(tmp_path / "small", *small)
    assert run(tmp_path, runs=tmp_path / "small") == 0
    rows = json.loads((tmp_path / "out" / "table.json").read_text())["rows"]
    assert [row["metrics"]["rouge_l"]["best"] for row in rows] == [False, False]


def test_the_papers_figures_and_the_order_of_rows(tmp_path, capsys):
    gaps = {"base": 0.2, "+SFT": 0.03, "+DPO": 0.25, "+SFT+DPO": 0.02}
    records = [made_up.record(label, metrics={"validation_gap": gap}, per_example={}) for label, gap in gaps.items()]
    leave(tmp_path / "runs", *records)
    assert run(tmp_path, "--paper=llama8b,gemma7b") == 0
    table = json.loads((tmp_path / "out" / "table.json").read_text())
    assert table["paper"]["Gemma-7B"]["+DPO"] == {
        "bleu4_sentence": 0.34, "rouge_l": 5.75, "distinct_2": 12.35, "validation_gap": 0.1304,
    }  # fmt: skip
    llama, gemma = table["orders"]  # no other column was measured
    assert (llama["paper"], llama["pairs"], llama["there"]) == ("Llama-3-8B", 6, ["+SFT+DPO", "+SFT", "+DPO", "base"])
    assert llama["here"] == ["+SFT+DPO", "+SFT", "base", "+DPO"]
    (only,) = llama["disagreements"]
    assert only == {"better": "base", "worse": "+DPO", "lead": pytest.approx(0.05), "interval": None, "clear": False}
    # Gemma: +SFT+DPO .0175, +DPO .1304, base .1885, +SFT .2002
    assert {(d["better"], d["worse"]) for d in gemma["disagreements"]} == {
        ("+SFT", "+DPO"),
        ("+SFT", "base"),
        ("base", "+DPO"),
    }
    shown = capsys.readouterr().out
    assert "5 of 6 pairs of rows are in the paper's order" in shown
    assert "base is better than +DPO here, by 0.0500 (no interval); in the paper it is worse." in shown
    assert "not measured" in shown
    assert "reconstruct" in shown


def test_the_papers_figures_are_those_of_the_ready_configs():
    configs = Path(report.__file__).parent.parent / "configs"
    pattern = r"metric ([\d.]+) / ([\d.]+) / ([\d.]+) / ([\d.]+) for this row"
    for name, paper in PAPER.items():
        for label, suffix in (("+SFT", "sft"), ("+DPO", "dpo"), ("+SFT+DPO", "sft_dpo")):
            found = re.search(pattern, (configs / f"{name}_{suffix}.py").read_text())
            assert list(map(float, found.groups())) == list(paper.figures[label].values())


def test_latex_is_escaped_and_balanced(all_four, hostile):
    for text in ((all_four / "table.tex").read_text(), (hostile / "table.tex").read_text()):
        assert all(line in text for line in (r"\toprule", r"\midrule", r"\bottomrule"))
        bare = re.sub(r"\\[\\{}&%$#_]", "", text)
        assert bare.count("{") == bare.count("}")
        assert not re.search(r"[<>#_^~\"]", re.sub(r"\\[a-z]+", "", bare))
        for line in text.splitlines():
            if line.endswith(r"\\") and "multicolumn" not in line:
                assert len(re.findall(r"(?<!\\)&", line)) == len(table_1())
    assert r"+SFT\textless{}/p\textgreater{}" in (hostile / "table.tex").read_text()


def test_hostile_text_stays_text(hostile):
    page = Page(hostile / "report.html")
    for tag in ("script", "img", "iframe", "object", "form", "base", "foreignobject"):
        assert page.all(tag) == []
    assert not [name for _, attributes in page.tags for name in attributes if name.startswith("on")]
    assert page.text.count("<script>alert(1)</script>") >= 10  # it is there, as text
    assert "{{ 7*7 }}" in page.text
    assert "\x00" not in page.text
    assert r"\<script\>" in (hostile / "table.md").read_text()


def test_nothing_is_loaded_from_anywhere(all_four, hostile):
    for directory in (all_four, hostile):
        page = Page(directory / "report.html")
        policy = next(meta["content"] for meta in page.all("meta") if meta.get("http-equiv"))
        assert "default-src 'none'" in policy
        targets = [
            attributes[name] for _, attributes in page.tags for name in ("src", "href", "srcset") if name in attributes
        ]
        assert targets
        assert all(target.startswith("#") or target == "data:," for target in targets)
        assert not re.search(r"@import|url\(", (directory / "report.html").read_text())


def test_the_page_can_be_read_without_seeing_it(all_four):
    page = Page(all_four / "report.html")
    assert len(page.all("caption")) == len(page.all("table"))
    assert all("scope" in attributes for attributes in page.all("th"))
    assert all(svg.get("aria-label") or svg.get("aria-hidden") for svg in page.all("svg"))
    ids = {attributes["id"] for _, attributes in page.tags if "id" in attributes}
    assert all(link["href"][1:] in ids for link in page.all("a"))
    assert page.all("html")[0]["lang"] == "en"
    assert "reconstruction" in page.text


def test_all_models_answer_the_same_prompts(all_four):
    page = Page(all_four / "report.html")
    prompts = page.text.split("The same prompt answered by all")[1].split("How it was measured")[0]
    for label in made_up.LABELS:
        assert prompts.count(f"({label})") == len(range(0, 80, 3))


def test_a_single_model_without_anything_but_a_metric(tmp_path):
    bare = made_up.record(
        "a model of ours", metrics={"rouge_l": 9.0}, per_example={}, level_shares=None, replies=(), curves=()
    )
    leave(tmp_path / "runs", bare)
    assert run(tmp_path) == 0
    assert "not measured" in Page(tmp_path / "out" / "report.html").text


@pytest.mark.parametrize(
    ("records", "flags", "words"),
    [
        ((), (), "no evaluation.json in it or below"),
        (("base", "base"), (), "the label 'base' again"),
        (("base",), ("--paper=llama9b",), "llama9b is not in the paper's table: expected one of llama8b"),
        (("base",), ("--runs=missing",), "no such directory"),
    ],
)
def test_what_cannot_be_compared_is_named(tmp_path, capsys, records, flags, words):
    (tmp_path / "runs").mkdir()
    leave(tmp_path / "runs", *map(made_up.record, records))
    assert run(tmp_path, *flags) in (2, 3)
    assert words in capsys.readouterr().err


def test_rows_of_different_data_are_refused(tmp_path, capsys):
    base, other = made_up.record("base"), made_up.record("+SFT")
    leave(tmp_path / "runs", base, replace(other, data=replace(other.data, split="valid", num_turns=79)))
    assert run(tmp_path) == 3
    error = capsys.readouterr().err
    assert "data.split = 'valid', but base has 'test'" in error
    assert "data.num_turns = 79" in error


def test_places_that_cannot_be_written(tmp_path, capsys):
    leave(tmp_path / "runs", made_up.record())
    (tmp_path / "out").write_text("a file")
    assert run(tmp_path) == 2
    assert "cannot be made: File exists" in capsys.readouterr().err


def test_as_a_command(tmp_path):
    leave(tmp_path / "runs", made_up.record("base"), made_up.record("+SFT"))
    both = f"{tmp_path / 'runs' / 'run0'},{tmp_path / 'runs' / 'run1'}"
    command = [
        sys.executable,
        "-W",
        "error",
        "-m",
        "empathax.report",
        f"--runs={both}",
        f"--out={tmp_path / 'new' / 'out'}",
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in (tmp_path / "new" / "out").iterdir()) == [
        "report.html", "table.json", "table.md", "table.tex",
    ]  # fmt: skip
    assert done.stdout == (tmp_path / "new" / "out" / "table.md").read_text()


@pytest.mark.skipif(not Path(CHROMIUM).exists(), reason=f"needs a browser at {CHROMIUM}")
@pytest.mark.parametrize("width", [1280, 400])
def test_in_a_browser_nothing_is_requested_and_nothing_sticks_out(all_four, hostile, width):
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=flags)
        for directory in (all_four, hostile):
            page = browser.new_page(viewport={"width": width, "height": 900})
            requests, dialogs = [], []
            page.on("request", lambda request, seen=requests: seen.append(request.url))
            page.on("dialog", lambda dialog, seen=dialogs: seen.append(dialog.message))
            url = (directory / "report.html").as_uri()
            page.goto(url)
            page.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
            assert [address for address in requests if not address.startswith("data:")] == [url]
            assert not dialogs
            assert page.evaluate("document.documentElement.scrollWidth") <= width
            page.close()
        browser.close()


def test_a_metric_that_lacks_a_dialogue_is_no_other_data(tmp_path):
    """A reply of one word has no word pairs, so Distinct-2 of a reply has one dialogue less."""
    records = [made_up.record(label) for label in ("base", "+SFT")]
    found = records[1].per_example["rouge_l"]
    rest = [number for number, dialogue in enumerate(found.dialogues) if dialogue != found.dialogues[0]]
    fewer = MeanOfValues(tuple(found.dialogues[n] for n in rest), (50.0,) * len(rest))
    whole = MeanOfValues(found.dialogues, (50.0,) * len(found.dialogues))
    for number, statistic in enumerate((whole, fewer)):
        per_example = records[number].per_example | {"distinct_2_reply": statistic}
        metrics = records[number].metrics | {"distinct_2_reply": 50.0}
        records[number] = replace(records[number], per_example=per_example, metrics=metrics)
    leave(tmp_path / "runs", *records)
    assert run(tmp_path) == 0


def test_replies_to_one_prompt_are_all_shown():
    replies = tuple(Reply("d", (), f"reference {n // 2}", f"reply {n}") for n in range(4))
    records = [made_up.record(label, replies=replies) for label in ("base", "+SFT")]
    assert [answers.replies[1][1].reply for answers in side_by_side(records)] == [f"reply {n}" for n in range(4)]
