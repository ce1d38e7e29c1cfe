"""Which pairs are kept, and why the others are not: every pair that is dropped has one reason and a detail."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from empathax.errors import ConfigError, raise_all
from empathax.preferences.near_duplicates import NearDuplicates
from empathax.preferences.overlap import HeldOutTexts
from empathax.preferences.pairs import Pair
from empathax.preferences.wordings import is_leaked, is_refusal, unsafe_words
from empathax.preferences.words import num_words, plain

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
    result, state = Filtered(), _State(held_out, options)
    for pair in pairs:
        reason, detail = state.verdict(pair)
        if not reason:
            result.kept.append(pair)
            state.keep(pair)
            continue
        result.drop(pair, reason, detail)
    links = Counter(pair.link for pair in result.kept if pair.link)
    together, result.kept = result.kept, []
    for pair in together:
        if links[pair.link] == 1:
            result.drop(pair, "link", pair.link)
        else:
            result.kept.append(pair)
    return result


class _State:
    def __init__(self, held_out: HeldOutTexts, options: FilterOptions) -> None:
        self._held_out, self._options = held_out, options
        self._near = NearDuplicates(options.near_duplicate_threshold or 1.0)
        self._kept: list[Pair] = []
        self._exact: dict[tuple[str, str], str] = {}

    def verdict(self, pair: Pair) -> tuple[str, str]:
        """(reason, detail); two empty texts for a pair to keep."""
        checks: tuple[tuple[str, Callable[[Pair], str | None]], ...] = (
            ("empty", _empty),
            ("same_reply", lambda pair: "" if _replies(pair)[0] == _replies(pair)[1] else None),
            ("length_ratio", self._length_ratio),
            ("template", lambda pair: _which(pair, is_leaked)),
            ("refusal", lambda pair: _which(pair, is_refusal)),
            ("unsafe", lambda pair: unsafe_words(pair.chosen.text) or None),
            ("overlap", lambda pair: self._held_out.of_pair(pair) or None),
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


def _empty(pair: Pair) -> str | None:
    return next((name for name in ("chosen", "rejected") if not num_words(getattr(pair, name).text)), None)


def _which(pair: Pair, finds: Callable[[str], bool]) -> str | None:
    return next((name for name in ("chosen", "rejected") if finds(getattr(pair, name).text)), None)
