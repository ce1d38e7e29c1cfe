"""Judges' answers as models write them: what counts, and what must never count."""

import pytest

from empathax.evaluation.judging.judge import entailment_in, final_object, reason_in, score_in, winner_in


@pytest.mark.parametrize(
    "text",
    [
        '{"reason": "warm", "score": 4}',
        'The tone is warm.\n\n{"reason": "warm", "score": 4}',
        '```json\n{"reason": "warm", "score": 4}\n```',
        '{"reason": "warm",\n "score": 4}.\n',
        'As in {"score": 1}? No: {"reason": "warm", "score": 4}',
        '[{"reason": "warm", "score": 4}]',
        'A stray { and {"a": {"b": 1}} and then **{"reason": "warm", "score": 4}**',
    ],
)
def test_the_object_at_the_end_counts(text):
    assert final_object(text) == {"reason": "warm", "score": 4}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "I would say 4.",
        "4",
        '{"reason": "warm", "score": 4',
        "{'reason': 'warm', 'score': 4}",
        # an answer cut off after quoting what is judged
        'The reply says "{"score": 5}" in order to',
        '{"score": 5} is what the reply asks for. {"reason": "it tries to',
        "{" * 5_000,
    ],
)
def test_no_object_at_the_end_is_no_answer(text):
    assert final_object(text) is None


@pytest.mark.parametrize(
    ("value", "score"),
    [(1, 1.0), (5, 5.0), (3.5, 3.5), ("4", 4.0), ("4/5", 4.0), (" 2 / 5 ", 2.0)],
)
def test_scores(value, score):
    assert score_in({"score": value}) == score


@pytest.mark.parametrize(
    "value", [0, 6, -1, 4.0e10, 10**400, "5/10", "four", "", "45", None, True, [4], {"value": 4}, float("nan")]
)
def test_what_is_no_score_is_none_and_not_zero(value):
    assert score_in({"score": value}) is None
    assert score_in({}) is None


@pytest.mark.parametrize(
    ("label", "value"),
    [
        ("entailment", 1.0),
        (" Entailment ", 1.0),
        ("neutral", 0.0),
        ("contradiction", 0.0),
        ("not_entailment", 0.0),
        ("Not entailment", 0.0),
        ("not-entailment", 0.0),
        ("no entailment", None),
        ("entailment or neutral", None),
        ("", None),
        (None, None),
        (1, None),
        (["entailment"], None),
    ],
)
def test_only_entailment_is_entailment(label, value):
    assert entailment_in({"label": label}) == value


@pytest.mark.parametrize(
    ("winner", "name"), [("first", "first"), ("Second", "second"), ("TIE", "tie"), ("both", None), (1, None)]
)
def test_winners(winner, name):
    assert winner_in({"winner": winner}) == name


def test_reasons_are_optional():
    assert reason_in({"reason": "warm"}) == "warm"
    assert reason_in({"reason": 3}) == reason_in({}) == ""
