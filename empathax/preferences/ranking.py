"""Which of several replies fits its context most and which least: the majority's choice, and the rankers that vote.

Rankers are the design (what a reply was asked to be), an LLM as judge and the classifier of levels; people's ranks are
in review.py.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any, Protocol

import numpy as np

from empathax.errors import ConfigError, DataError
from empathax.evaluation.classifiers.classifier import Classifier, classify
from empathax.evaluation.classifiers.data import LEVEL_HEAD
from empathax.evaluation.judging.chat_requests import ChatRequest
from empathax.evaluation.judging.judge import DEFAULT_OPTIONS, JudgeOptions, rubric_version
from empathax.evaluation.judging.judge_pairs import LOSS, TIE, WIN, compare_replies, comparison_requests
from empathax.evaluation.metrics.levels import LEVELS
from empathax.preferences.backends import Backend
from empathax.preferences.pairs import Candidate, Context, Pair

NO_MAJORITY_MOST = "no majority for the most fitting reply"
NO_MAJORITY_LEAST = "no majority for the least fitting reply"
SAME = "the same reply is most and least fitting"
SMALL_MARGIN = "the margin is too small"
TOO_FEW = "fewer than two candidates"
UNRANKED = "nobody ranked it"
RUBRICS = {"levels": "better_validation", "styles": "better_support", "samples": "better_support"}
UNREADABLE = "unreadable_verdicts"  # a fact of a ranking
_POINTS = {WIN: 1.0, TIE: 0.5, LOSS: 0.0}
_REVERSED = {WIN: LOSS, TIE: TIE, LOSS: WIN, None: None}


@dataclass(frozen=True)
class RankingTask:
    """A context whose candidates are to be ranked."""

    context: Context
    candidates: tuple[Candidate, ...]


@dataclass(frozen=True)
class Ranking:
    """How one ranker sees the candidates of a task.

    Attributes:
        ranker: its name, such as "judge", "levels" or "human:NAME".
        scores: one a candidate, 0 (least fitting) to 1; None where it has no view.
        facts: what else it says, plain values, for the file of candidates.
    """

    ranker: str
    scores: tuple[float | None, ...]
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def most(self) -> int | None:
        """The candidate that fits most; None if two share that place."""
        return self._extreme(max(self._known, default=None))

    @property
    def least(self) -> int | None:
        """The candidate that fits least; None if two share that place."""
        return self._extreme(min(self._known, default=None))

    @property
    def _known(self) -> list[float]:
        return [score for score in self.scores if score is not None]

    def _extreme(self, value: float | None) -> int | None:
        found = [number for number, score in enumerate(self.scores) if score == value and score is not None]
        return found[0] if len(found) == 1 and len(self._known) > 1 else None


class Ranker(Protocol):
    """Ranks the candidates of tasks."""

    name: str

    @property
    def settings(self) -> Mapping[str, Any]:
        """What decides its ranks, beside the replies; plain values."""
        ...

    def rank(
        self, tasks: Sequence[RankingTask], on_progress: Callable[[int], None] | None = None
    ) -> list[list[Ranking]]:
        """For each task a ranking, or several (one for each annotator), or none. `on_progress` gets the
        number of requests done, where any are made."""
        ...


def choose(task: RankingTask, rankings: Sequence[Ranking], method: str, min_margin: float = 0.0) -> Pair | str:
    """The pair of most and least fitting reply, or why there is none, by EVA's rule: a reply is chosen (rejected) if
    more than half of the rankers find that it fits most (least), and the context is dropped otherwise.

    A ranker that gives a place to two replies abstains, but counts. The margin is the mean over rankers of the
    difference in score.
    """
    if len(task.candidates) < 2:
        return TOO_FEW
    if not rankings:
        return UNRANKED
    most = _majority([ranking.most for ranking in rankings])
    least = _majority([ranking.least for ranking in rankings])
    if most is None or least is None:
        return NO_MAJORITY_MOST if most is None else NO_MAJORITY_LEAST
    if most == least:
        return SAME
    scores = {
        ranking.ranker: (first, second)
        for ranking in rankings
        if (first := ranking.scores[most]) is not None and (second := ranking.scores[least]) is not None
    }
    margin = sum(first - second for first, second in scores.values()) / len(scores)
    if margin < min_margin:
        return SMALL_MARGIN
    return Pair(task.context, task.candidates[most], task.candidates[least], method, scores, round(margin, 6))


def _majority(votes: Sequence[int | None]) -> int | None:
    """What more than half of all votes name."""
    named = Counter(vote for vote in votes if vote is not None).most_common(1)
    if not named:
        return None
    number, count = named[0]
    return number if 2 * count > len(votes) else None


def target_level(context: Context) -> int:
    """The level (0 to 3) that fits the context by the stages of DBT: the dialogue's quartile.

    Raises a DataError where the place in a dialogue is not known.
    """
    if context.quartile is None:
        raise DataError(
            f"{context.origin}: the place in a dialogue is not known, so no level of validation is expected there: use "
            "whole dialogues, or rank with a judge or people"
        )
    return context.quartile


def check_rankers(names: Sequence[str], kind: str, contexts: Sequence[Context]) -> None:
    """Raises a ConfigError or DataError, before anything is asked, for rankers that cannot rank such candidates."""
    if kind == "samples" and "design" in names:
        raise ConfigError(
            "samples of one prompt have no design to rank them by: --rank=judge, levels, human or several"
        )
    if "levels" in names or (kind, "design" in names) == ("levels", True):
        for context in contexts:
            target_level(context)


class DesignRanker:
    """Takes candidates for what they were asked to be: the nearer the level to that of the place in the dialogue, the
    more fitting; a supportive style before a prescriptive one."""

    name = "design"
    settings: Mapping[str, Any] = {}

    def rank(
        self, tasks: Sequence[RankingTask], on_progress: Callable[[int], None] | None = None
    ) -> list[list[Ranking]]:
        """See Ranker."""
        return [
            [Ranking(self.name, tuple(self._score(task.context, one) for one in task.candidates))] for task in tasks
        ]

    def _score(self, context: Context, candidate: Candidate) -> float | None:
        variant = candidate.source.get("variant")
        if variant in LEVELS:
            return 1.0 - abs(LEVELS.index(variant) - target_level(context)) / (len(LEVELS) - 1)
        return {"supportive": 1.0, "prescriptive": 0.0}.get(str(variant))


class JudgeRanker:
    """An LLM that compares every two candidates of a task in both orders; the score is the mean over the others of 1
    for a win, 0.5 for a tie. A verdict that changes with the order is a tie, and so is one that cannot be read; a
    candidate of which none can be read has no score."""

    name = "judge"

    def __init__(self, backend: Backend, rubric: str, options: JudgeOptions = DEFAULT_OPTIONS) -> None:
        self._backend, self.rubric, self._options = backend, rubric, options

    @property
    def settings(self) -> Mapping[str, Any]:
        """See Ranker."""
        version = rubric_version(self.rubric)
        return {**self._backend.identity, "rubric": self.rubric, "rubric_version": version, **vars(self._options)}

    def rank(
        self, tasks: Sequence[RankingTask], on_progress: Callable[[int], None] | None = None
    ) -> list[list[Ranking]]:
        """See Ranker. Raises ConfigError and DataError as `ChatServer.complete`."""
        duels = [
            (number, first, second)
            for number, task in enumerate(tasks)
            for first, second in combinations(range(len(task.candidates)), 2)
        ]
        comparison = compare_replies(
            self._backend,
            [tasks[number].context.prompt for number, _, _ in duels],
            replies_a=[tasks[number].candidates[first].text for number, first, _ in duels],
            replies_b=[tasks[number].candidates[second].text for number, _, second in duels],
            options=self._options,
            rubric=self.rubric,
            on_progress=on_progress,
        )
        results: list[list[list[str | None]]] = [[[] for _ in task.candidates] for task in tasks]
        for (number, first, second), result in zip(duels, comparison.results, strict=True):
            results[number][first].append(result)
            results[number][second].append(_REVERSED[result])
        return [[Ranking(self.name, tuple(map(_score, found)), _unreadable(found))] for found in results]


def _score(results: Sequence[str | None]) -> float | None:
    return sum(_POINTS[result or TIE] for result in results) / len(results) if any(results) else None


def _unreadable(results: Sequence[Sequence[str | None]]) -> Mapping[str, int]:
    count = sum(own.count(None) for own in results) // 2  # each is in the list of two candidates
    return {UNREADABLE: count} if count else {}


def judge_requests(task: RankingTask, rubric: str, options: JudgeOptions = DEFAULT_OPTIONS) -> list[ChatRequest]:
    """What a JudgeRanker asks about a task."""
    texts = [candidate.text for candidate in task.candidates]
    return [
        request
        for a, b in combinations(texts, 2)
        for request in comparison_requests(task.context.prompt, a, b, options, rubric)
    ]


class LevelRanker:
    """The classifier of levels against the level that fits the place in the dialogue: 1 less the expected distance
    between the two, as a share of the largest there is."""

    name = "levels"

    def __init__(self, classifier: Classifier, path: str) -> None:
        """`path` says which classifier that is, for the settings."""
        self._classifier, self._path = classifier, path

    @property
    def settings(self) -> Mapping[str, Any]:
        """See Ranker."""
        return {"classifier": self._path}

    def rank(
        self, tasks: Sequence[RankingTask], on_progress: Callable[[int], None] | None = None
    ) -> list[list[Ranking]]:
        """See Ranker. Raises a DataError for a context whose place in a dialogue is not known."""
        targets = [target_level(task.context) for task in tasks]
        rows = [(one.text, task.context.seeker) for task in tasks for one in task.candidates]
        texts, seekers = zip(*rows, strict=True) if rows else ((), ())
        logits_EL = classify(self._classifier, texts, seekers)[LEVEL_HEAD.name] if rows else np.zeros((0, 4))
        shares_EL = np.exp(logits_EL - logits_EL.max(axis=-1, keepdims=True, initial=0.0))
        shares_EL /= shares_EL.sum(axis=-1, keepdims=True)
        found, start = [], 0
        for task, target in zip(tasks, targets, strict=True):
            own_CL = shares_EL[start : start + len(task.candidates)]
            start += len(task.candidates)
            distance_C = own_CL @ np.abs(np.arange(own_CL.shape[1]) - target) / (own_CL.shape[1] - 1)
            scores = tuple(round(1.0 - float(value), 6) for value in distance_C)
            seen = [LEVEL_HEAD.labels[int(level)] for level in own_CL.argmax(axis=-1)]
            found.append([Ranking(self.name, scores, {"level_seen": seen, "target": LEVEL_HEAD.labels[target]})])
        return found
