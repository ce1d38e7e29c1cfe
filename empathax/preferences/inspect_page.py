"""The page of --inspect: one self-contained HTML file that loads nothing."""

from __future__ import annotations

from collections.abc import Mapping

from empathax.evaluation.level_shares import LEVELS
from empathax.evaluation.report.html import environment
from empathax.preferences.inspection import SIDES, UNKNOWN, SplitFacts


def page(path: str, splits: Mapping[str, SplitFacts]) -> str:
    """The HTML of a set's facts, by split."""
    quartiles = {
        split: [
            name
            for name in ("1", "2", "3", "4", UNKNOWN)
            if any(place == name for counts in facts.levels.values() for place, _ in counts)
        ]
        for split, facts in splits.items()
    }
    return (
        environment("empathax.preferences")
        .get_template("inspect.html")
        .render(path=path, splits=splits, sides=SIDES, levels=(*LEVELS, UNKNOWN), quartiles=quartiles)
    )
