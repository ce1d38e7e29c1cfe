"""What a judge said, out of the text of its answer: the JSON object that it ends with."""

from __future__ import annotations

import json
import re
from typing import Any

LOWEST_SCORE, HIGHEST_SCORE = 1, 5
# Exact names: "entailment" is part of "not_entailment", which says the opposite.
ENTAILMENT_LABELS = {"entailment": 1.0, "neutral": 0.0, "contradiction": 0.0, "not_entailment": 0.0}
WINNERS = ("first", "second", "tie")
_OUT_OF_FIVE = re.compile(r"\s*(\d(?:\.\d+)?)\s*(?:/\s*5\s*)?")
_LETTER_OR_DIGIT = re.compile(r"\w")


def final_object(text: str) -> dict[str, Any] | None:
    """The JSON object at the end of `text`; only marks such as a code fence or a full stop may follow. Else None.

    Objects further up do not count: they may be quoted from what is judged, by an answer that was cut off.
    """
    decoder = json.JSONDecoder()
    position, found, end = text.find("{"), None, 0
    while position >= 0:
        try:
            found, end = decoder.raw_decode(text, position)
            position = text.find("{", end)
        except (ValueError, RecursionError):
            position = text.find("{", position + 1)
    return found if isinstance(found, dict) and not _LETTER_OR_DIGIT.search(text, end) else None


def score_in(answer: dict[str, Any]) -> float | None:
    """`score`, a number from 1 to 5, also written as "4" or "4/5"; None for all else."""
    value: Any = answer.get("score")
    if isinstance(value, str) and (match := _OUT_OF_FIVE.fullmatch(value)):
        value = float(match[1])
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if is_number and LOWEST_SCORE <= value <= HIGHEST_SCORE else None


def entailment_in(answer: dict[str, Any]) -> float | None:
    """1 for the label "entailment", 0 for the labels that are not; None for all else."""
    return ENTAILMENT_LABELS.get(_name(answer.get("label")))


def winner_in(answer: dict[str, Any]) -> str | None:
    """`winner`: "first", "second" or "tie"; None for all else."""
    name = _name(answer.get("winner"))
    return name if name in WINNERS else None


def reason_in(answer: dict[str, Any]) -> str:
    """The judge's reason; "" if it gave none."""
    reason = answer.get("reason")
    return reason if isinstance(reason, str) else ""


def _name(value: Any) -> str:
    return re.sub(r"[\s-]+", "_", value.strip().lower()) if isinstance(value, str) else ""
