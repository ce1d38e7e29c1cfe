"""The directory of a preference set: rows by split, what was dropped, a summary and a data card; made once.

DIR/train.jsonl (and valid.jsonl, test.jsonl) are rows of TRL's preference format with `provenance`, so that
`data.preference_path=DIR` trains on them. DIR/started.json holds the settings and the time of the first start: the same
command goes on there, another one is refused.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from empathax.errors import ConfigError, raise_all
from empathax.evaluation import output
from empathax.preferences.data_card import card
from empathax.preferences.filters import Filtered
from empathax.preferences.surface_cues import SurfaceCues, surface_cues

RESPONSES = "responses"  # answers of models, kept as they arrive
STARTED, SUMMARY, DROPPED, CARD = "started.json", "summary.json", "dropped.jsonl", "README.md"


@dataclass(frozen=True)
class PreferenceSet:
    """A finished set.

    Attributes:
        name: the rule, or how candidates were made.
        settings: everything that decides what is in it, plain values.
        splits: what became of the pairs of each split.
        held_out: how many runs of words pairs of each split were compared with.
        notes: facts for card and summary by name: servers, tokens, costs, contexts left out.
    """

    name: str
    settings: Mapping[str, Any]
    splits: Mapping[str, Filtered]
    held_out: Mapping[str, int]
    notes: Mapping[str, Any]

    def cues(self) -> dict[str, SurfaceCues]:
        """Surface cues of each split."""
        return {
            split: surface_cues(
                [(pair.chosen.text, pair.rejected.text) for pair in part.kept],
                [pair.context.dialogue_id for pair in part.kept],
            )
            for split, part in self.splits.items()
        }


def start(directory: Path, settings: Mapping[str, Any], now: Callable[[], float] = time.time) -> float:
    """Makes `directory` for a set with these settings, or goes on in it. Returns the time of its first start.

    Raises:
        ConfigError: it holds a set with other settings, something else, or cannot be written.
    """
    output.make_directory(directory)
    path = directory / STARTED
    plain = json.loads(json.dumps(dict(settings)))
    if not path.exists():
        if others := sorted(entry.name for entry in directory.iterdir() if entry.name != RESPONSES):
            raise ConfigError(f"{directory} holds {', '.join(others[:5])} and no {STARTED}: name an empty directory")
        started = now()
        output.write_json(path, {"time": started, "settings": plain})
        return started
    try:
        before = json.loads(path.read_text(encoding="utf-8"))
        found, started = before["settings"], float(before["time"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path} cannot be read ({error!r}): name another directory") from None
    different = [
        f"{name} was {found.get(name)!r} and is now {plain.get(name)!r}"
        for name in sorted({*found, *plain})
        if found.get(name) != plain.get(name)
    ]
    raise_all(ConfigError, f"{directory} holds a set that was made with other settings; name another one", different)
    return started


def write_set(directory: Path, made: PreferenceSet, started: float) -> dict[str, Any]:
    """Writes all files of a set, each whole or not at all; returns the summary."""
    for split, part in made.splits.items():
        output.write_json_lines(directory / f"{split}.jsonl", (pair.row(started) for pair in part.kept))
    dropped = ({"split": split, **entry} for split, part in made.splits.items() for entry in part.dropped)
    output.write_json_lines(directory / DROPPED, dropped)
    cues = made.cues()
    summary = {
        "name": made.name,
        "splits": {split: _facts(part, cues[split], made.held_out[split]) for split, part in made.splits.items()},
        "warnings": [f"{split}: {text}" for split, found in cues.items() for text in found.warnings()],
        "notes": dict(made.notes),
        "settings": dict(made.settings),
    }
    output.write_json(directory / SUMMARY, summary)
    output.write_text(directory / CARD, card(made.name, summary))
    return summary


def _facts(part: Filtered, cues: SurfaceCues, num_held_out: int) -> dict[str, Any]:
    rejected: Sequence[str] = [pair.rejected.text for pair in part.kept]
    return {
        "pairs": len(part.kept),
        "dialogues": cues.num_dialogues,
        "distinct_rejected": len(set(rejected)),
        "dropped": part.counts,
        "held_out_word_runs": num_held_out,
        "bag_of_words_accuracy": round(cues.bag_accuracy, 4),
        "bag_of_words_interval": [round(end, 4) for end in cues.bag_interval] if cues.bag_interval else None,
        "length_accuracy": round(cues.length_accuracy, 4),
        "longer_is_chosen": cues.longer_is_chosen,
        "chosen_words": round(cues.chosen_words, 2),
        "rejected_words": round(cues.rejected_words, 2),
    }
