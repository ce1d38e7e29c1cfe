"""Levels from strategies, and what the classifier is shown; EPITOME's splits; the command's errors."""

import csv
import json

import pytest

from empathax.errors import DataError
from empathax.evaluation.classifiers.classifier import NO_LABEL
from empathax.evaluation.classifiers.data import (
    ASPECTS,
    level_of_strategy,
    read_epitome_examples,
    read_level_examples,
    split_files,
)
from empathax.evaluation.metrics.levels import LEVELS
from empathax.train_classifier import main

DIALOGUE = {
    "dialog": [
        {"speaker": "sys", "text": "Hello there", "strategy": "Others"},
        {"speaker": "sys", "text": "What brings you here?", "strategy": "Question"},
        {"speaker": "usr", "text": "My dog died."},
        {"speaker": "usr", "text": "I miss him."},
        {"speaker": "sys", "text": "You miss him a lot.", "strategy": "Restatement or Paraphrasing"},
        {"speaker": "sys", "text": "Grief like that makes sense.", "strategy": "Affirmation and Reassurance"},
        {"speaker": "usr", "text": "Thanks."},
        {"speaker": "sys", "text": "I lost mine too.", "strategy": "Self-disclosure"},
    ]
}


def test_each_strategy_has_the_level_of_the_definition():
    levels = {
        "Question": "listening",
        "Restatement or Paraphrasing": "reflection",
        "Reflection of feelings": "reflection",
        "Affirmation and Reassurance": "validating",
        "Self-disclosure": "genuineness",
        "Providing Suggestions": "genuineness",
        "Information": "genuineness",
    }
    assert {name: LEVELS[level_of_strategy(name)] for name in levels} == levels
    assert [level_of_strategy(name) for name in ("Others", None, "")] == [None] * 3


def test_examples_bring_the_seekers_last_turn(tmp_path):
    path = tmp_path / "train.jsonl"
    path.write_text(json.dumps(DIALOGUE) + "\n")
    assert [tuple(example) for example in read_level_examples(path)] == [
        ("What brings you here?", "", (0,)),
        ("You miss him a lot.", "My dog died. I miss him.", (1,)),
        ("Grief like that makes sense.", "My dog died. I miss him.", (2,)),
        ("I lost mine too.", "Thanks.", (3,)),
    ]


def test_files_that_cannot_be_used(tmp_path, capsys):
    (tmp_path / "train.jsonl").write_text(json.dumps({"dialog": [{"speaker": "usr", "text": "Hi"}]}) + "\n")
    with pytest.raises(DataError, match=r"found train.jsonl; expected also valid.jsonl, test.jsonl"):
        split_files(tmp_path)
    with pytest.raises(DataError, match="no supporter utterance"):
        read_level_examples(tmp_path / "train.jsonl")
    (tmp_path / "train.jsonl").write_text(json.dumps({"dialogue": []}) + "\n")
    with pytest.raises(DataError, match=r"train.jsonl:1: expected an ESConv dialogue"):
        read_level_examples(tmp_path / "train.jsonl")
    assert main(["--task=epitome", f"--data={tmp_path}", f"--out={tmp_path / 'out'}"]) == DataError.exit_code
    assert "emotional_reactions.csv: no such file" in capsys.readouterr().err


def test_epitome_is_split_by_post(tmp_path):
    for aspect in ASPECTS:
        with (tmp_path / f"{aspect}.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["seeker_post", "response_post", "level", "rationales"])
            for number in range(300):
                if aspect != "explorations" or number % 2:
                    writer.writerow([f"post {number // 2}", f"answer, {number}", number % 3, ""])
    splits = read_epitome_examples(tmp_path)
    assert sum(map(len, splits.values())) == 300
    posts = {name: {example.context for example in examples} for name, examples in splits.items()}
    assert not posts["train"] & posts["valid"] | posts["train"] & posts["test"] | posts["valid"] & posts["test"]
    assert 0 < len(splits["test"]) < 75
    assert 0 < len(splits["valid"]) < 75
    example = next(example for example in splits["train"] if example.text.endswith("2"))
    number = int(example.text.removeprefix("answer, "))
    assert example.labels == (number % 3, number % 3, NO_LABEL if number % 2 == 0 else number % 3)
