"""Votes, the drop rule, and what each ranker goes by."""

import json

import numpy as np
import pytest

from empathax.data.records import Message
from empathax.errors import ConfigError, DataError
from empathax.evaluation.judging.chat_requests import ChatOutcome
from empathax.evaluation.metrics.levels import LEVELS
from empathax.preferences import ranking as rankers
from empathax.preferences.pairs import Candidate, Context, Pair
from empathax.preferences.ranking import (
    NO_MAJORITY_LEAST,
    NO_MAJORITY_MOST,
    SAME,
    SMALL_MARGIN,
    TOO_FEW,
    UNRANKED,
    DesignRanker,
    JudgeRanker,
    LevelRanker,
    Ranking,
    RankingTask,
    check_rankers,
    choose,
)


def task(*variants: str, turn: int = 0, num_turns: int = 8) -> RankingTask:
    context = Context("d", turn, num_turns, (Message("user", "I lost my job."),), "", "file:1")
    return RankingTask(context, tuple(Candidate(f"reply {name}", {"variant": name}) for name in variants))


FOUR = task(*LEVELS)


def ranked(*scores, name="r"):
    return Ranking(name, scores)


def test_the_majority_decides_and_the_margin_is_a_mean():
    scores = {"a": (1.0, 0.5, 0.2, 0.0), "b": (0.9, 1.0, 0.2, 0.1), "c": (0.8, 0.1, 0.2, 0.0)}
    votes = [Ranking(name, values) for name, values in scores.items()]
    pair = choose(FOUR, votes, "levels")
    assert isinstance(pair, Pair)
    assert (pair.chosen.text, pair.rejected.text) == ("reply listening", "reply genuineness")
    assert pair.margin == pytest.approx((1.0 + 0.8 + 0.8) / 3)
    assert pair.scores == {"a": (1.0, 0.0), "b": (0.9, 0.1), "c": (0.8, 0.0)}
    assert choose(FOUR, votes, "levels", min_margin=0.9) == SMALL_MARGIN


@pytest.mark.parametrize(
    ("votes", "reason"),
    [
        ([], UNRANKED),
        ([ranked(1.0, 0.0, 0.5, 0.5), ranked(0.0, 1.0, 0.5, 0.5)], NO_MAJORITY_MOST),  # one vote each is no majority
        ([ranked(1.0, 1.0, 0.5, 0.0)], NO_MAJORITY_MOST),  # two share the first place: it abstains
        ([ranked(1.0, 0.0, 0.5, 0.5), ranked(1.0, 0.5, 0.0, 0.5)], NO_MAJORITY_LEAST),
        ([ranked(1.0, 0.5, 0.5, 0.5)], NO_MAJORITY_LEAST),
        ([ranked(None, 0.5, None, None)], NO_MAJORITY_MOST),
        # two of three find 0 most, two of three (one of them alone) find it least
        ([ranked(1.0, 0.5, 0.5, 0.5), ranked(1.0, 0.5, 0.5, None), ranked(0.0, 1.0, 0.5, 0.5)], NO_MAJORITY_LEAST),
    ],
)
def test_no_majority_no_pair(votes, reason):
    assert choose(FOUR, votes, "levels") == reason


def test_a_single_candidate_makes_no_pair():
    assert choose(task("listening"), [ranked(1.0)], "levels") == TOO_FEW
    assert SAME != TOO_FEW


@pytest.mark.parametrize(("turn", "most"), [(0, 0), (2, 1), (5, 2), (7, 3)])
def test_design_goes_by_the_quartile(turn, most):
    ((ranking,),) = DesignRanker().rank([task(*LEVELS, turn=turn)])
    assert ranking.scores == tuple(pytest.approx(1 - abs(level - most) / 3) for level in range(4))
    assert ranking.most == most


def test_design_takes_support_before_prescription():
    ((ranking,),) = DesignRanker().rank([task("prescriptive", "supportive")])
    assert (ranking.most, ranking.least) == (1, 0)


def test_levels_score_by_the_expected_distance(monkeypatch):
    logits = np.log(np.array([[0.7, 0.1, 0.1, 0.1], [0.25, 0.25, 0.25, 0.25], [1e-9, 1e-9, 1e-9, 1.0]]))
    monkeypatch.setattr(rankers, "classify", lambda classifier, texts, seekers: {"level": logits[: len(texts)]})
    ((ranking,),) = LevelRanker(None, "dir").rank([task("listening", "reflection", "genuineness", turn=7)])
    # target 3: expected distances 0.7*3 + 0.1*2 + 0.1, (3 + 2 + 1) / 4, 0
    assert ranking.scores == pytest.approx((1 - 2.4 / 3, 1 - 1.5 / 3, 1.0), abs=1e-5)
    assert ranking.facts == {"level_seen": ["listening", "listening", "genuineness"], "target": "genuineness"}
    assert LevelRanker(None, "dir").rank([]) == []


class FakeJudge:
    """Prefers the name that is first in `order`; a `broken` one gets no readable verdict, a `biased` one the first."""

    def __init__(self, order, broken="", biased=""):
        self.order, self.broken, self.biased, self.asked = order, broken, biased, []

    def complete(self, requests, on_progress=None):
        return [self._answer(json.loads(request.messages[-1].content), request) for request in requests]

    def _answer(self, material, request):
        self.asked.append(request)
        names = [material[side].removeprefix("reply ") for side in ("first", "second")]
        if self.broken in names:
            return ChatOutcome("answered", "they are both fine")
        first_wins = self.biased in names or self.order.index(names[0]) < self.order.index(names[1])
        return ChatOutcome("answered", json.dumps({"reason": "", "winner": "first" if first_wins else "second"}))


def test_a_judge_sees_every_two_replies_in_both_orders():
    judge = FakeJudge(["validating", "listening", "genuineness", "reflection"])
    ((ranking,), (other,)) = JudgeRanker(judge, "better_validation").rank([FOUR, task("listening", "reflection")])
    assert ranking.scores == (2 / 3, 0.0, 1.0, 1 / 3)
    assert other.scores == (1.0, 0.0)
    assert len(judge.asked) == 12 + 2
    assert "four stages" in judge.asked[0].messages[0].content


def test_verdicts_that_change_with_the_order_or_cannot_be_read_are_ties():
    ((ranking,),) = JudgeRanker(FakeJudge(list(LEVELS), biased="listening"), "better_support").rank([FOUR])
    assert ranking.scores == (0.5, (0.5 + 1 + 1) / 3, (0.5 + 0 + 1) / 3, 0.5 / 3)
    ((ranking,),) = JudgeRanker(FakeJudge(list(LEVELS), broken="listening"), "better_support").rank([FOUR])
    assert ranking.scores == (None, (0.5 + 1 + 1) / 3, (0.5 + 0 + 1) / 3, 0.5 / 3)  # nothing is known of the first
    assert ranking.facts == {"unreadable_verdicts": 3}


def test_rankers_that_cannot_work_are_refused_before_anything_is_asked():
    with pytest.raises(ConfigError, match="no design"):
        check_rankers(["design"], "samples", [])
    nowhere = task(*LEVELS, num_turns=0).context
    for names, kind in ((["design"], "levels"), (["levels"], "samples")):
        with pytest.raises(DataError, match="the place in a dialogue is not known"):
            check_rankers(names, kind, [nowhere])
    check_rankers(["design", "judge"], "styles", [nowhere])
