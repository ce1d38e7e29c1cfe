"""An LLM as judge of single replies: empathy, politeness (1 to 5) and factuality (entailed by the reference, percent).

In the manner of G-Eval (Liu et al. 2023): a written rubric with questions to go through, then one score, asked of any
OpenAI-compatible server. What is asked and how it is scored: docs/judge.md.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.resources
import json
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from empathax.data.records import Message
from empathax.errors import ConfigError, DataError
from empathax.evaluation.judging.chat_requests import ANSWERED, ChatOutcome, ChatRequest
from empathax.evaluation.judging.chat_server import ChatServer
from empathax.evaluation.metrics.statistics import MeanOfValues

SCORED, UNPARSABLE = "scored", "unparsable"
CRITERIA = ("empathy", "politeness", "factuality")
_PERCENT = 100.0
LOWEST_SCORE, HIGHEST_SCORE = 1, 5
# Exact names: "entailment" is part of "not_entailment", which says the opposite.
ENTAILMENT_LABELS = {"entailment": 1.0, "neutral": 0.0, "contradiction": 0.0, "not_entailment": 0.0}
WINNERS = ("first", "second", "tie")
_OUT_OF_FIVE = re.compile(r"\s*(\d(?:\.\d+)?)\s*(?:/\s*5\s*)?")
_LETTER_OR_DIGIT = re.compile(r"\w")


@dataclass(frozen=True)
class JudgeOptions:
    """How a judge is asked. A model that thinks before it answers needs more tokens; some allow temperature 1 only."""

    max_tokens: int = 512
    temperature: float = 0.0
    seed: int | None = 0


DEFAULT_OPTIONS = JudgeOptions()


@dataclass(frozen=True)
class Judgement:
    """What a judge made of one reply.

    Attributes:
        score: on the criterion's scale; None unless `status` is "scored", never 0 for want of a score.
        status: "scored", "unparsable", or the status of a request without an answer: "refused", "empty", "failed".
        answer: what the judge said, word for word.
    """

    score: float | None
    status: str
    reason: str = ""
    answer: str = ""


@dataclass(frozen=True)
class Judgements:
    """One criterion, in the order of the replies."""

    criterion: str
    items: tuple[Judgement, ...]

    @property
    def scores(self) -> tuple[float | None, ...]:
        return tuple(item.score for item in self.items)

    def metrics(self) -> dict[str, float]:
        """The mean over the replies with a score, left out if there is none, and how many have none for what reason.

        CRITERION_unparsable: the judge answered without a usable score; CRITERION_unanswered: it refused, or failed.
        """
        scores = [score for score in self.scores if score is not None]
        num_unparsable = sum(item.status == UNPARSABLE for item in self.items)
        return {
            **({self.criterion: sum(scores) / len(scores)} if scores else {}),
            f"{self.criterion}_unparsable": float(num_unparsable),
            f"{self.criterion}_unanswered": float(len(self.items) - len(scores) - num_unparsable),
        }

    def statistic(self, dialogues: Sequence[str]) -> MeanOfValues | None:
        """The scores for bootstrap intervals, with the dialogue of each reply given; None if no reply has a score."""
        return mean_of_known(dialogues, self.scores)

    def in_words(self) -> str:
        """One line: how many replies have a score, and why the others have none."""
        statuses = Counter(item.status for item in self.items)
        missing = "".join(f", {number} {status}" for status, number in statuses.items() if status != SCORED)
        return f"{self.criterion}: {statuses[SCORED]} of {len(self.items)} replies scored{missing}"


def judge_replies(
    judge: ChatServer,
    prompts: Sequence[Sequence[Message]],
    *,
    replies: Sequence[str],
    references: Sequence[str],
    criteria: Sequence[str] = CRITERIA,
    options: JudgeOptions = DEFAULT_OPTIONS,
    on_progress: Callable[[int], None] | None = None,
) -> dict[str, Judgements]:
    """Scores every reply under every criterion; references are shown for factuality alone.

    Raises:
        ConfigError: an unknown criterion; or as `ChatServer.complete`.
        DataError: factuality without a reference text; or as `ChatServer.complete`.
    """
    if unknown := [name for name in criteria if name not in CRITERIA]:
        raise ConfigError(f"the judge has no criterion {unknown[0]!r}: expected {', '.join(CRITERIA)}")
    missing = [number for number, text in enumerate(references, start=1) if not text.strip()]
    if "factuality" in criteria and missing:
        raise DataError(f"factuality: reference {missing[0]} is empty ({len(missing)} are): nothing to compare with")
    rows = list(zip(prompts, replies, references, strict=True))
    requests = [_request(name, *row, options) for name in criteria for row in rows]
    outcomes = judge.complete(requests, on_progress)
    found = {}
    for number, name in enumerate(criteria):
        part = outcomes[number * len(rows) : (number + 1) * len(rows)]
        found[name] = Judgements(name, tuple(_judgement(name, outcome) for outcome in part))
    return found


def mean_of_known(dialogues: Sequence[str], scores: Sequence[float | None]) -> MeanOfValues | None:
    """The mean over the entries with a score, each with its dialogue; None if there is no score at all."""
    scored = [(dialogue, score) for dialogue, score in zip(dialogues, scores, strict=True) if score is not None]
    return MeanOfValues(*map(tuple, zip(*scored, strict=True))) if scored else None


@functools.cache
def rubric(name: str) -> str:
    """The text of rubrics/NAME.md."""
    place = importlib.resources.files("empathax.evaluation.judging") / "rubrics" / f"{name}.md"
    return place.read_text(encoding="utf-8").strip()


def rubric_version(name: str) -> str:
    """Twelve hex digits that change with the rubric's text: scores under different versions cannot be compared."""
    return hashlib.sha256(rubric(name).encode()).hexdigest()[:12]


def judge_request(name: str, prompt: Sequence[Message], texts: dict[str, str], options: JudgeOptions) -> ChatRequest:
    """The request that puts `texts` and the conversation `prompt` before the judge, under the rubric `name`.

    A JSON object has no delimiter that a judged text could imitate. The system message of a prompt is the model's own
    business: rows with different ones are judged alike.
    """
    turns = [{"role": turn.role, "content": turn.content} for turn in prompt if turn.role != "system"]
    material = json.dumps({"conversation": turns, **texts}, ensure_ascii=False, indent=1)
    messages = (Message("system", rubric(name)), Message("user", material))
    return ChatRequest(messages, options.max_tokens, temperature=options.temperature, seed=options.seed)


def _request(name: str, prompt: Sequence[Message], reply: str, reference: str, options: JudgeOptions) -> ChatRequest:
    texts = {"trusted_text": reference, "answer": reply} if name == "factuality" else {"reply": reply}
    return judge_request(name, prompt, texts, options)


def _judgement(name: str, outcome: ChatOutcome) -> Judgement:
    if outcome.status != ANSWERED:
        return Judgement(None, outcome.status, outcome.reason)
    answer = final_object(outcome.text)
    score = _score(name, answer) if answer else None
    if answer is None or score is None:
        return Judgement(None, UNPARSABLE, answer=outcome.text)
    return Judgement(score, SCORED, reason_in(answer), outcome.text)


def _score(name: str, answer: dict[str, Any]) -> float | None:
    if name != "factuality":
        return score_in(answer)
    entailed = entailment_in(answer)
    return None if entailed is None else _PERCENT * entailed


def final_object(text: str) -> dict[str, Any] | None:
    """The JSON object at the end of `text`; only marks such as a code fence or a full stop may follow. Else None.

    Objects further up do not count: they may be quoted from what is judged, by an answer that was cut off.
    """
    decoder = json.JSONDecoder()
    position, found, end = text.find("{"), None, 0
    while position >= 0:
        try:
            found, end = decoder.raw_decode(text, position)
            position = text.find("{", end)
        except (ValueError, RecursionError):
            position = text.find("{", position + 1)
    return found if isinstance(found, dict) and not _LETTER_OR_DIGIT.search(text, end) else None


def score_in(answer: dict[str, Any]) -> float | None:
    """`score`, a number from 1 to 5, also written as "4" or "4/5"; None for all else."""
    value: Any = answer.get("score")
    if isinstance(value, str) and (match := _OUT_OF_FIVE.fullmatch(value)):
        value = float(match[1])
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if is_number and LOWEST_SCORE <= value <= HIGHEST_SCORE else None


def entailment_in(answer: dict[str, Any]) -> float | None:
    """1 for the label "entailment", 0 for the labels that are not; None for all else."""
    return ENTAILMENT_LABELS.get(_name(answer.get("label")))


def winner_in(answer: dict[str, Any]) -> str | None:
    """`winner`: "first", "second" or "tie"; None for all else."""
    name = _name(answer.get("winner"))
    return name if name in WINNERS else None


def reason_in(answer: dict[str, Any]) -> str:
    """The judge's reason; "" if it gave none."""
    reason = answer.get("reason")
    return reason if isinstance(reason, str) else ""


def _name(value: Any) -> str:
    return re.sub(r"[\s-]+", "_", value.strip().lower()) if isinstance(value, str) else ""
