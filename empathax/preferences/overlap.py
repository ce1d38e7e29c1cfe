"""Replies as words, and which texts share them: words of held-out dialogues, and texts that are nearly the same."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterable, Sequence

WINDOW = 13  # words in a row, as GPT-3's decontamination (Brown et al. 2020, appendix C)
WHOLE = 8  # words from which on a whole turn counts
_SHINGLE = 3  # words
# Scripts without spaces between words (Thai, Lao, Burmese, Khmer, Japanese, Chinese): each character counts as a word.
_UNSPACED = re.compile("[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]")
_WORD = re.compile(r"\w+(?:'\w+)?")


def plain(text: str) -> str:
    """Text without case and spacing."""
    return " ".join(text.casefold().split())


def num_words(text: str) -> int:
    """Words between spaces."""
    return len(spaced(text).split())


def spaced(text: str) -> str:
    """`text` with spaces around every character of a script that writes none."""
    return _UNSPACED.sub(r" \g<0> ", text) if _UNSPACED.search(text) else text


def _words(text: str) -> list[str]:
    """Without case and punctuation."""
    return _WORD.findall(spaced(text.casefold()))


class HeldOutTexts:
    """Runs of 13 words of held-out dialogues, and their turns of 8 to 12 words as a whole."""

    def __init__(self, texts: Iterable[str] = ()) -> None:
        self._known = {run for text in texts for run in _own_runs(_words(text))}
        self._sizes = sorted({len(run) for run in self._known})
        self._shared: dict[str, str] = {}  # turns stand in many contexts

    def __len__(self) -> int:
        return len(self._known)

    def shared(self, text: str) -> str:
        """The first run of words of `text` that a held-out dialogue has; "" if there is none."""
        if text not in self._shared:
            found = _words(text)
            runs = (run for size in self._sizes for run in _runs(found, size))
            self._shared[text] = next((" ".join(run) for run in runs if run in self._known), "")
        return self._shared[text]


def _own_runs(found: Sequence[str]) -> list[tuple[str, ...]]:
    return _runs(found, len(found) if WHOLE <= len(found) < WINDOW else WINDOW)


def _runs(found: Sequence[str], size: int) -> list[tuple[str, ...]]:
    return [tuple(found[at : at + size]) for at in range(len(found) - size + 1)]


class NearDuplicates:
    """Texts kept so far. A text is near another one if the Jaccard similarity of their word triples is at least
    `threshold`; texts of fewer than three words are compared word by word.

    Exact, with an inverted index and prefix filtering (Bayardo et al. 2007): in any one order of all triples, two sets
    of similarity >= t share one of the first |set| - ceil(t |set|) + 1 of each. Only these are looked up, and what is
    found is compared in full.
    """

    def __init__(self, threshold: float = 0.8) -> None:
        self.threshold = threshold
        self._sets: list[frozenset[int]] = []
        self._index: dict[int, list[int]] = {}

    def find(self, text: str) -> int | None:
        """The number (in the order of `add`, from 0) of the first kept text that `text` is near; None if none is."""
        triples = _triples(text)
        found = {number for triple in self._prefix(triples) for number in self._index.get(triple, ())}
        near = (number for number in sorted(found) if _jaccard(triples, self._sets[number]) >= self.threshold)
        return next(near, None)

    def add(self, text: str) -> None:
        """Keeps `text`."""
        triples = _triples(text)
        for triple in self._prefix(triples):
            self._index.setdefault(triple, []).append(len(self._sets))
        self._sets.append(triples)

    def _prefix(self, triples: frozenset[int]) -> list[int]:
        # The order is that of hashes, so nothing has to be known of texts to come.
        length = len(triples) - math.ceil(self.threshold * len(triples) - 1e-9) + 1
        return sorted(triples)[:length]


def _triples(text: str) -> frozenset[int]:
    """Hashes of the word triples of `text`, or of its words where they are fewer than three; at least one."""
    found = _words(text) or [""]
    parts = [" ".join(triple) for triple in _runs(found, _SHINGLE)] or [*found, " ".join(found)]
    return frozenset(int.from_bytes(hashlib.blake2b(part.encode(), digest_size=8).digest(), "big") for part in parts)


def _jaccard(first: frozenset[int], second: frozenset[int]) -> float:
    """|A and B| / |A or B|."""
    common = len(first & second)
    return common / (len(first) + len(second) - common)
