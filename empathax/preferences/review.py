"""Human ranks: candidates out as a CSV file for annotators, their ranks in again, and how far these agree.

A line for each candidate: context_id, conversation, candidate (a letter), reply, rank. Letters are dealt by a hash, so
that they say nothing about how a reply was made. An annotator fills in `rank` (1 = fits most), in a copy of their own,
or in one file with a column `annotator`.
"""

from __future__ import annotations

import csv
import hashlib
import io
import string
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from empathax import json_text
from empathax.errors import ConfigError, DataError, raise_all
from empathax.evaluation import output
from empathax.preferences.overlap import plain
from empathax.preferences.ranking import Ranker, Ranking, RankingTask
from empathax.shown import shown

COLUMNS = ("context_id", "conversation", "candidate", "reply", "rank")
LETTERS = string.ascii_uppercase
_FORMULA = ("=", "+", "-", "@", "\t", "\r")  # what a spreadsheet would run


class Agreement(NamedTuple):
    """Fleiss' kappa of the annotators on which candidate fits most and which least; None where kappa is undefined.

    Of the `num_contexts` that all ranked, kappa is over those where nobody put two candidates in that place:
    `num_most` and `num_least`.
    """

    num_contexts: int
    num_annotators: int
    most: float | None
    least: float | None
    num_most: int
    num_least: int


class _Rank(NamedTuple):
    rank: int
    reply: str  # as it was shown; "" if the file does not say
    origin: str


class HumanRanker:
    """Ranks out of CSV files; each annotator is a ranker of their own, "human:NAME"."""

    name = "human"
    settings: Mapping[str, Any] = {}  # ranks may be added

    def __init__(self, ranks: Mapping[str, Mapping[str, Mapping[str, _Rank]]]) -> None:
        self._ranks = ranks  # annotator -> context -> candidate's letter -> rank

    @property
    def context_ids(self) -> dict[str, str]:
        """Contexts that somebody ranked -> where."""
        return {
            context_id: next(iter(ranks.values())).origin
            for by_context in self._ranks.values()
            for context_id, ranks in by_context.items()
        }

    def rank(
        self, tasks: Sequence[RankingTask], on_progress: Callable[[int], None] | None = None
    ) -> list[list[Ranking]]:
        """See Ranker. A candidate with rank r of n scores (n - r) / (n - 1).

        Raises a DataError for ranks that were given to other replies than the tasks', to some of them only, or that
        are larger than their number.
        """
        return [
            [
                Ranking(f"human:{annotator}", _scores(task, by_context[task.context.context_id]))
                for annotator, by_context in self._ranks.items()
                if task.context.context_id in by_context
            ]
            for task in tasks
        ]


def check_all_used(rankers: Sequence[Ranker], tasks: Sequence[RankingTask]) -> None:
    """Raises a DataError for people's ranks of contexts that are none of `tasks`."""
    known = {task.context.context_id for task in tasks}
    problems = [
        f"{origin}: there is no context {context_id} in this set"
        for ranker in rankers
        if isinstance(ranker, HumanRanker)
        for context_id, origin in ranker.context_ids.items()
        if context_id not in known
    ]
    raise_all(DataError, "the ranks cannot be used; rank the review.csv of this set", problems, limit=5)


def is_unranked(ranker: Ranker) -> bool:
    """Whether it stands for people who have not ranked yet."""
    return isinstance(ranker, HumanRanker) and not ranker.context_ids


def write_review(path: Path, tasks: Sequence[RankingTask]) -> None:
    """Writes the file for annotators. One that holds ranks is not touched.

    Raises a ConfigError if those are ranks of other replies, or nothing can be written.
    """
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(COLUMNS)
    for task in tasks:
        conversation = "\n".join(f"{message.role}: {message.content}" for message in task.context.prompt)
        for letter, number in letters(task).items():
            texts = (task.context.context_id, conversation, letter, task.candidates[number].text)
            writer.writerow([*map(_harmless, texts), ""])
    before = [row for _, row in _rows(path)] if path.exists() else []
    if not any((row.get("rank") or "").strip() for row in before):
        output.write_text(path, "\ufeff" + text.getvalue())  # a mark by which Excel knows UTF-8
        return
    now = csv.DictReader(io.StringIO(text.getvalue(), newline=""))
    if [_without_rank(row) for row in before] != [_without_rank(row) for row in now]:
        raise ConfigError(f"{path} holds ranks of other replies than this set's: move it away, or name another --out")


def letters(task: RankingTask) -> dict[str, int]:
    """Letter -> number of the candidate: as many letters as candidates, dealt by a hash of context and reply."""
    context_id = task.context.context_id
    keys = [_hash(f"{context_id}\n{number}\n{one.text}") for number, one in enumerate(task.candidates)]
    order = sorted(range(len(keys)), key=keys.__getitem__)
    return dict(zip(LETTERS, order, strict=False))


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
            if not text.isdecimal() or int(text) < 1:
                problems.append(f"{path}:{number}: rank {text!r}, expected 1 (fits most), 2, ...")
                continue
            annotator = (row.get("annotator") or "").strip() or path.stem
            own = ranks.setdefault(annotator, {}).setdefault((row["context_id"] or "").lstrip("'"), {})
            letter = (row["candidate"] or "").strip().upper()
            if letter in own:
                problems.append(f"{path}:{number}: {annotator} ranks candidate {letter} of this context a second time")
            own[letter] = _Rank(int(text), row.get("reply") or "", f"{path}:{number}")
    raise_all(DataError, "the ranks cannot be used", problems, limit=5)
    return HumanRanker(ranks)


def agreement(tasks: Sequence[RankingTask], rankings: Sequence[Sequence[Ranking]]) -> Agreement:
    """How far annotators agree. A category is what was asked for (a level, a style, a sample's number)."""
    names = sorted({one.ranker for found in rankings for one in found if one.ranker.startswith("human:")})
    votes: dict[str, list[list[str]]] = {"most": [], "least": []}
    num_contexts = 0
    for task, found in zip(tasks, rankings, strict=True):
        own = [one for one in found if one.ranker.startswith("human:")]
        if not len(own) == len(names) > 1:
            continue
        num_contexts += 1
        for side, side_votes in votes.items():
            picked = [getattr(one, side) for one in own]
            if None not in picked:
                side_votes.append([str(task.candidates[number].source.get("variant", number)) for number in picked])
    most, least = votes["most"], votes["least"]
    return Agreement(num_contexts, len(names), fleiss_kappa(most), fleiss_kappa(least), len(most), len(least))


def fleiss_kappa(labels: Sequence[Sequence[str]]) -> float | None:
    """Kappa of `labels`: for each subject the category that each of n raters gave it (who rated may differ).
    Fleiss 1971, "Measuring nominal scale agreement among many raters", Psychological Bulletin 76.

        p_j = share of all labels that are category j          Pe = sum p_j^2
        P_i = (sum_j n_ij^2 - n) / (n (n - 1))                  kappa = (mean P_i - Pe) / (1 - Pe)

    1 is full agreement, 0 what chance gives. None without subjects, or where all labels are one category (0/0).

    Raises:
        DataError: not the same number of raters, at least two, for every subject.
    """
    if not labels:
        return None
    sizes = {len(subject) for subject in labels}
    if len(sizes) > 1 or min(sizes) < 2:
        found = ", ".join(map(str, sorted(sizes)))
        raise DataError(
            f"found subjects with {found} raters: Fleiss' kappa needs the same number, at least 2, for each"
        )
    categories = sorted({label for subject in labels for label in subject})
    counts_NJ = np.array([[list(subject).count(name) for name in categories] for subject in labels], float)
    num_raters = sizes.pop()
    agreed_N = ((counts_NJ**2).sum(axis=1) - num_raters) / (num_raters * (num_raters - 1))
    by_chance = float(((counts_NJ.sum(axis=0) / counts_NJ.sum()) ** 2).sum())
    return None if by_chance == 1.0 else (float(agreed_N.mean()) - by_chance) / (1.0 - by_chance)


def _rows(path: Path) -> list[tuple[int, dict[str, str]]]:
    """(line, cells) of a file with commas or semicolons, which spreadsheets of many countries write."""
    try:
        text = json_text.read_text(path, DataError)
        head = text.split("\n", 1)[0]
        reader = csv.DictReader(
            io.StringIO(text, newline=""), delimiter=";" if head.count(";") > head.count(",") else ","
        )
        rows = [(reader.line_num, row) for row in reader]
    except FileNotFoundError:
        raise DataError(f"{path} cannot be read: there is no such file") from None
    except csv.Error as error:
        raise DataError(f"{path}: cannot be read as CSV: {shown(str(error))}; save it so") from None
    found = list(reader.fieldnames or ())
    if missing := {"context_id", "candidate", "rank"} - set(found):
        raise DataError(
            f"{path}: no column {', '.join(sorted(missing))}; its columns are {', '.join(map(repr, found)) or 'none'}, "
            "expected those of review.csv"
        )
    return rows


def _without_rank(row: Mapping[str, str]) -> list[str]:
    return ["\n".join((row.get(name) or "").splitlines()) for name in COLUMNS[:-1]]


def _scores(task: RankingTask, ranks: Mapping[str, _Rank]) -> tuple[float | None, ...]:
    origin, context_id = next(iter(ranks.values())).origin, task.context.context_id
    found: list[float | None] = [None] * len(task.candidates)
    most, dealt = max(2, len(found)), letters(task)
    if len(ranks) < len(found):
        raise DataError(
            f"{origin}: context {context_id} has {len(ranks)} ranks for {len(found)} replies: rank all, or none"
        )
    for letter, given in ranks.items():
        number = dealt.get(letter)
        if number is None or (given.reply and plain(_harmless(task.candidates[number].text)) != plain(given.reply)):
            raise DataError(
                f"{given.origin}: candidate {letter} of context {context_id} is another reply than the one that was "
                "ranked: rank the review.csv of this set"
            )
        if given.rank > most:
            raise DataError(f"{given.origin}: rank {given.rank}, but context {context_id} has {len(found)} replies")
        found[number] = (most - given.rank) / (most - 1)
    return tuple(found)


def _harmless(text: str) -> str:
    return f"'{text}" if text.startswith(_FORMULA) else text


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
