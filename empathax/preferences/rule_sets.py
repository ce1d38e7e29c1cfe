"""Sets made by rules: contexts in, files out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from empathax.config import DataOptions
from empathax.data.records import Dialogue
from empathax.data.sources import load_all
from empathax.errors import ConfigError, DataError
from empathax.preferences.contexts import SPLITS, Context, contexts_of, digest, load_contexts, load_rows
from empathax.preferences.filters import FilterOptions, filter_pairs
from empathax.preferences.overlap import HeldOutTexts, held_out_texts
from empathax.preferences.rules import RULES, rule_pairs
from empathax.preferences.set_files import PreferenceSet, start, write_set

FAILED_FILE = "failed_esconv.json"


def build_rule_sets(
    names: Sequence[str],
    options: DataOptions,
    *,
    failed_path: str,
    filters: FilterOptions,
    splits: Sequence[str],
    seed: int,
    out: Path,
    say: Callable[[str], None],
) -> dict[str, dict[str, Any]]:
    """Makes the sets of the rules `names`, one in `out`, several in `out`/NAME; returns their summaries.

    Raises:
        ConfigError: an unknown rule or split, or `out` holds something else.
        DataError: the source cannot be read, or lacks what a rule goes by.
    """
    check_names("rule", names, tuple(RULES))
    check_names("split", splits, SPLITS)
    rows = load_rows(options)
    contexts = {split: found for split, found in load_contexts(rows, options).items() if split in splits and found}
    failed = _failed(failed_path, options.path, "failed_supporter" in names)
    held_out = {split: held_out_texts(rows, split) for split in contexts}
    say(f"contexts of {options.path}: " + ", ".join(f"{split} {len(part):,}" for split, part in contexts.items()))
    summaries = {}
    for name in names:
        directory = out / name if len(names) > 1 else out
        settings = {
            "rule": name,
            "source": options.path,
            "failed": failed_path,
            "contexts": digest([*contexts.items(), *failed.items()]),
            "seed": seed,
            "splits": list(splits),
            **vars(filters),
        }
        started = start(directory, settings)
        summaries[name] = write_set(directory, _made(name, contexts, failed, held_out, filters, settings), started)
        say(describe(summaries[name], directory))
    return summaries


def check_names(kind: str, names: Sequence[str], known: Sequence[str]) -> None:
    """Raises a ConfigError for the first of `names` that is not `known`, or for none at all."""
    unknown = [name for name in names if name not in known]
    if unknown or not names:
        found = f"{kind} {unknown[0]!r} is unknown" if unknown else f"no {kind} was given"
        raise ConfigError(f"{found}: expected some of {', '.join(known)}")


def describe(summary: dict[str, Any], directory: Path) -> str:
    """A few lines for the terminal: pairs of each split, what was dropped, surface cues, warnings."""
    lines = []
    for split, facts in summary["splits"].items():
        dropped = ", ".join(f"{reason} {count:,}" for reason, count in facts["dropped"].items()) or "none"
        lines.append(
            f"{summary['name']}, {split}: {facts['pairs']:,} pairs of {facts['dialogues']:,} dialogues (dropped: "
            f"{dropped}); words alone order {facts['bag_of_words_accuracy']:.1%} rightly, length alone "
            f"{facts['length_accuracy']:.1%}"
        )
    lines += [f"  warning, {text}" for text in summary["warnings"]]
    return "\n".join([*lines, f"wrote {directory}"])


def _made(
    name: str,
    contexts: dict[str, list[Context]],
    failed: dict[str, list[Context]],
    held_out: dict[str, HeldOutTexts],
    filters: FilterOptions,
    settings: dict[str, Any],
) -> PreferenceSet:
    made = {split: rule_pairs(name, part, failed.get(split, []), settings["seed"]) for split, part in contexts.items()}
    return PreferenceSet(
        name,
        settings,
        {split: filter_pairs(pairs, held_out[split], filters) for split, pairs in made.items()},
        {split: len(texts) for split, texts in held_out.items()},
        {"pairs_before_filters": {split: len(pairs) for split, pairs in made.items()}},
    )


def _failed(path: str, source: str, is_needed: bool) -> dict[str, list[Context]]:
    """Contexts of FailedESConv by split: a dialogue goes to one of them by its name, so that no reply is in two."""
    if not is_needed:
        return {}
    place = Path(path).expanduser() if path else Path(source).expanduser() / FAILED_FILE
    if not place.is_file():
        raise DataError(
            f"{place}: no such file; the rule failed_supporter takes its rejected replies from FailedESConv: name its "
            "file with --failed"
        )
    rows, _ = load_all(str(place), DataOptions())
    found: dict[str, list[Context]] = {split: [] for split in SPLITS}
    for row in rows:
        if isinstance(row, Dialogue):
            share = int(row.dialogue_id[:8], 16) / 2**32
            split = "train" if share < 0.7 else "valid" if share < 0.85 else "test"
            found[split] += contexts_of([row])
    return found
