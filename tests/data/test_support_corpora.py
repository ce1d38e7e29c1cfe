"""ESConv and EmpatheticDialogues in all their shapes."""

import pytest

from empathax.data.files import BadRow, NoReply
from empathax.data.records import Message
from empathax.data.support_corpora import esconv_pairs, parse_empathetic_dialogues, parse_esconv
from empathax.errors import DataError


def reformatted(turns, **fields):
    """The layout of data/esconv: usr and sys."""
    dialog = [
        {"text": text, "speaker": "usr"} if role == "usr" else {"text": text, "speaker": "sys", "strategy": strategy}
        for role, text, strategy in turns
    ]
    return {"problem_type": "job crisis", "dialog": dialog, **fields}


TURNS = [
    ("usr", " Hello ", None),
    ("usr", "I am sad", None),
    ("sys", "Why?", "Question"),
    ("sys", "I see.", "Others"),
    ("usr", "Work", None),
    ("sys", "Take a walk.", "Providing Suggestions"),
    ("usr", "Thanks", None),
]


def test_consecutive_turns_are_merged_with_their_strategies():
    dialogue = parse_esconv(reformatted(TURNS), "f:1")
    assert dialogue.messages == (
        Message("user", "Hello I am sad"),
        Message("assistant", "Why? I see."),
        Message("user", "Work"),
        Message("assistant", "Take a walk."),
        Message("user", "Thanks"),
    )
    assert dialogue.meta["strategies"] == (("Question", "Others"), ("Providing Suggestions",))
    assert dialogue.meta["problem_type"] == "job crisis"


def test_upstream_and_failed_dialogues_read_the_same():
    roles = {"usr": ("seeker", "speaker"), "sys": ("supporter", "listener")}
    for number in range(2):
        dialog = [
            {"speaker": roles[role][number], "content": text + "\n", "annotation": {"strategy": s} if s else {}}
            for role, text, s in TURNS
        ]
        dialogue = parse_esconv({"dialog": dialog}, "f:1")
        assert dialogue.messages == parse_esconv(reformatted(TURNS), "f:1").messages
        assert dialogue.meta["strategies"] == (("Question", "Others"), ("Providing Suggestions",))


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ({"dialog": []}, "non-empty list"),
        ({"dialog": "x"}, "non-empty list"),
        ({"dialog": [{"speaker": "bot", "text": "x"}]}, "unknown speaker 'bot'"),
        ({"dialog": [{"text": "x"}]}, 'expected an object with "speaker"'),
        ({"dialog": [{"speaker": "usr"}]}, r"dialog\[0\]: the text is null"),
    ],
)
def test_what_is_wrong_with_a_dialogue(value, reason):
    with pytest.raises(BadRow, match=reason):
        parse_esconv(value, "f:1")


def test_a_dialogue_without_supporter():
    with pytest.raises(NoReply):
        parse_esconv(reformatted([("usr", "Hello", None)]), "f:1")


def test_empathetic_dialogues():
    rows = [
        {
            "conv_id": "a",
            "utterance_idx": "2",
            "utterance": "Oh_comma_ why?",
            "prompt": "p_comma_q",
            "context": "lonely",
        },
        {"conv_id": "b", "utterance_idx": "1", "utterance": "alone", "prompt": ""},
        {"conv_id": "a", "utterance_idx": "1", "utterance": "I am sad", "prompt": "p", "context": "lonely"},
        {"conv_id": "a", "utterance_idx": "x", "utterance": "?", "prompt": "p"},
    ]
    results = [result for result, _ in parse_empathetic_dialogues((row, f"f:{n}") for n, row in enumerate(rows, 2))]
    assert isinstance(results[0], BadRow)
    assert results[1].messages == (Message("user", "I am sad"), Message("assistant", "Oh, why?"))
    assert results[1].meta == {"situation": "p,q", "emotion_type": "lonely"}
    assert isinstance(results[2], NoReply)


def some_dialogues(count):
    return [
        parse_esconv(
            reformatted([("usr", f"Hi {n}", None), ("sys", f"Why {n}?", "Question"), ("usr", "x", None),
                         ("sys", f"Walk {n}.", "Providing Suggestions")]),
            f"f:{n}",
        )
        for n in range(count)
    ]  # fmt: skip


def test_rejected_replies_are_advice_from_other_dialogues():
    dialogues = some_dialogues(6)
    pairs = esconv_pairs(dialogues, "advice", seed=0)
    assert [(pair.chosen, len(pair.prompt)) for pair in pairs[:2]] == [("Why 0?", 1), ("Walk 0.", 3)]
    for number, pair in enumerate(pairs):
        assert pair.rejected.startswith("Walk")
        assert pair.rejected != f"Walk {number // 2}."
    assert any(pair.rejected.startswith("Why") for pair in esconv_pairs(dialogues, "random", seed=0))


def test_the_draw_depends_on_the_seed_and_the_turn_only():
    dialogues = some_dialogues(30)
    first = [pair.rejected for pair in esconv_pairs(dialogues, "advice", seed=0)]
    assert first == [pair.rejected for pair in esconv_pairs(dialogues, "advice", seed=0)]
    assert first != [pair.rejected for pair in esconv_pairs(dialogues, "advice", seed=1)]


def test_no_advice_to_draw():
    with pytest.raises(DataError, match="esconv_rejected='random'"):
        esconv_pairs(some_dialogues(1), "advice", seed=0)
