"""Human ranks: candidates out as a CSV file for annotators, their ranks in again.

A line for each candidate: context_id, conversation, candidate (a letter), reply, rank. Letters are dealt by a hash, so
that they say nothing about how a reply was made. An annotator fills in `rank` (1 = fits most), in a copy of their own,
or in one file with a column `annotator`.
"""

from __future__ import annotations

import csv
import hashlib
import string
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from empathax.errors import ConfigError, DataError, raise_all
from empathax.preferences.agreement import fleiss_kappa
from empathax.preferences.ranking import Ranking, Task
from empathax.preferences.reply_pool import plain

COLUMNS = ("context_id", "conversation", "candidate", "reply", "rank")
_FORMULA = ("=", "+", "-", "@", "\t", "\r")  # what a spreadsheet would run


class Agreement(NamedTuple):
    """Fleiss' kappa of the annotators on which candidate fits most and which least, over the contexts that all ranked;
    None where it cannot be told."""

    num_contexts: int
    num_annotators: int
    most: float | None
    least: float | None


class _Rank(NamedTuple):
    rank: int
    reply: str  # as it was shown; "" if the file does not say
    origin: str


class HumanRanker:
    """Ranks out of CSV files; each annotator is a ranker of their own, "human:NAME"."""

    name = "human"

    def __init__(self, ranks: Mapping[str, Mapping[str, Mapping[str, _Rank]]]) -> None:
        self._ranks = ranks  # annotator -> context -> candidate's letter -> rank

    def rank(self, tasks: Sequence[Task]) -> list[list[Ranking]]:
        """See Ranker. A candidate with rank r of n scores (n - r) / (n - 1).

        Raises a DataError for ranks that were given to other replies than the tasks'.
        """
        return [
            [
                Ranking(f"human:{annotator}", _scores(task, by_context[task.context.context_id]))
                for annotator, by_context in self._ranks.items()
                if task.context.context_id in by_context
            ]
            for task in tasks
        ]


def write_review(path: Path, tasks: Sequence[Task]) -> None:
    """Writes the file for annotators. Raises a ConfigError if that is impossible."""
    try:
        with path.open("w", encoding="utf-8-sig", newline="") as file:  # with a mark, by which Excel knows UTF-8
            writer = csv.writer(file)
            writer.writerow(COLUMNS)
            for task in tasks:
                conversation = "\n".join(f"{message.role}: {message.content}" for message in task.context.prompt)
                for letter, number in letters(task).items():
                    texts = (task.context.context_id, conversation, letter, task.candidates[number].text)
                    writer.writerow([*map(_harmless, texts), ""])
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror}; choose another place") from None


def letters(task: Task) -> dict[str, int]:
    """Letter -> number of the candidate: as many letters as candidates, dealt by a hash of context and reply."""
    context_id = task.context.context_id
    keys = [_hash(f"{context_id}\n{number}\n{one.text}") for number, one in enumerate(task.candidates)]
    order = sorted(range(len(keys)), key=keys.__getitem__)
    return dict(zip(string.ascii_uppercase, order, strict=False))


def read_reviews(paths: Sequence[Path]) -> HumanRanker:
    """The ranks of several files; an annotator is named by the column `annotator`, else by the file's name.

    Raises:
        DataError: a file that cannot be read, or ranks that are no whole numbers from 1 on; all problems at once.
    """
    ranks: dict[str, dict[str, dict[str, _Rank]]] = {}
    problems: list[str] = []
    for path in paths:
        for number, row in _rows(path):
            text = (row.get("rank") or "").strip()
            if not text:
                continue
            if not text.isdigit() or int(text) < 1:
                problems.append(f"{path}:{number}: rank {text!r}, expected 1 (fits most), 2, ...")
                continue
            annotator = (row.get("annotator") or "").strip() or path.stem
            own = ranks.setdefault(annotator, {}).setdefault(row["context_id"].lstrip("'"), {})
            letter = row["candidate"].strip().upper()
            if letter in own:
                problems.append(f"{path}:{number}: {annotator} ranks candidate {letter} of this context a second time")
            own[letter] = _Rank(int(text), row.get("reply") or "", f"{path}:{number}")
    raise_all(DataError, "the ranks cannot be used", problems, limit=5)
    return HumanRanker(ranks)


def agreement(tasks: Sequence[Task], rankings: Sequence[Sequence[Ranking]]) -> Agreement:
    """How far annotators agree. A category is what was asked for (a level, a style, a sample's number)."""
    names = sorted({one.ranker for found in rankings for one in found if one.ranker.startswith("human:")})
    votes: dict[str, list[list[str]]] = {"most": [], "least": []}
    for task, found in zip(tasks, rankings, strict=True):
        own = [one for one in found if one.ranker.startswith("human:")]
        for side, side_votes in votes.items():
            picked = [getattr(one, side) for one in own]
            if len(own) == len(names) > 1 and None not in picked:
                side_votes.append([str(task.candidates[number].source.get("variant", number)) for number in picked])
    return Agreement(
        max(map(len, votes.values())), len(names), fleiss_kappa(votes["most"]), fleiss_kappa(votes["least"])
    )


def _rows(path: Path) -> list[tuple[int, dict[str, str]]]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            rows = [(reader.line_num, row) for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: cannot be read as CSV in UTF-8: {error}") from None
    missing = {"context_id", "candidate", "rank"} - set(reader.fieldnames or ())
    if missing:
        raise DataError(f"{path}: no column {', '.join(sorted(missing))}; expected those of review.csv")
    return rows


def _scores(task: Task, ranks: Mapping[str, _Rank]) -> tuple[float | None, ...]:
    most = max(2, *(given.rank for given in ranks.values()))
    found: list[float | None] = [None] * len(task.candidates)
    dealt = letters(task)
    for letter, given in ranks.items():
        number = dealt.get(letter)
        if number is None or (given.reply and plain(_harmless(task.candidates[number].text)) != plain(given.reply)):
            raise DataError(
                f"{given.origin}: candidate {letter} of context {task.context.context_id} is another reply than "
                "the one that was ranked: rank the review.csv of this set"
            )
        found[number] = (most - given.rank) / (most - 1)
    return tuple(found)


def _harmless(text: str) -> str:
    return f"'{text}" if text.startswith(_FORMULA) else text


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
