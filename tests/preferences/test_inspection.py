"""The page of a set: its numbers are those of the rows, its texts are escaped."""

import json

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from empathax import build_preferences
from empathax.config import DataOptions
from empathax.preferences.inspection import inspect_set, page
from tests.preferences.dialogues import write_corpus


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def row(number, chosen, rejected, **source):
    provenance = {"quartile": number % 4, "chosen": {"by": "gold", **source}, "rejected": {"variant": "genuineness"}}
    return {
        "prompt": f"<script>alert({number})</script> & more",
        "chosen": chosen,
        "rejected": rejected,
        "dialogue_id": f"d{number // 2}",
        "provenance": provenance,
    }


def test_counts_duplicates_and_levels(tmp_path):
    rows = [
        row(n, f"I hear you about thing{n} and thing{n + 1} today", f"You should do a{n} b{n} c{n} d{n}")
        for n in range(20)
    ]
    rows += [
        row(20, rows[3]["chosen"].upper(), rows[3]["rejected"]),
        row(21, rows[5]["chosen"], rows[5]["rejected"] + " ok"),
    ]
    rows += [row(22, "Tell me more about <b>it</b>", "You should <i>rest</i>", strategies=["Question"])]
    write(tmp_path / "set.jsonl", rows)
    found = inspect_set(str(tmp_path / "set.jsonl"), DataOptions())["train"]
    assert (found.num_pairs, found.num_prompts, found.duplicates, found.near_duplicates) == (23, 23, 1, 1)
    assert found.repeated["chosen"][0][1] == 2
    assert found.levels["chosen"][("3", "listening")] == 1
    assert sum(found.levels["rejected"].values()) == 23
    assert {level for _, level in found.levels["rejected"]} == {"genuineness"}
    assert found.cues.bag_accuracy == 1.0
    html = page("<set>", {"train": found})
    assert "<script>" not in html
    assert "&lt;set&gt;" in html
    assert "Tell me more about &lt;b&gt;it&lt;/b&gt;" in html
    assert "Warning." in html
    assert "http" not in html.split("</style>")[1]  # loads and links nothing


def test_the_command_looks_at_its_own_sets_and_at_others(tmp_path, capsys):
    source = write_corpus(tmp_path / "corpus")
    assert build_preferences.main([f"--source={source}", "--rules=position", f"--out={tmp_path / 'set'}"]) == 0
    out = tmp_path / "page.html"
    assert build_preferences.main([f"--inspect={tmp_path / 'set'}", f"--out={out}"]) == 0
    said = capsys.readouterr().out
    assert "words alone order 50.0% rightly" in said
    assert "held out" in said
    assert "Levels of validation by quartile" in out.read_text()
    assert build_preferences.main(["--inspect=samples", f"--out={out}"]) == 0
    assert build_preferences.main([f"--inspect={tmp_path}", f"--out={out}"]) == 3
    assert "holds several sets: inspect one of them, corpus, set" in capsys.readouterr().err


def test_numbers_and_samples_go_to_tensorboard_if_asked(tmp_path):
    source = write_corpus(tmp_path / "corpus")
    assert build_preferences.main([f"--source={source}", "--rules=position", f"--out={tmp_path / 'set'}"]) == 0
    logs = tmp_path / "logs"
    flags = [f"--inspect={tmp_path / 'set'}", f"--out={tmp_path / 'page.html'}", f"--tensorboard={logs}"]
    assert build_preferences.main(flags) == 0
    events = EventAccumulator(str(next(logs.rglob("events.*")).parent))
    events.Reload()
    summary = json.loads((tmp_path / "set" / "summary.json").read_text())["splits"]["train"]
    assert events.Scalars("train/pairs")[0].value == summary["pairs"]
    assert events.Scalars("train/words_alone_accuracy")[0].value == pytest.approx(0.5)
    assert {"in words/text_summary", "train/samples/text_summary"} <= {
        f"{tag}/text_summary" for tag in events.Tags()["tensors"]
    }


@pytest.mark.parametrize(
    "provenance", [{"chosen": "gpt-4"}, {"quartile": "Q1"}, {"chosen": {"strategies": None}}, ["gpt-4"], "gpt-4"]
)
def test_what_other_tools_say_of_their_rows_is_no_error(tmp_path, provenance):
    replies = [
        {side: [{"role": "assistant", "content": side[0] + n}] for side in ("chosen", "rejected")} for n in "123"
    ]
    write(tmp_path / "set.jsonl", [{"prompt": [], **pair, "provenance": provenance} for pair in replies])
    found = inspect_set(str(tmp_path / "set.jsonl"), DataOptions())
    assert "c1" in page("set", found)
    assert found["train"].levels == {"chosen": {}, "rejected": {}}
