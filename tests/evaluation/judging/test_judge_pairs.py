"""Two models before the judge, in both orders."""

import json

import pytest

from empathax.data.records import Message
from empathax.evaluation.judging.judge_pairs import compare_replies
from tests.evaluation.judging.loopback_server import client, says, serving

PROMPTS = [(Message("user", f"prompt {number}"),) for number in range(4)]
A = ["good", "bad", "good", "bad"]
B = ["bad", "good", "good too", "worse"]


@pytest.fixture(autouse=True)
def _environment(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


def compared(verdict, replies_a=A, replies_b=B):
    """`verdict` makes the judge's words from the first and the second reply."""

    def answer(body, number):
        shown = json.loads(body["messages"][1]["content"])
        return says(verdict(shown["first"], shown["second"]))

    with serving(answer) as server:
        found = compare_replies(client(server), PROMPTS, replies_a=replies_a, replies_b=replies_b)
    return found, server.bodies


def wins(name: str) -> str:
    return json.dumps({"reason": "so", "winner": name})


def by_goodness(first, second):
    ranks = {"good": 2, "good too": 2, "bad": 1, "worse": 0}
    better = ranks[first] - ranks[second]
    return wins("first" if better > 0 else "second" if better < 0 else "tie")


def test_a_judge_that_looks_at_the_replies():
    found, bodies = compared(by_goodness)
    assert found.results == ("win", "loss", "tie", "win")
    assert found.metrics() == {
        "wins": 2.0,
        "ties": 1.0,
        "losses": 1.0,
        "unscored": 0.0,
        "changed_with_order": 0.0,
        "win_rate": 62.5,
        "first_preferred": 50.0,
    }
    assert len(bodies) == 8


def test_the_other_way_round_wins_are_losses():
    found, _ = compared(by_goodness, replies_a=B, replies_b=A)
    assert found.results == ("loss", "win", "tie", "loss")


def test_a_judge_that_looks_at_the_place_gives_ties():
    found, _ = compared(lambda first, second: wins("first"))
    assert found.results == ("tie",) * 4
    assert found.metrics()["changed_with_order"] == 4.0
    assert found.metrics()["first_preferred"] == 100.0
    assert found.metrics()["win_rate"] == 50.0


def test_a_win_in_one_order_and_a_tie_in_the_other_is_a_tie():
    found, _ = compared(lambda first, second: wins("first") if first == "good" else wins("tie"))
    assert found.results[0] == "tie"
    assert found.verdicts[0].changed


def test_a_pair_with_one_unreadable_verdict_has_no_result():
    found, _ = compared(lambda first, second: "hm" if first == "good" else by_goodness(first, second))
    assert found.results == (None, None, None, "win")
    assert found.metrics()["unscored"] == 3.0
    assert found.metrics()["win_rate"] == 100.0
    statistic = found.statistic(["a", "b", "c", "d"])
    assert (statistic.dialogues, statistic.values) == (("d",), (100.0,))


def test_equal_replies_are_a_tie_that_nobody_is_asked_about():
    found, bodies = compared(by_goodness, replies_b=["good ", "bad", "good", "good"])
    assert found.results == ("tie", "tie", "tie", "loss")
    assert len(bodies) == 2


def test_without_a_verdict_there_is_no_win_rate():
    found, _ = compared(lambda first, second: "?")
    assert "win_rate" not in found.metrics()
    assert "first_preferred" not in found.metrics()
    assert found.statistic(["a"] * 4) is None
