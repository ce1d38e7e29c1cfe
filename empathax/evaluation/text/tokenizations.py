"""Text to words exactly as three reference implementations cut it, none of which is imported.

- `treebank_words`: NLTK's TreebankWordTokenizer (the Penn Treebank sed script) on lower-cased text
- `rouge_words`: rouge-score 0.1.2 without stemming
- `mteval_words`: sacrebleu's "13a" (mteval-v13a.pl)
"""

from __future__ import annotations

import re

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
    """The words of lower-cased `text`, as `TreebankWordTokenizer().tokenize(text.lower())` of NLTK."""
    return split_treebank(text.lower())


def split_treebank(text: str) -> list[str]:
    """The words of a text that is already lower-case."""
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
