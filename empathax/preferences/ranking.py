"""Which of several replies fits its context most and which least: a vote for each ranker, and the majority's choice."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from empathax.errors import ConfigError, DataError
from empathax.evaluation.level_shares import LEVELS
from empathax.preferences.contexts import Context
from empathax.preferences.pairs import Candidate, Pair

NO_MAJORITY_MOST = "no majority for the most fitting reply"
NO_MAJORITY_LEAST = "no majority for the least fitting reply"
SAME = "the same reply is most and least fitting"
SMALL_MARGIN = "the margin is too small"
TOO_FEW = "fewer than two candidates"
UNRANKED = "nobody ranked it"


@dataclass(frozen=True)
class Task:
    """A context with its candidates."""

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

    def rank(self, tasks: Sequence[Task], on_progress: Callable[[int], None] | None = None) -> list[list[Ranking]]:
        """For each task a ranking, or several (one for each annotator), or none. `on_progress` is told how many
        requests are done, where any are made."""
        ...


def choose(task: Task, rankings: Sequence[Ranking], method: str, min_margin: float = 0.0) -> Pair | str:
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

    def rank(self, tasks: Sequence[Task], on_progress: Callable[[int], None] | None = None) -> list[list[Ranking]]:
        """See Ranker."""
        return [
            [Ranking(self.name, tuple(self._score(task.context, one) for one in task.candidates))] for task in tasks
        ]

    def _score(self, context: Context, candidate: Candidate) -> float | None:
        variant = candidate.source.get("variant")
        if variant in LEVELS:
            return 1.0 - abs(LEVELS.index(variant) - target_level(context)) / (len(LEVELS) - 1)
        return {"supportive": 1.0, "prescriptive": 0.0}.get(str(variant))
