"""The directory of a preference set: rows by split, what was dropped, a summary and a data card.

DIR/train.jsonl (and valid.jsonl, test.jsonl) are rows of TRL's preference format with `provenance`, so that
`data.preference_path=DIR` trains on them. DIR/started.json holds the settings and the time of the first start: the same
command goes on there, another one is refused. DIR/README.md, the card, says what is in the set, how it was made, what
was dropped and what to beware of.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from empathax import json_text
from empathax.config.fields import flat
from empathax.errors import ConfigError, DataError, raise_all
from empathax.evaluation import output
from empathax.evaluation.judging.response_cache import FILE_NAME as ANSWERS
from empathax.preferences.filters import REASONS, Filtered
from empathax.preferences.surface_cues import LONG, SEPARATES, SurfaceCues, surface_cues
from empathax.shown import quoted, shown

STARTED, SUMMARY, DROPPED, CARD = "started.json", "summary.json", "dropped.jsonl", "README.md"


@dataclass(frozen=True)
class PreferenceSet:
    """A finished set.

    Attributes:
        name: the rule, or how candidates were made.
        origin: where its replies come from, a sentence for the card.
        settings: everything that decides what is in it, plain values.
        splits: what became of the pairs of each split.
        held_out: how many runs of words pairs of each split were compared with.
        notes: facts for card and summary by name: servers, tokens, costs, contexts left out.
        warnings: what a user should know before anything else, beside surface cues.
    """

    name: str
    origin: str
    settings: Mapping[str, Any]
    splits: Mapping[str, Filtered]
    held_out: Mapping[str, int]
    notes: Mapping[str, Any]
    warnings: Sequence[str] = ()

    def cues(self) -> dict[str, SurfaceCues]:
        """Surface cues of each split."""
        return {
            split: surface_cues(
                [(pair.chosen.text, pair.rejected.text) for pair in part.kept],
                [pair.context.dialogue_id for pair in part.kept],
            )
            for split, part in self.splits.items()
        }


def start(directory: Path, settings: Mapping[str, Any]) -> float:
    """Makes `directory` for a set with these settings, or goes on in it. Returns the time of its first start.

    Raises:
        ConfigError: it holds a set with other settings, something else, or cannot be written.
    """
    output.make_directory(directory)
    path = directory / STARTED
    plain = json.loads(json.dumps(dict(settings)))
    if not path.exists():
        if others := sorted(entry.name for entry in directory.iterdir() if not _is_ours(entry)):
            raise ConfigError(f"{directory} holds {', '.join(others[:5])} and no {STARTED}: name an empty directory")
        started = time.time()
        output.write_json(path, {"time": started, "settings": plain})
        return started
    try:
        before = json_text.read(path, ConfigError)
        old, started = flat(before["settings"]), float(before["time"])
    except (ArithmeticError, OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"{path} cannot be read ({quoted(error)}): name another directory") from None
    new = flat(plain)
    different = [
        f"{shown(name)} was {quoted(old.get(name))} and is now {quoted(new.get(name))}"
        for name in sorted({*old, *new})
        if old.get(name) != new.get(name)
    ]
    raise_all(ConfigError, f"{directory} holds a set that was made with other settings; name another one", different)
    return started


def _is_ours(entry: Path) -> bool:
    """Whether it is there before a set is: a cache of answers, whatever its name, or half a file of a killed start."""
    if entry.is_dir():
        return {inside.name for inside in entry.iterdir()} <= {ANSWERS}
    return entry.name.startswith(f".{STARTED}.")


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
        "warnings": [*made.warnings, *(f"{split}: {one}" for split, found in cues.items() for one in found.warnings())],
        "notes": dict(made.notes),
        "settings": dict(made.settings),
    }
    output.write_json(directory / SUMMARY, summary)
    output.write_text(directory / CARD, _card(made, summary))
    return summary


def done_before(directory: Path) -> tuple[int, int]:
    """Contexts that the set in `directory` is made of, and its pairs; zeros if there is none yet."""
    try:
        summary = json_text.read(directory / SUMMARY, ConfigError)
        pairs = sum(facts["pairs"] for facts in summary["splits"].values())
        return sum(summary["notes"]["contexts"].values()), pairs
    except (ConfigError, OSError, KeyError, TypeError, AttributeError):
        return 0, 0


def in_words(summary: Mapping[str, Any], directory: Path) -> str:
    """A few lines for the terminal: pairs of each split, what was dropped, surface cues, warnings."""
    lines = []
    for split, facts in summary["splits"].items():
        dropped = _counts(facts["dropped"]) or "none"
        cues = (
            f"; words alone order {facts['bag_of_words_accuracy']:.1%} rightly "
            f"({facts['bag_of_words_accuracy_with_repeats']:.1%} with replies that return), length alone "
            f"{facts['length_accuracy']:.1%}"
        )
        lines.append(
            f"{summary['name']}, {split}: {facts['pairs']:,} pairs of {facts['dialogues']:,} dialogues "
            f"(dropped: {dropped}){cues if facts['pairs'] else ''}"
        )
    lines += [
        f"  {name.replace('_', ' ')}: {_counts(summary['notes'][name])}"
        for name in ("contexts_without_a_pair", "replies_left_out")
        if summary["notes"].get(name)
    ]
    lines += [f"  warning, {text}" for text in summary["warnings"]]
    return "\n".join([*lines, f"wrote {directory}"])


def check_not_empty(summary: Mapping[str, Any]) -> None:
    """Raises a DataError if no pair is left."""
    if not any(facts["pairs"] for facts in summary["splits"].values()):
        dropped = sum(sum(facts["dropped"].values()) for facts in summary["splits"].values())
        reasons = _counts(summary["notes"].get("contexts_without_a_pair", {}))
        why = [f"{dropped:,} were dropped by filters"] if dropped else []
        why += [f"contexts without one: {reasons}"] if reasons else []
        raise DataError(f"{summary['name']}: no pair came out ({'; '.join(why) or 'none was made'})")


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{reason} {count:,}" for reason, count in counts.items())


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
        "bag_of_words_accuracy_with_repeats": round(cues.bag_accuracy_with_repeats, 4),
        "length_accuracy": round(cues.length_accuracy, 4),
        "longer_is_chosen": cues.longer_is_chosen,
        "chosen_words": round(cues.chosen_words, 2),
        "rejected_words": round(cues.rejected_words, 2),
    }


def _card(made: PreferenceSet, summary: Mapping[str, Any]) -> str:
    parts = [
        f"# Preference pairs: {made.name}",
        "Written by `python -m empathax.build_preferences`. Each line of the files is a row of TRL's preference format "
        "(`prompt`, `chosen`, `rejected`) with `dialogue_id` and `provenance`.",
        made.origin,
        _splits(summary["splits"]),
        _dropped(summary["splits"]),
        _warnings(summary),
        "## How it was made\n```json\n"
        + json.dumps({"settings": summary["settings"], "notes": summary["notes"]}, indent=1, ensure_ascii=False)
        + "\n```",
        "## Licence and use\nPrompts, and replies that people wrote, come from the source above and stay under its "
        "licence (ESConv's: CC BY-NC 4.0, academic research only); replies of a model also under that model's terms. "
        "The dialogues are about distress, abuse and illness. The filters for refusals and harmful advice are word "
        "lists: they catch the coarse cases only. Not for a service without people who review it.",
    ]
    return "\n\n".join(parts) + "\n"


def _splits(splits: Mapping[str, Any]) -> str:
    lines = [
        "| split | pairs | dialogues | distinct rejected | words chosen / rejected | words alone | with repeats "
        "| length alone |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for split, facts in splits.items():
        interval = facts["bag_of_words_interval"]
        span = f" ({interval[0]:.1%} to {interval[1]:.1%})" if interval else ""
        which = "longer" if facts["longer_is_chosen"] else "shorter"
        lines.append(
            f"| {split} | {facts['pairs']:,} | {facts['dialogues']:,} | {facts['distinct_rejected']:,} "
            f"| {facts['chosen_words']:.1f} / {facts['rejected_words']:.1f} "
            f"| {facts['bag_of_words_accuracy']:.1%}{span} "
            f"| {facts['bag_of_words_accuracy_with_repeats']:.1%} | {facts['length_accuracy']:.1%} ({which}) |"
        )
    lines.append(
        "\nWords alone: share of pairs that a bag of words of the two replies, fitted on pairs of other dialogues and "
        "other replies, orders rightly, with a 95 % interval over dialogues. With repeats: the same where replies that "
        "return in other pairs are fitted too. Length alone: always taking the longer, or always the shorter."
    )
    return "## What is in it\n" + "\n".join(lines)


def _dropped(splits: Mapping[str, Any]) -> str:
    lines = [f"| reason | {' | '.join(splits)} | what it means |", "|---|" + "---|" * (len(splits) + 1)]
    for reason, meaning in REASONS.items():
        counts = " | ".join(f"{facts['dropped'].get(reason, 0):,}" for facts in splits.values())
        lines.append(f"| {reason} | {counts} | {meaning} |")
    compared = ", ".join(f"{split}: {facts['held_out_word_runs']:,}" for split, facts in splits.items())
    return (
        "## What was dropped\n"
        + "\n".join(lines)
        + "\n\nBut for filters that were switched off (settings below), none of these is left in the files. Each "
        "dropped pair is a line of dropped.jsonl. Runs of words of later splits that pairs were compared with: "
        f"{compared}."
    )


def _warnings(summary: Mapping[str, Any]) -> str:
    found = list(summary["warnings"])
    if not any(facts["pairs"] for facts in summary["splits"].values()):
        found.append("There are no pairs in it.")
    elif not found:
        found = [
            f"Words alone order fewer than {SEPARATES:.0%} of the pairs rightly and length alone fewer than "
            f"{LONG:.0%}, from where on a warning would stand here; the table above says how far they go."
        ]
    return "## What to beware of\n" + "\n".join(f"- {text}" for text in found)
