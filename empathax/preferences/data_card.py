"""A preference set's README.md: what is in it, how it was made, what was dropped, what to beware of."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from empathax.preferences.filters import REASONS
from empathax.preferences.rules import RULES
from empathax.preferences.surface_cues import LONG, SEPARATES

_ORIGIN = {
    "levels": "Replies were written by a language model, one for each of the four levels of validation, and ranked.",
    "styles": "Replies were written by a language model in a supportive and in a prescriptive style, and ranked.",
    "samples": "Several replies of one language model were ranked.",
}


def card(name: str, summary: Mapping[str, Any]) -> str:
    """The card of the set `name`, from its summary (see `write_set`)."""
    parts = [
        f"# Preference pairs: {name}",
        "Written by `python -m empathax.build_preferences`. Each line of the files is a row of TRL's preference format "
        "(`prompt`, `chosen`, `rejected`) with `dialogue_id` and `provenance`.",
        _origin(name),
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


def _origin(name: str) -> str:
    if name not in RULES:
        return _ORIGIN[name]
    rule = RULES[name]
    return f"No language model took part. Chosen: {rule.chosen}. Rejected: {rule.rejected}."


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
