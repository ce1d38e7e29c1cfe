"""Texts of two files beside each other, and what is said of files that do not fit."""

import json

import pytest

from empathax.errors import DataError
from empathax.evaluation.reply_set import read_predictions


def write(path, rows):
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return path


def test_rows_side_by_side(tmp_path):
    predictions = write(tmp_path / "p.jsonl", [{"text": "a"}, {"text": ""}])
    place = {"dialogue": 5, "turn": 3, "num_turns": 4, "seeker": "I am sad."}
    references = write(tmp_path / "r.jsonl", [{"text": "b"}, {"text": "c", **place}])
    turns, replies = read_predictions(predictions, references)
    assert replies == ["a", ""]
    assert [turn.reference for turn in turns] == ["b", "c"]
    assert [turn.dialogue for turn in turns] == ["row 0", "5"]
    assert [turn.quartile for turn in turns] == [None, 3]
    assert turns[1].seeker == "I am sad."


@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        ([{"text": "a"}], r"has 2 rows and .*r.jsonl 1: expected a reference for each"),
        ([{"txt": "a"}, {"text": 5}], r"(?s)2 row\(s\) .*the keys txt; expected .*text"),
        ([{"text": "a", "turn": 4, "num_turns": 4}, {"text": "b"}], "turn = 4 and num_turns = 4"),
        ([{"text": "a", "turn": 1}, {"text": "b"}], "num_turns = None"),
        ([], "the file is empty"),
    ],
)
def test_what_does_not_fit_is_named(tmp_path, rows, reason):
    predictions = write(tmp_path / "p.jsonl", [{"text": "a"}, {"text": "b"}])
    with pytest.raises(DataError, match=reason):
        read_predictions(predictions, write(tmp_path / "r.jsonl", rows))
