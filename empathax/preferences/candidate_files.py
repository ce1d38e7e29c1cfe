"""What was written and how it was ranked, as files: candidates.jsonl, and review.csv where people rank."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from empathax.evaluation import output
from empathax.preferences.candidates import Written
from empathax.preferences.pairs import Candidate
from empathax.preferences.ranking import Ranker, Ranking, Task
from empathax.preferences.review import HumanRanker, write_review

CANDIDATES, REVIEW = "candidates.jsonl", "review.csv"


@dataclass(frozen=True)
class Judged:
    """A context with what was written for it, and every ranker's view of the candidates. `is_ranked`: whether all
    rankers have one; people may not have come to it yet."""

    task: Task
    written: Written
    rankings: tuple[Ranking, ...]
    is_ranked: bool

    @property
    def replies(self) -> Iterator[Candidate]:
        """All replies, also those that were left out."""
        yield from self.written.candidates
        for _, reply in self.written.left_out:
            yield reply


def write_files(out: Path, judged: Mapping[str, Sequence[Judged]], rankers: Sequence[Ranker]) -> None:
    """Writes the files of all splits. Raises a ConfigError if `out` has a review.csv with ranks of other replies."""
    if any(isinstance(ranker, HumanRanker) for ranker in rankers):
        write_review(out / REVIEW, [one.task for part in judged.values() for one in part])
    output.write_json_lines(out / CANDIDATES, (_row(split, one) for split, part in judged.items() for one in part))


def _row(split: str, one: Judged) -> dict[str, Any]:
    context = one.task.context
    return {
        "split": split,
        "context_id": context.context_id,
        "prompt": [{"role": turn.role, "content": turn.content} for turn in context.prompt],
        "candidates": [{"text": reply.text, **reply.source} for reply in one.written.candidates],
        "left_out": [{"reason": why, "text": reply.text, **reply.source} for why, reply in one.written.left_out],
        "rankings": [{"ranker": found.ranker, "scores": found.scores, **found.facts} for found in one.rankings],
    }
