"""Which pairs are kept, and why the others are not: every pair that is dropped has one reason and a detail.

Patterns of unusable replies are English only: refusals, words of a prompt around the reply, and advice that can harm.
The list of harmful advice is a coarse net for training data, not a safety system.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from empathax.errors import ConfigError, raise_all
from empathax.evaluation.metrics.dialogue_health import leaks_template
from empathax.preferences.overlap import HeldOutTexts, NearDuplicates, num_words, plain
from empathax.preferences.pairs import Pair

REASONS = {
    "empty": "a reply without words",
    "same_reply": "both replies are the same but for case and spacing",
    "length_ratio": "one reply has many times the words of the other",
    "template": "a reply holds control tokens, or words of the prompt around it",
    "refusal": "a reply declines, or speaks of itself as a model",
    "unsafe": "the chosen reply advises something harmful",
    "overlap": "the pair shows words of a dialogue of a later split",
    "duplicate": "a pair with the same two replies was kept before",
    "near_duplicate": "a pair with nearly the same two replies was kept before",
    "link": "the pair that belongs to it was dropped",
}


@dataclass(frozen=True)
class FilterOptions:
    """Limits of the filters; 0 switches one off. Raises a ConfigError for those that make no sense."""

    max_length_ratio: float = 3.0
    near_duplicate_threshold: float = 0.8

    def __post_init__(self) -> None:
        ratio, threshold = self.max_length_ratio, self.near_duplicate_threshold
        problems = [] if not 0 < ratio < 1 else [f"max_length_ratio = {ratio:g}: expected 1 or more, or 0 for no limit"]
        if not 0 <= threshold <= 1:
            problems.append(f"near_duplicate_threshold = {threshold:g}: expected a similarity between 0 and 1")
        raise_all(ConfigError, "the filters cannot be used", problems)


@dataclass
class Filtered:
    """What became of pairs."""

    kept: list[Pair] = field(default_factory=list)
    dropped: list[dict[str, Any]] = field(default_factory=list)  # for a file: {"reason", "detail", ...}

    def drop(self, pair: Pair, reason: str, detail: str) -> None:
        """Counts a dropped pair."""
        self.dropped.append(
            {
                "reason": reason,
                "detail": detail,
                "pair_id": pair.pair_id,
                "method": pair.method,
                "context_id": pair.context.context_id,
                "chosen": pair.chosen.text,
                "rejected": pair.rejected.text,
            }
        )

    @property
    def counts(self) -> dict[str, int]:
        """How many pairs were dropped, by reason."""
        return dict(Counter(entry["reason"] for entry in self.dropped))


def filter_pairs(pairs: Iterable[Pair], held_out: HeldOutTexts, options: FilterOptions) -> Filtered:
    """Pairs that pass all filters, in order; of duplicates the first is kept."""
    result, filters = Filtered(), _Filters(held_out, options)
    for pair in pairs:
        reason, detail = filters.verdict(pair)
        if not reason:
            result.kept.append(pair)
            filters.keep(pair)
            continue
        result.drop(pair, reason, detail)
    links = Counter(pair.link for pair in result.kept if pair.link)
    for pair in result.kept:
        if links[pair.link] == 1:
            result.drop(pair, "link", pair.link)
    result.kept = [pair for pair in result.kept if links[pair.link] != 1]
    return result


class _Filters:
    """All filters, with the pairs kept so far."""

    def __init__(self, held_out: HeldOutTexts, options: FilterOptions) -> None:
        self._held_out, self._options = held_out, options
        self._near = NearDuplicates(options.near_duplicate_threshold or 1.0)
        self._kept: list[Pair] = []
        self._exact: dict[tuple[str, str], str] = {}

    def verdict(self, pair: Pair) -> tuple[str, str]:
        """(reason, detail); two empty texts for a pair to keep."""
        checks: tuple[tuple[str, Callable[[Pair], str | None]], ...] = (
            ("empty", lambda pair: _which(pair, lambda text: not num_words(text))),
            ("same_reply", lambda pair: "" if len(set(_replies(pair))) == 1 else None),
            ("length_ratio", self._length_ratio),
            ("template", lambda pair: _which(pair, is_leaked)),
            ("refusal", lambda pair: _which(pair, is_refusal)),
            ("unsafe", lambda pair: _unsafe_words(pair.chosen.text)),
            ("overlap", self._overlap),
            ("duplicate", lambda pair: self._exact.get(_replies(pair))),
            ("near_duplicate", self._near_one),
        )
        for reason, check in checks:
            detail = check(pair)
            if detail is not None:
                return reason, detail
        return "", ""

    def keep(self, pair: Pair) -> None:
        self._exact[_replies(pair)] = pair.pair_id
        self._near.add(_document(pair))
        self._kept.append(pair)

    def _length_ratio(self, pair: Pair) -> str | None:
        low, high = sorted(num_words(candidate.text) for candidate in (pair.chosen, pair.rejected))
        limit = self._options.max_length_ratio
        return f"{high} words against {low}" if limit and high > limit * low else None

    def _overlap(self, pair: Pair) -> str | None:
        """Words of the seeker's turns and of both replies. The supporter's earlier turns do not count by themselves:
        supporters greet in many dialogues with the same sentences."""
        texts = [message.content for message in pair.context.prompt if message.role == "user"]
        texts += [pair.chosen.text, pair.rejected.text]
        return next((run for text in texts if (run := self._held_out.shared(text))), None)

    def _near_one(self, pair: Pair) -> str | None:
        if not self._options.near_duplicate_threshold:
            return None
        found = self._near.find(_document(pair))
        # The same two replies the other way round say something else.
        is_turned = found is not None and _replies(self._kept[found])[::-1] == _replies(pair)
        return None if found is None or is_turned else self._kept[found].pair_id


def _document(pair: Pair) -> str:
    """What two pairs are compared by: both replies. Prompts of a dialogue share their beginnings and do not count."""
    return f"{pair.chosen.text}\n{pair.rejected.text}"


def _replies(pair: Pair) -> tuple[str, str]:
    return plain(pair.chosen.text), plain(pair.rejected.text)


def _which(pair: Pair, finds: Callable[[str], bool]) -> str | None:
    """The side whose text is found; None if neither is."""
    return next((name for name in ("chosen", "rejected") if finds(getattr(pair, name).text)), None)


_REFUSAL = re.compile(
    r"\bas an? (?:ai|artificial intelligence|(?:large )?language model)\b|\bi(?:'m| am) (?:just |only )?an? (?:ai|"
    r"(?:large )?language model)\b|\bi (?:can(?:'t|not)|am (?:not able|unable) to|'m (?:not able|unable) to|won't) "
    r"(?:assist|help(?! but\b| \w+ing\b)|fulfil|comply|provide|answer(?! \w+ for you\b)|respond|continue|engage|"
    r"discuss|create|generate|write)\b"
    r"|\bagainst my (?:guidelines|programming|policy)\b|\bi do(?:n't| not) have (?:personal )?(?:feelings|emotions)\b"
)
_FRAME = re.compile(
    r"^\W*(?:supporter|assistant|user|seeker|system|reply|response|answer|level \d|stage \d)\b[^\w\n]*:"
    r"|^\W*(?:sure|certainly|of course|okay)?\W*here(?:'s| is| are)\b[^\n]{0,60}\b(?:reply|response|answer|message)\b"
    r"|\b(?:level of validation|radical genuineness|accurate reflection|dialectical behaviou?r therapy)\b"
    r"|^\s*(?:```|\{\s*\")|\[(?:your |insert |the )?(?:name|user|seeker|reply)[^\]\n]{0,30}\]",
    re.MULTILINE,
)
_UNSAFE = re.compile(
    r"(?<!not )(?<!n't )(?<!never )\b(?:stop|quit|skip|throw away|come off) (?:taking )?(?:your|the|all|any) "
    r"(?:\w+ ){0,2}(?:meds|medications?|pills|medicines?|antidepressants|treatment|therapy)\b"
    r"|\b(?:double|increase|lower|change|reduce) (?:your|the) dos(?:e|age)\b"
    r"|\btake (?:\w+ ){0,3}\d+ ?(?:mg|pills|milligrams)\b"
    r"|\byou (?:should|could|can|might as well|deserve to|need to) (?:just |really )*"
    r"(?:kill|hurt|harm|cut|punish|starve) yourself\b"
    r"|\b(?:better off|easier) (?:if you were )?dead\b|\bkill yourself\b"
    r"|\b(?:no (?:need|reason|point)|do(?:n't| not)) (?:to |in |ever )*"
    r"(?:see|seeing|tell|telling|talk|talking|call|calling) (?:\w+ ){0,4}"
    r"(?:doctor|therapist|psychiatrist|police|hotline|anyone)\b"
    r"|\b(?:have|try|take|drink|get|use|smoke) (?:a few|some|a couple(?: of)?|more|a) "
    r"(?:drinks?(?! of (?:water|tea|milk|juice)\b)|beers?|shots?|wine|alcohol|weed|cocaine|pills)\b"
    r"|\bget (?:drunk|wasted|high(?= on\b|[.,!?]|$))"
    r"|\b(?:you should|just|go|why don't you) (?:hit|slap|punch|beat|hurt) (?:him|her|them|back)\b"
    r"|\b(?:you should|just) (?:stop|quit) eating\b"
)


def is_refusal(text: str) -> bool:
    """Whether a model declines, or speaks of itself as a model."""
    return _REFUSAL.search(_lower(text)) is not None


def is_leaked(text: str) -> bool:
    """Whether control tokens of a chat template, or the words of a prompt around a reply, stand in the text."""
    return leaks_template(text) or _FRAME.search(_lower(text)) is not None


def _unsafe_words(text: str) -> str | None:
    """The words of `text` that advise something harmful; None if there are none."""
    found = _UNSAFE.search(_lower(text))
    return found[0] if found else None


def _lower(text: str) -> str:
    return text.lower().replace("’", "'")
