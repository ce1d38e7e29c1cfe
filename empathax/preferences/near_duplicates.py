"""Texts that are nearly the same: Jaccard similarity of their word triples, exact, with an inverted index.

Prefix filtering (Bayardo et al. 2007): in any one order of all triples, two sets of similarity >= t share one of the
first |set| - ceil(t |set|) + 1 of each. So only these are looked up, and what is found is compared in full.
"""

from __future__ import annotations

import hashlib
import math

from empathax.preferences.words import words

_SHINGLE = 3


class NearDuplicates:
    """Texts kept so far. A text is near another one if the Jaccard similarity of their word triples is at least
    `threshold`; texts of fewer than three words are compared word by word."""

    def __init__(self, threshold: float = 0.8) -> None:
        self.threshold = threshold
        self._sets: list[frozenset[int]] = []
        self._index: dict[int, list[int]] = {}

    def find(self, text: str) -> int | None:
        """The number (in the order of `add`, from 0) of the first kept text that `text` is near; None if none is."""
        triples = shingles(text)
        found = {number for triple in self._prefix(triples) for number in self._index.get(triple, ())}
        return next(
            (number for number in sorted(found) if jaccard(triples, self._sets[number]) >= self.threshold), None
        )

    def add(self, text: str) -> None:
        """Keeps `text`."""
        triples = shingles(text)
        for triple in self._prefix(triples):
            self._index.setdefault(triple, []).append(len(self._sets))
        self._sets.append(triples)

    def _prefix(self, triples: frozenset[int]) -> list[int]:
        # The order is that of hashes, so nothing has to be known of texts to come.
        length = len(triples) - math.ceil(self.threshold * len(triples) - 1e-9) + 1
        return sorted(triples)[:length]


def shingles(text: str) -> frozenset[int]:
    """Hashes of the word triples of `text`, or of its words where they are fewer than three; at least one."""
    found = words(text) or [""]
    count = len(found) - _SHINGLE + 1
    parts = [" ".join(found[at : at + _SHINGLE]) for at in range(count)] if count > 0 else [*found, " ".join(found)]
    return frozenset(int.from_bytes(hashlib.blake2b(part.encode(), digest_size=8).digest(), "big") for part in parts)


def jaccard(first: frozenset[int], second: frozenset[int]) -> float:
    """|A and B| / |A or B|."""
    common = len(first & second)
    return common / (len(first) + len(second) - common)
