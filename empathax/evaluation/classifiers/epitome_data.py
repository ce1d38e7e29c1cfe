"""EPITOME (Sharma et al. 2020): three aspects of empathy in answers to a seeker's post, each none, weak or strong."""

from __future__ import annotations

import hashlib
from pathlib import Path

from empathax.data.files import read_values
from empathax.data.records import Tally
from empathax.errors import DataError, raise_all
from empathax.evaluation.classifiers.classifier import NO_LABEL, Example, Head

ASPECTS = ("emotional_reactions", "interpretations", "explorations")
STRENGTHS = ("none", "weak", "strong")
EPITOME_HEADS = tuple(Head(aspect, STRENGTHS) for aspect in ASPECTS)


def read_epitome_examples(directory: Path) -> dict[str, list[Example]]:
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
    splits: dict[str, list[Example]] = {"train": [], "valid": [], "test": []}
    for (post, response), levels in labels.items():
        splits[_split(post)].append(Example(response, post, tuple(levels)))
    return splits


def _split(post: str) -> str:
    tenth = int.from_bytes(hashlib.sha256(f"epitome/{post}".encode()).digest()[:8], "big") % 10
    return {0: "test", 1: "valid"}.get(tenth, "train")
