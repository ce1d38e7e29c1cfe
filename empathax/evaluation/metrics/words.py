"""Text to word ids on the host, cut exactly as three reference implementations cut it. None of them is imported.

- `treebank_words`: NLTK's TreebankWordTokenizer (the Penn Treebank sed script) on lower-cased text
- `rouge_words`: rouge-score 0.1.2 without stemming
- `mteval_words`: sacrebleu's "13a" (mteval-v13a.pl)

`tokenized` cuts many texts at once: each distinct piece between two spaces is tokenized once. No rule of the three
looks past the space beside a piece, so a text's words are those of its pieces. Where a rule asks for an end of the
text, the piece there has a key of its own. A text with line breaks or other spaces than U+0020 is one piece as a whole.
tests/evaluation/metrics/test_words.py holds this against the references.
"""

from __future__ import annotations

import functools
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import chain, count, pairwise

import numpy as np
from jaxtyping import Bool, Int32, Int64

MAX_ID = 2**31 - 2
_MIN_ROW = 8


@dataclass(frozen=True)
class TextIds:
    """N texts as ids from 0 to MAX_ID, end to end; equal words have equal ids."""

    ids_K: Int32[np.ndarray, " K"]
    lengths_N: Int64[np.ndarray, " N"]

    @classmethod
    def of(cls, rows: Iterable[Sequence[int]]) -> TextIds:
        """The texts whose ids are `rows`."""
        rows = list(rows)
        return cls(np.array(list(chain.from_iterable(rows)), np.int32), np.array(list(map(len, rows)), np.int64))

    def __getitem__(self, part: slice) -> TextIds:
        """Consecutive texts."""
        start, stop, _ = part.indices(len(self.lengths_N))
        before, inside = int(self.lengths_N[:start].sum()), int(self.lengths_N[start:stop].sum())
        return TextIds(self.ids_K[before : before + inside], self.lengths_N[start:stop])

    def rows(self) -> tuple[tuple[int, ...], ...]:
        """The ids of each text."""
        ids, ends = self.ids_K.tolist(), np.cumsum(self.lengths_N).tolist()
        return tuple(tuple(ids[start:end]) for start, end in pairwise([0, *ends]))

    def in_one_row(self) -> tuple[Int32[np.ndarray, " P"], Int64[np.ndarray, " P"]]:
        """(ids, number of the text) at the places of all texts in one row, with -1 after each text.

        The row is filled up with -1 to a power of two, so that any set of texts compiles few programs.
        """
        num_texts = len(self.lengths_N)
        size = 1 << (max(_MIN_ROW, len(self.ids_K) + num_texts) - 1).bit_length()
        text_K = np.repeat(np.arange(num_texts), self.lengths_N)
        places_K = np.arange(len(self.ids_K)) + text_K
        ids_P, text_P = np.full(size, -1, np.int32), np.zeros(size, np.int64)
        ids_P[places_K], text_P[places_K] = self.ids_K, text_K
        return ids_P, text_P


TokenizedPairs = Callable[[str], tuple[TextIds, TextIds]]  # name of a tokenization -> replies, references


def tokenized(replies: Sequence[str], references: Sequence[str]) -> TokenizedPairs:
    """The word ids of texts under "treebank", "rouge" and "mteval", each made when it is first asked for."""
    texts = [*replies, *references]
    lower = functools.cache(lambda: _cut([text.lower() for text in texts], mark_ends=True))
    ways: dict[str, Callable[[], TextIds]] = {
        "treebank": lambda: lower().ids(_treebank_piece),
        "rouge": lambda: lower().ids(rouge_words),
        "mteval": lambda: _cut(texts, mark_ends=False).ids(_mteval_piece),
    }

    @functools.cache
    def ids_of(tokenization: str) -> tuple[TextIds, TextIds]:
        ids = ways[tokenization]()
        return ids[: len(replies)], ids[len(replies) :]

    return ids_of


# NLTK matches with the `regex` package, whose \s leaves out the separators U+001C to U+001F that re counts as space.
_SPACE = r"[^\S\x1c-\x1f]"

# (characters of which a text must have one for the rule to find anything; pattern; replacement), in the script's order
_BEFORE_PADDING = (
    ('"', r'^"', r"``"),
    ('`"', r"(``)", r" \1 "),
    ("\"'", r"([ (\[{<])(\"|'{2})", r"\1 `` "),
    (":,", r"([:,])([^\d])", r" \1 \2"),
    (":,", r"([:,])$", r" \1 "),
    (".", r"\.\.\.", r" ... "),
    (";@#$%&", r"[;@#$%&]", r" \g<0> "),
    (".", rf"([^.])(\.)([\])}}>\"']*){_SPACE}*$", r"\1 \2\3 "),
    ("?!", r"[?!]", r" \g<0> "),
    ("'", r"([^'])' ", r"\1 ' "),
    ("[](){}<>", r"[\]\[(){}<>]", r" \g<0> "),
    ("-", r"--", r" -- "),
)
_AFTER_PADDING = (
    ("'", r"''", r" '' "),
    ('"', r'"', r" '' "),
    ("'", r"([^' ])('[sS]|'[mM]|'[dD]|') ", r"\1 \2 "),
    ("'", r"([^' ])('ll|'LL|'re|'RE|'ve|'VE|n't|N'T) ", r"\1 \2 "),
)
# (what every match has in it, pattern)
_CONTRACTIONS = tuple(
    (needed, re.compile(pattern).sub)
    for needed, pattern in (
        ("cannot", r"(?i)\b(can)(not)\b"),
        ("d'ye", r"(?i)\b(d)('ye)\b"),
        ("mme", r"(?i)\b(gim)(me)\b"),  # i also matches the dotless one
        ("gonna", r"(?i)\b(gon)(na)\b"),
        ("gotta", r"(?i)\b(got)(ta)\b"),
        ("lemme", r"(?i)\b(lem)(me)\b"),
        ("more'n", r"(?i)\b(more)('n)\b"),
        ("wanna", r"(?i)\b(wan)(na)(?=\s)"),
        ("'t", r"(?i) ('t)(is)\b"),  # s also matches the long one
        ("'t", r"(?i) ('t)(was)\b"),
    )
)
_TREEBANK = tuple(
    tuple((frozenset(needed), re.compile(pattern).sub, replacement) for needed, pattern, replacement in rules)
    for rules in (_BEFORE_PADDING, _AFTER_PADDING)
)
_MTEVAL = tuple(
    (re.compile(pattern).sub, replacement)
    for pattern, replacement in (
        (r"([\{-\~\[-\` -\&\(-\+\:-\@\/])", r" \1 "),
        (r"([^0-9])([\.,])", r"\1 \2 "),
        (r"([\.,])([^0-9])", r" \1 \2"),
        (r"([0-9])(-)", r"\1 \2 "),
    )
)
_ROUGE_WORDS = re.compile(r"[a-z0-9]+").findall


def treebank_words(text: str) -> list[str]:
    """The words of lower-case `text`, as `TreebankWordTokenizer().tokenize(text)` of NLTK."""
    before, after = _TREEBANK
    letters = frozenset(text)
    for needed, substitute, replacement in before:
        if not needed.isdisjoint(letters):
            text = substitute(replacement, text)
    text = f" {text} "
    for needed, substitute, replacement in after:
        if not needed.isdisjoint(letters):
            text = substitute(replacement, text)
    for part, substitute in _CONTRACTIONS:
        if part in text:
            text = substitute(r" \1 \2 ", text)
    return text.split()


def rouge_words(text: str) -> list[str]:
    """The words of `text` as `DefaultTokenizer(use_stemmer=False)` of rouge-score: runs of a-z and 0-9."""
    return _ROUGE_WORDS(text.lower())


def mteval_words(text: str) -> list[str]:
    """The words of `text` as sacrebleu's corpus BLEU sees them: case kept, trailing space dropped, "13a"."""
    text = text.rstrip().replace("<skipped>", "").replace("-\n", "").replace("\n", " ")
    if "&" in text:
        text = text.replace("&quot;", '"').replace("&amp;", "&").replace("&lt;", "<").replace("&gt;", ">")
    text = f" {text} "
    for substitute, replacement in _MTEVAL:
        text = substitute(replacement, text)
    return text.split()


_END = "\x00"  # a text's end among the pieces
_WHOLE = "\x01"  # starts the key of a text that is one piece
_FIRST, _LAST, _LAST_SPACED = "\x02", "\n", " "  # around the key of a text's first or last piece
# What nearly every piece looks like: word, ending, punctuation, and whether the text ends there.
_COMMON = re.compile(r"([a-z0-9]+?)(n't|'(?:s|m|d|ll|re|ve))?([,:;?!.]?)([\n ]?)").fullmatch
_MARKS = frozenset({"", *",:;?!."})
_CONTRACTED = frozenset({"cannot", "gimme", "gonna", "gotta", "lemme", "wanna"})


@dataclass(frozen=True)
class _Pieces:
    """Texts cut at spaces: piece number p has the key `keys[codes_P[p]]`, and text n `counts_N[n]` pieces.

    Most keys are plain: letters and digits that are one word in every tokenization. Such a word's id is its key's code.
    """

    keys: tuple[str, ...]
    codes_P: Int64[np.ndarray, " P"]
    counts_N: Int64[np.ndarray, " N"]

    def ids(self, words_of: Callable[[str], Sequence[str]]) -> TextIds:
        """The texts' word ids, where `words_of` gives the words of a key."""
        words = list(map(words_of, self._other_keys))
        lengths_C = np.ones(len(self.keys), np.int64)
        lengths_C[self._is_other_C] = np.fromiter(map(len, words), np.int64, len(words))
        numbers = defaultdict(count(len(self.keys)).__next__, self._plain_codes)
        is_other_W = np.repeat(self._is_other_C, lengths_C)
        ids_W = np.empty(len(is_other_W), np.int32)
        ids_W[~is_other_W] = np.flatnonzero(~self._is_other_C)
        ids_W[is_other_W] = list(map(numbers.__getitem__, chain.from_iterable(words)))
        lengths_P = lengths_C[self.codes_P]
        shifts_K = np.repeat(_starts(lengths_C)[self.codes_P] - _starts(lengths_P), lengths_P)
        ends_N = np.concatenate([[0], np.cumsum(lengths_P)])[np.cumsum(self.counts_N)]
        return TextIds(ids_W[shifts_K + np.arange(len(shifts_K))], np.diff(ends_N, prepend=0))

    @functools.cached_property
    def _plain_codes(self) -> dict[str, int]:
        numbered = enumerate(self.keys)
        return {key: n for n, key in numbered if key.isalnum() and key.isascii() and key not in _CONTRACTED}

    @functools.cached_property
    def _is_other_C(self) -> Bool[np.ndarray, " C"]:
        is_other_C = np.ones(len(self.keys), bool)
        is_other_C[list(self._plain_codes.values())] = False
        return is_other_C

    @functools.cached_property
    def _other_keys(self) -> list[str]:
        return [key for key in self.keys if key not in self._plain_codes]


def _cut(texts: Sequence[str], mark_ends: bool) -> _Pieces:
    # Of all spaces, only U+0020 is printable; no other text can hold the keys' control characters.
    whole = {number: text for number, text in enumerate(texts) if not text.isprintable()}
    shown = [f"{_WHOLE}{n}" if n in whole else text for n, text in enumerate(texts)] if whole else texts
    codes: defaultdict[str, int] = defaultdict(count().__next__)
    pieces = f" {_END} ".join([*shown, ""]).split()
    codes_P = np.fromiter(map(codes.__getitem__, pieces), np.int64, len(pieces))
    ends_N = np.flatnonzero(codes_P == codes[_END])
    counts_N = np.diff(ends_N, prepend=-1) - 1
    if mark_ends:
        _mark_ends(texts, codes, codes_P, ends_N, counts_N)
    keys = (key if key[0] != _WHOLE else _WHOLE + whole[int(key[1:])] for key in codes)
    return _Pieces(tuple(keys), np.delete(codes_P, ends_N), counts_N)


def _mark_ends(
    texts: Sequence[str],
    codes: defaultdict[str, int],
    codes_P: Int64[np.ndarray, " P"],
    ends_N: Int64[np.ndarray, " N"],
    counts_N: Int64[np.ndarray, " N"],
) -> None:
    """Gives pieces at the ends of texts keys of their own. Letters and digits there are in no rule about ends."""
    keys = list(codes)
    lasts_N = np.where(counts_N > 0, ends_N - 1, ends_N)
    unmarked_codes, inverse_N = np.unique(codes_P[lasts_N], return_inverse=True)
    marked = [_marked(keys[code], _LAST) for code in unmarked_codes.tolist()]
    codes_P[lasts_N] = np.fromiter(map(codes.__getitem__, marked), np.int64, len(marked))[inverse_N]
    # Rare: space after the last piece, or a first piece that does not begin with a letter or digit.
    for number in [n for n, text in enumerate(texts) if text[-1:] == " " or not text[:1].isalnum()]:
        text, last, num_pieces = texts[number], lasts_N[number], int(counts_N[number])
        key = keys[unmarked_codes[inverse_N[number]]]
        if not num_pieces or key[0] == _WHOLE:
            continue
        key = _marked(key, _LAST_SPACED if text[-1] == " " else _LAST)
        codes_P[last] = codes[key]
        first = last - num_pieces + 1
        if text[0] != " " and not text[0].isalnum():
            codes_P[first] = codes[_FIRST + (key if num_pieces == 1 else keys[codes_P[first]])]


def _marked(key: str, mark: str) -> str:
    return key if key[-1].isalnum() or key[0] in (_END, _WHOLE) else key + mark


def _starts(lengths: np.ndarray) -> np.ndarray:
    return np.cumsum(lengths) - lengths


def _treebank_piece(key: str) -> Sequence[str]:
    """The words of NLTK's Treebank tokenizer in a piece."""
    if (simple := _simple_piece(key)) is not None:
        return simple
    if (common := _COMMON(key)) and common[1] not in _CONTRACTED:
        stem, ending, mark, end = common.groups()
        if mark == "." and not end:
            return (key,)  # a period inside a text stays with its word
        return [word for word in (stem, ending, mark) if word]
    if key[0] == _WHOLE:
        return treebank_words(key[1:])
    first, last = key[0] == _FIRST, key[-1] in (_LAST, _LAST_SPACED)
    body = key.removeprefix(_FIRST).removesuffix(_LAST)
    words = treebank_words(("" if first else "x ") + body + ("" if last else " x"))
    return words[0 if first else 1 : None if last else -1]


def _simple_piece(key: str) -> Sequence[str] | None:
    """The words of a piece of letters and digits with at most one mark after them: what `_COMMON` says, sooner."""
    body = key[:-1] if key[-1] == _LAST else key
    stem, mark = (body, "") if body.isalnum() else (body[:-1], body[-1])
    if not (stem.isalnum() and stem.isascii()) or stem in _CONTRACTED or mark not in _MARKS:
        return None
    return (key,) if not mark or (mark == "." and body is key) else (stem, mark)


def _mteval_piece(key: str) -> Sequence[str]:
    """The words of sacrebleu's 13a in a piece."""
    return (key,) if key.isalnum() else mteval_words(key.removeprefix(_WHOLE))
