"""Text as replies are compared: its words, without case and spacing."""

from __future__ import annotations

import re

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
