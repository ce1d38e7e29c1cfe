"""Which held-out turns are answered: whole dialogues, spread over all of them; what a turn knows of its dialogue."""

import numpy as np
import pytest

from empathax.data.examples import Example
from empathax.data.records import Message
from empathax.evaluation.reply_set import pick_turns, turn_of

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
