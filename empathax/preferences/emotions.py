"""Emotions as corpora name them on Plutchik's wheel (1980), and how far apart they lie there."""

from __future__ import annotations

PRIMARY = ("joy", "trust", "fear", "surprise", "sadness", "disgust", "anger", "anticipation")  # around the wheel

# ESConv's emotion types and EmpatheticDialogues' 32 labels, each at the primary emotion it is nearest to.
_PLACES = {
    "joy": "joy joyful excited proud content happy",
    "trust": "trust trusting faithful grateful caring confident sentimental",
    "fear": "fear afraid terrified anxiety anxious nervousness apprehensive",
    "surprise": "surprise surprised impressed",
    "sadness": "sadness sad depression pain lonely disappointed devastated nostalgic guilt guilty",
    "disgust": "disgust disgusted shame ashamed embarrassed",
    "anger": "anger angry annoyed furious jealousy jealous",
    "anticipation": "anticipation anticipating hopeful prepared",
}
_PLACE_OF = {name: PRIMARY.index(primary) for primary, names in _PLACES.items() for name in names.split()}


def distance(first: str, second: str) -> int | None:
    """Steps between two emotions around the wheel, 4 = opposite; None if one is not known."""
    places = [_PLACE_OF.get(name.strip().lower()) for name in (first, second)]
    if places[0] is None or places[1] is None:
        return None
    steps = abs(places[0] - places[1])
    return min(steps, len(PRIMARY) - steps)


def farthest(emotion: str, present: set[str]) -> set[str]:
    """Those of the emotions `present` that lie farthest from `emotion`, at least 2 steps; empty if there is none."""
    steps = {other: distance(emotion, other) or 0 for other in present}
    most = max(steps.values(), default=0)
    return {other for other, value in steps.items() if value == most} if most >= 2 else set()
