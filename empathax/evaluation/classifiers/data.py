"""What classifiers are trained on: ESConv's strategies as levels of validation, and EPITOME's annotations."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

from empathax.data.files import SUFFIXES, BadRow, read_values
from empathax.data.records import Tally
from empathax.data.support_corpora import Utterance, esconv_utterances
from empathax.errors import DataError, raise_all
from empathax.evaluation.classifiers.classifier import NO_LABEL, Head, LabeledText
from empathax.evaluation.metrics.levels import LEVELS

LEVEL_HEAD = Head("level", LEVELS)
_LEVEL_OF_STRATEGY = {
    "question": 0,
    "restatement or paraphrasing": 1,
    "reflection of feelings": 1,
    "affirmation and reassurance": 2,
    "self-disclosure": 3,
    "providing suggestions": 3,
    "information": 3,
}
ASPECTS = ("emotional_reactions", "interpretations", "explorations")
STRENGTHS = ("none", "weak", "strong")
EPITOME_HEADS = tuple(Head(aspect, STRENGTHS) for aspect in ASPECTS)


def level_of_strategy(strategy: str | None) -> int | None:
    """The level (0 to 3) of an ESConv strategy; None for "Others" and for unmarked replies."""
    return _LEVEL_OF_STRATEGY.get((strategy or "").strip().lower())


def split_files(directory: Path) -> dict[str, Path]:
    """The files train.*, valid.* and test.* of a directory. Raises a DataError that names what is missing."""
    found = {
        split: path
        for split in ("train", "valid", "test")
        for path in sorted(directory.glob(f"{split}.*"))
        if path.suffix.lower() in SUFFIXES
    }
    missing = [split for split in ("train", "valid", "test") if split not in found]
    if missing:
        have = ", ".join(sorted(path.name for path in directory.glob("*"))) or "nothing"
        raise DataError(f"{directory}: found {have}; expected also {', '.join(f'{split}.jsonl' for split in missing)}")
    return found


def read_level_examples(path: Path) -> list[LabeledText]:
    """The examples of a file of ESConv dialogues. Raises a DataError with every row that cannot be used."""
    tally = Tally()
    examples: list[LabeledText] = []
    for value, origin in read_values(path, tally):
        try:
            examples += level_examples(esconv_utterances(value))
        except BadRow as error:
            tally.add_bad(origin, str(error))
    raise_all(DataError, f"{len(tally.bad)} row(s) of {path} cannot be used", tally.bad, limit=5)
    if not examples:
        raise DataError(
            f"{path}: no supporter utterance has one of the strategies {', '.join(_LEVEL_OF_STRATEGY)}; "
            "expected ESConv dialogues with a strategy beside each supporter utterance"
        )
    return examples


def level_examples(utterances: list[Utterance]) -> Iterator[LabeledText]:
    """Every supporter utterance that has a level, with the seeker's last turn (empty at the beginning)."""
    seeker = ""
    for role, items in groupby(utterances, key=lambda utterance: utterance.role):
        turn = list(items)
        if role == "user":
            seeker = " ".join(utterance.text for utterance in turn)
            continue
        for utterance in turn:
            level = level_of_strategy(utterance.strategy)
            if level is not None:
                yield LabeledText(utterance.text, seeker, (level,))


def read_epitome_examples(directory: Path) -> dict[str, list[LabeledText]]:
    """Examples by split from DIR/emotional_reactions.csv, interpretations.csv and explorations.csv.

    About 10 % of the seeker posts, by a hash of their text, are held out for "valid", 10 % for "test": no post is on
    two sides. Raises a DataError with everything that cannot be used.
    """
    labels: dict[tuple[str, str], list[int]] = {}
    tally = Tally()
    for number, aspect in enumerate(ASPECTS):
        path = directory / f"{aspect}.csv"
        if not path.is_file():
            raise DataError(f"{path}: no such file; expected {', '.join(f'{name}.csv' for name in ASPECTS)}")
        for row, origin in read_values(path, tally):
            level = str(row.get("level", "")).strip()
            if level not in ("0", "1", "2") or not row.get("response_post"):
                tally.add_bad(origin, f"level = {level!r}: expected 0, 1 or 2, and a response_post")
                continue
            key = (row.get("seeker_post") or "", row["response_post"])
            labels.setdefault(key, [NO_LABEL] * len(ASPECTS))[number] = int(level)
    raise_all(DataError, f"{len(tally.bad)} row(s) of {directory} cannot be used", tally.bad, limit=5)
    splits: dict[str, list[LabeledText]] = {"train": [], "valid": [], "test": []}
    for (post, response), levels in labels.items():
        splits[_split(post)].append(LabeledText(response, post, tuple(levels)))
    return splits


def _split(post: str) -> str:
    tenth = int.from_bytes(hashlib.sha256(f"epitome/{post}".encode()).digest()[:8], "big") % 10
    return {0: "test", 1: "valid"}.get(tenth, "train")
