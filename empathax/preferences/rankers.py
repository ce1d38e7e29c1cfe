"""Rankers that read the replies: an LLM as judge, and the classifier of levels."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np

from empathax.evaluation.classifiers.classifier import Classifier, classify
from empathax.evaluation.judging.chat_requests import ChatRequest
from empathax.evaluation.judging.judge_material import DEFAULT_OPTIONS, JudgeOptions, rubric_version
from empathax.evaluation.judging.judge_pairs import LOSS, TIE, WIN, compare_replies, comparison_requests
from empathax.evaluation.level_data import LEVEL_HEAD
from empathax.preferences.backends import Backend
from empathax.preferences.ranking import Ranking, Task, target_level

_POINTS = {WIN: 1.0, TIE: 0.5, LOSS: 0.0}
_TURNED = {WIN: LOSS, TIE: TIE, LOSS: WIN, None: None}
UNREADABLE = "unreadable_verdicts"  # a fact of a ranking
RUBRICS = {"levels": "better_validation", "styles": "better_support", "samples": "better_support"}


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

    def rank(self, tasks: Sequence[Task], on_progress: Callable[[int], None] | None = None) -> list[list[Ranking]]:
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
            results[number][second].append(_TURNED[result])
        return [[Ranking(self.name, tuple(map(_score, found)), _unreadable(found))] for found in results]


def judge_requests(task: Task, rubric: str, options: JudgeOptions = DEFAULT_OPTIONS) -> list[ChatRequest]:
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

    def rank(self, tasks: Sequence[Task], on_progress: Callable[[int], None] | None = None) -> list[list[Ranking]]:
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


def _score(results: Sequence[str | None]) -> float | None:
    return sum(_POINTS[result or TIE] for result in results) / len(results) if any(results) else None


def _unreadable(results: Sequence[Sequence[str | None]]) -> Mapping[str, int]:
    count = sum(own.count(None) for own in results) // 2  # each is in the list of two candidates
    return {UNREADABLE: count} if count else {}
