"""An LLM as judge between two models: every pair of replies in both orders, so that places cannot decide."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from empathax.data.records import Message
from empathax.evaluation.judging.chat_requests import ANSWERED, Answerer, ChatOutcome, ChatRequest
from empathax.evaluation.judging.judge import (
    DEFAULT_OPTIONS,
    JudgeOptions,
    final_object,
    judge_request,
    mean_of_known,
    winner_in,
)
from empathax.evaluation.metrics.statistics import MeanOfValues

WIN, TIE, LOSS = "win", "tie", "loss"
RUBRIC = "better_support"
_POINTS = {WIN: 100.0, TIE: 50.0, LOSS: 0.0}
_IF_FIRST = {"first": WIN, "second": LOSS, "tie": TIE}
_IF_SECOND = {"first": LOSS, "second": WIN, "tie": TIE}


@dataclass(frozen=True)
class Verdict:
    """One pair. `in_orders`: how the reply of A did standing first, and standing second; None where that is unknown."""

    in_orders: tuple[str | None, str | None]

    @property
    def result(self) -> str | None:
        """Of A: "win", "tie" or "loss". A verdict that changes with the order is a tie, one that is missing is None."""
        first, second = self.in_orders
        if first is None or second is None:
            return None
        return first if first == second else TIE

    @property
    def changed(self) -> bool:
        """Whether the two orders disagree."""
        return None not in self.in_orders and self.in_orders[0] != self.in_orders[1]


@dataclass(frozen=True)
class Comparison:
    """Model A against model B, in the order of the prompts."""

    verdicts: tuple[Verdict, ...]

    @property
    def results(self) -> tuple[str | None, ...]:
        return tuple(verdict.result for verdict in self.verdicts)

    def metrics(self) -> dict[str, float]:
        """Counts `wins`, `ties`, `losses`, `unscored`, `changed_with_order` (of the ties), and `win_rate` in percent.

        A tie is half a win; without any verdict there is no win rate. `first_preferred` is the percentage of verdicts
        for whichever reply stood first, of those for either: 50 for a judge without a bias towards a place.
        """
        results = self.results
        decided = [_POINTS[result] for result in results if result]
        sides = [
            result == if_first
            for verdict in self.verdicts
            for result, if_first in zip(verdict.in_orders, (WIN, LOSS), strict=True)
            if result in (WIN, LOSS)
        ]
        return {
            "wins": float(results.count(WIN)),
            "ties": float(results.count(TIE)),
            "losses": float(results.count(LOSS)),
            "unscored": float(results.count(None)),
            "changed_with_order": float(sum(verdict.changed for verdict in self.verdicts)),
            **({"win_rate": sum(decided) / len(decided)} if decided else {}),
            **({"first_preferred": 100.0 * sum(sides) / len(sides)} if sides else {}),
        }

    def statistic(self, dialogues: Sequence[str]) -> MeanOfValues | None:
        """`win_rate` for bootstrap intervals, with the dialogue of each prompt given; None without any verdict."""
        return mean_of_known(dialogues, [_POINTS[result] if result else None for result in self.results])


def compare_replies(
    judge: Answerer,
    prompts: Sequence[Sequence[Message]],
    *,
    replies_a: Sequence[str],
    replies_b: Sequence[str],
    options: JudgeOptions = DEFAULT_OPTIONS,
    rubric: str = RUBRIC,
    on_progress: Callable[[int], None] | None = None,
) -> Comparison:
    """Which of two replies is better by `rubric`, prompt by prompt. Equal ones are a tie that nobody is asked about.

    Raises ConfigError and DataError as `ChatServer.complete`.
    """
    rows = list(zip(prompts, replies_a, replies_b, strict=True))
    asked = [number for number, (_, a, b) in enumerate(rows) if a.strip() != b.strip()]
    requests = []
    for prompt, a, b in (rows[number] for number in asked):
        requests += comparison_requests(prompt, a, b, options, rubric)
    outcomes = judge.complete(requests, on_progress)
    verdicts = [Verdict((TIE, TIE))] * len(rows)
    for number, if_first, if_second in zip(asked, outcomes[::2], outcomes[1::2], strict=True):
        verdicts[number] = Verdict((_result(if_first, _IF_FIRST), _result(if_second, _IF_SECOND)))
    return Comparison(tuple(verdicts))


def comparison_requests(
    prompt: Sequence[Message], a: str, b: str, options: JudgeOptions = DEFAULT_OPTIONS, rubric: str = RUBRIC
) -> list[ChatRequest]:
    """What a judge is asked of two replies: with `a` first, and with `b` first."""
    orders = ((a, b), (b, a))
    return [judge_request(rubric, prompt, {"first": one, "second": two}, options) for one, two in orders]


def _result(outcome: ChatOutcome, meaning: dict[str, str]) -> str | None:
    answer = final_object(outcome.text) if outcome.status == ANSWERED else None
    winner = winner_in(answer) if answer else None
    return meaning[winner] if winner else None
