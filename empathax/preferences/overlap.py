"""Whether a pair shows words of the dialogues that models are evaluated on.

Text as replies are compared: its words, without case and spacing.

Texts that are nearly the same: Jaccard similarity of their word triples, exact, with an inverted index.

Prefix filtering (Bayardo et al. 2007): in any one order of all triples, two sets of similarity >= t share one of the
first |set| - ceil(t |set|) + 1 of each. So only these are looked up, and what is found is compared in full.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterable, Mapping, Sequence

from empathax.data.records import CompletionRow, Dialogue, Row
from empathax.preferences.contexts import SPLITS, Pair

WINDOW = 13  # words in a row, as GPT-3's decontamination (Brown et al. 2020, appendix C)
WHOLE = 8  # words from which on a whole turn counts


class HeldOutTexts:
    """Runs of 13 words of held-out dialogues, and their turns of 8 to 12 words as a whole."""

    def __init__(self, texts: Iterable[str] = ()) -> None:
        self._known = {run for text in texts for run in _own_runs(words(text))}
        self._sizes = sorted({len(run) for run in self._known})
        self._shared: dict[str, str] = {}  # turns stand in many contexts

    def __len__(self) -> int:
        return len(self._known)

    def shared(self, text: str) -> str:
        """The first run of words of `text` that a held-out dialogue has; "" if there is none."""
        if text not in self._shared:
            found = words(text)
            runs = (run for size in self._sizes for run in _runs(found, size))
            self._shared[text] = next((" ".join(run) for run in runs if run in self._known), "")
        return self._shared[text]

    def of_pair(self, pair: Pair) -> str:
        """As `shared`, in the seeker's turns and both replies. The supporter's earlier turns do not count by
        themselves: supporters greet in many dialogues with the same sentences."""
        texts = [message.content for message in pair.context.prompt if message.role == "user"]
        texts += [pair.chosen.text, pair.rejected.text]
        return next((run for text in texts if (run := self.shared(text))), "")


def held_out_texts(rows: Mapping[str, Sequence[Row]], split: str) -> HeldOutTexts:
    """What pairs of `split` must not share: the dialogues of the splits after it (`rows` as of `load_by_split`)."""
    later = SPLITS[SPLITS.index(split) + 1 :]
    return HeldOutTexts(text for name in later for row in rows.get(name, ()) for text in _texts(row))


def _texts(row: Row) -> list[str]:
    if isinstance(row, Dialogue):
        return [message.content for message in row.messages]
    prompt = [row.prompt] if isinstance(row.prompt, str) else [message.content for message in row.prompt]
    replies = [row.completion] if isinstance(row, CompletionRow) else [row.chosen, row.rejected]
    return prompt + replies


def _own_runs(found: Sequence[str]) -> list[tuple[str, ...]]:
    return _runs(found, len(found) if WHOLE <= len(found) < WINDOW else WINDOW)


def _runs(found: Sequence[str], size: int) -> list[tuple[str, ...]]:
    return [tuple(found[at : at + size]) for at in range(len(found) - size + 1)]


# Scripts without spaces between words (Thai, Lao, Burmese, Khmer, Japanese, Chinese): each character counts as a word.
_UNSPACED = re.compile("[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]")
_WORD = re.compile(r"\w+(?:'\w+)?")


def plain(text: str) -> str:
    """Text without case and spacing."""
    return " ".join(text.casefold().split())


def words(text: str) -> list[str]:
    """The words of `text`, without case and punctuation."""
    return _WORD.findall(spaced(text.casefold()))


def num_words(text: str) -> int:
    """Words between spaces."""
    return len(spaced(text).split())


def spaced(text: str) -> str:
    """`text` with spaces around what stands without them."""
    return _UNSPACED.sub(r" \g<0> ", text) if _UNSPACED.search(text) else text


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
