"""Evaluations on disk: the same record comes back, and whatever is wrong with a file is named."""

import json
from dataclasses import replace

import pytest

from empathax.errors import ConfigError, DataError
from empathax.evaluation.metrics.statistics import MeanOfValues
from empathax.evaluation.report.curves import read_curves
from empathax.evaluation.report.record import FILE, LevelShares, read_record, write_record
from tests.evaluation.report import made_up


@pytest.mark.parametrize("label", made_up.LABELS)
def test_a_record_comes_back(tmp_path, label):
    record = made_up.record(label)
    write_record(tmp_path / FILE, record)
    assert read_record(tmp_path / FILE) == record
    assert json.loads((tmp_path / FILE).read_text())["format"] == 1


def test_any_text_comes_back(tmp_path):
    odd = "a\x00b \u202e \ud83d <script> \U0001f600 \u2028 \"'\\"
    reply = replace(made_up.record().replies[0], reply=odd)
    write_record(tmp_path / FILE, made_up.record(replies=(reply,)))
    assert read_record(tmp_path / FILE).replies[0].reply == odd


def test_only_the_needed_is_needed(tmp_path):
    record = made_up.record(per_example={}, level_shares=None, replies=(), curves=(), decoding={})
    write_record(tmp_path / FILE, record)
    stored = json.loads((tmp_path / FILE).read_text())
    for name in ("per_example", "level_shares", "replies", "curves", "decoding"):
        del stored[name]
    (tmp_path / FILE).write_text(json.dumps(stored))
    assert read_record(tmp_path / FILE) == record


def _set(path, value):
    def change(stored):
        *above, last = path
        for key in above:
            stored = stored[key]
        stored[last] = value

    return change


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_set(["format"], 2), "format 1"),
        (lambda stored: stored.pop("format"), "no format number"),
        (lambda stored: stored.pop("label"), "no entry 'label'"),
        (_set(["lable"], "base"), "unknown entry 'lable'"),
        (_set(["data", "size"], 3), "data has an unknown entry 'size'"),
        (_set(["label"], 3), "label is 3: expected a string"),
        (_set(["label"], " "), "label is empty"),
        (_set(["seed"], True), "seed is true: expected a whole number"),
        (_set(["data", "num_turns"], 1.5), "data.num_turns is 1.5: expected a whole number"),
        (_set(["metrics", "rouge_l"], "12"), 'metrics.rouge_l is "12": expected a number'),
        (_set(["metrics", "rouge_l"], 99.0), "per_example.rouge_l gives rouge_l = .* but metrics.rouge_l is 99"),
        (_set(["decoding", "top_k"], [1]), r"decoding.top_k is \[1\]: expected a string, a number"),
        (_set(["per_example", "rouge_l", "kind"], "median"), "kind is 'median': expected one of mean, ratio"),
        (_set(["per_example", "rouge_l", "dialogues"], ["a"]), "1 dialogues, 80 values: expected one of each"),
        (_set(["per_example", "rouge_l", "values", 3], None), r"rouge_l.values\[3\] is null: expected a number"),
        (_set(["per_example", "validation_gap", "levels", 0], 4), r"levels or quartiles \[4\]: expected 0 to 3"),
        (_set(["per_example", "validation_gap", "reference_levels"], []), "no reference replies"),
        (_set(["per_example", "validation_gap", "normalise"], "all"), "'quartile' or 'level'"),
        (_set(["per_example", "perplexity", "tokens"], [0] * 80), "all 0"),
        (_set(["per_example", "token_accuracy", "denominators"], [-1.0] * 80), "negative"),
        (_set(["per_example", "bleu4_corpus", "matches", 0], [1, 2]), "other than 4 orders"),
        (_set(["level_shares", "model", 0], [0.5, 0.1, 0.1, 0.1]), "expected shares that sum to 1"),
        (_set(["level_shares", "model"], [[1.0, 0.0, 0.0, 0.0]]), "not 4 quartiles of 4 levels"),
        (_set(["replies", 0, "level"], 5), r"replies\[0\] has level 5"),
        (_set(["replies", 0, "prompt", 0, "content"], None), r"replies\[0\].prompt\[0\].content is null"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(tmp_path, change, words):
    write_record(tmp_path / FILE, made_up.record())
    stored = json.loads((tmp_path / FILE).read_text())
    change(stored)
    (tmp_path / FILE).write_text(json.dumps(stored))
    with pytest.raises(DataError, match=words) as error:
        read_record(tmp_path / FILE)
    assert str(tmp_path / FILE) in str(error.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [("", "it is empty"), ("{", "not JSON"), ("[1]", "no format number"), ('{"format": 1, "seed": NaN}', "found NaN"),
     ("[" * 100000, "nested too deeply")],
)  # fmt: skip
def test_files_that_are_no_records(tmp_path, text, words):
    (tmp_path / FILE).write_text(text)
    with pytest.raises(DataError, match=words):
        read_record(tmp_path / FILE)


def test_places_that_are_not_there(tmp_path):
    with pytest.raises(DataError, match="cannot be read: there is no such file"):
        read_record(tmp_path / FILE)
    with pytest.raises(ConfigError, match="cannot be written"):
        write_record(tmp_path / "missing" / FILE, made_up.record())


def test_a_metric_that_is_not_finite_is_left_out():
    with pytest.raises(DataError, match=r"metrics.perplexity is inf: leave it out"):
        made_up.record(metrics={"perplexity": float("inf")}, per_example={})


def test_an_entry_without_examples_is_left_out():
    with pytest.raises(DataError, match=r"per_example\.rouge_l has no examples"):
        made_up.record(per_example={"rouge_l": MeanOfValues((), ())})


def test_level_shares_of_replies_counted_by_hand():
    shares = LevelShares.of(made_up.ReplyLevels(("a", "a", "b"), "quartile", (0, 1, 3), (0, 0, 3), ("a",), (2,), (1,)))
    nothing = (0.0, 0.0, 0.0, 0.0)
    assert shares.model == ((0.5, 0.5, 0.0, 0.0), nothing, nothing, (0.0, 0.0, 0.0, 1.0))
    assert shares.reference == (nothing, (0.0, 0.0, 1.0, 0.0), nothing, nothing)


def test_curves_of_a_run(tmp_path):
    lines = [
        '{"step": 0, "stage": "sft", "split": "eval", "loss": 4.0, "memory_gb": 1}',
        '{"step": 1, "stage": "sft", "split": "train", "loss": 3.5, "perplexity": NaN}',
        "",
        '{"step": 5, "stage": "sft", "split": "eval", "loss": 2.0}',
        '{"step": 6, "stage": "sf',
    ]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines))
    found = {
        (curve.stage, curve.split, curve.name): (curve.steps, curve.values)
        for curve in read_curves(tmp_path / "metrics.jsonl")
    }
    assert found == {("sft", "eval", "loss"): ((0, 5), (4.0, 2.0)), ("sft", "train", "loss"): ((1,), (3.5,))}
    (tmp_path / "metrics.jsonl").write_text("\n".join(["nonsense", lines[0]]))
    with pytest.raises(DataError, match=r"metrics\.jsonl:1: expected a record"):
        read_curves(tmp_path / "metrics.jsonl")
    with pytest.raises(DataError, match="cannot be read"):
        read_curves(tmp_path / "missing.jsonl")
