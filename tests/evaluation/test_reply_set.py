"""Which held-out turns are answered, what a turn knows of its dialogue, and turns from two files of texts."""

import json

import numpy as np
import pytest

from empathax.data.examples import Example
from empathax.data.records import Message
from empathax.errors import DataError
from empathax.evaluation.reply_set import pick_turns, read_predictions, turn_of

LENGTHS = (3, 1, 4, 2, 5, 3)


def example(dialogue, turn, num_turns):
    prompt = (
        Message("system", "Listen."),
        *(Message(role, f"{role} {n}") for n in range(turn) for role in ("user", "assistant")),
        Message("user", "last words"),
    )
    return Example(prompt, np.zeros(1, np.int32), f"reply {turn}", (0,), f"d{dialogue}", "file:1", turn, num_turns)


EXAMPLES = [example(number, turn, length) for number, length in enumerate(LENGTHS) for turn in range(length)]


@pytest.mark.parametrize("count", range(len(EXAMPLES) + 2))
def test_dialogues_stay_whole_and_in_order(count):
    chosen = pick_turns(EXAMPLES, count)
    names = list(dict.fromkeys(one.dialogue_id for one in chosen))
    assert chosen == [one for one in EXAMPLES if one.dialogue_id in names]
    assert bool(chosen) == (count > 0)
    assert abs(len(chosen) - min(count, len(EXAMPLES))) <= max(LENGTHS)


def test_minus_one_is_all_of_them():
    assert pick_turns(EXAMPLES, -1) == EXAMPLES


def test_a_turn_knows_its_place_and_what_was_said():
    turn = turn_of(example(7, 2, 5))
    assert turn.dialogue == "d7"
    assert turn.quartile == 1  # min(3, floor(4 * 2 / 5))
    assert turn.seeker == "last words"
    assert turn.supporter == ("assistant 0", "assistant 1")
    assert turn.reference == "reply 2"


def test_turns_of_a_dialogue_know_the_seekers_last_message_and_their_quartile():
    said = [("assistant", "Hi"), ("user", "I am sad"), ("assistant", "Why?"), ("user", "My cat"), ("assistant", "Oh")]
    messages = tuple(Message(*one) for one in said)
    turns = [
        turn_of(Example(messages[:place], np.zeros(1, np.int32), "reply", (0,), "d", "file:1", number, 3))
        for number, place in enumerate((0, 2, 4))
    ]
    assert [turn.seeker for turn in turns] == ["", "I am sad", "My cat"]
    assert [turn.quartile for turn in turns] == [0, 1, 2]


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
