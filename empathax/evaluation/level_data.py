"""Supporter replies of ESConv with their level of validation, from the strategies its annotators marked."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

from empathax.data.files import SUFFIXES, BadRow, read_values
from empathax.data.records import Tally
from empathax.data.support_corpora import Utterance, esconv_utterances
from empathax.errors import DataError, raise_all
from empathax.evaluation.classifiers.classifier import Example, Head
from empathax.evaluation.level_shares import LEVELS

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


def level_of_strategy(strategy: str | None) -> int | None:
    """The level (0 to 3) of an ESConv strategy; None for "Others" and for unmarked replies."""
    return _LEVEL_OF_STRATEGY.get((strategy or "").strip().lower())


def level_examples(utterances: list[Utterance]) -> Iterator[Example]:
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
                yield Example(utterance.text, seeker, (level,))


def read_level_examples(path: Path) -> list[Example]:
    """The examples of a file of ESConv dialogues. Raises a DataError with every row that cannot be used."""
    tally = Tally()
    examples: list[Example] = []
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
