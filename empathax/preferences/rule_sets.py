"""Sets made by rules: contexts in, files out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from empathax.config import DataOptions
from empathax.data.records import Dialogue
from empathax.data.sources import load_all, load_by_split
from empathax.errors import ConfigError, DataError
from empathax.preferences.contexts import (
    SPLITS,
    Context,
    contexts_of,
    counts_in_words,
    data_settings,
    digest,
    in_splits,
    load_contexts,
)
from empathax.preferences.filters import FilterOptions, filter_pairs
from empathax.preferences.overlap import HeldOutTexts, held_out_texts
from empathax.preferences.rules import RULES, check_made, rule_pairs
from empathax.preferences.set_files import PreferenceSet, check_not_empty, in_words, start, write_set

FAILED_FILE = "failed_esconv.json"
_FAILED_RULE = "failed_supporter"


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
        DataError: the source cannot be read, or lacks a split or what a rule goes by; or filters leave no pair.
    """
    check_names("rule", names, tuple(RULES))
    check_names("split", splits or SPLITS, SPLITS)
    rows = load_by_split(options)
    contexts = in_splits(load_contexts(rows, options), splits, options.path)
    failed_file = _failed_file(failed_path, options.path) if _FAILED_RULE in names else None
    all_failed = _failed(failed_file) if failed_file else {}
    held_out = {split: held_out_texts(rows, split) for split in contexts}
    say(counts_in_words(options.path, rows, contexts))
    summaries = {}
    for name in names:
        directory = out / name if len(names) > 1 else out
        failed = all_failed if name == _FAILED_RULE else {}
        settings = {
            "rule": name,
            "source": options.path,
            "failed": str(failed_file) if failed else None,
            "contexts": digest([*contexts.items(), *failed.items()]),
            "seed": seed,
            "splits": list(contexts),
            "data": data_settings(options),
            **vars(filters),
        }
        made = _made(name, contexts, failed, held_out, filters, settings)
        summaries[name] = write_set(directory, made, start(directory, settings))
        say(in_words(summaries[name], directory))
        check_not_empty(summaries[name])
    return summaries


def check_names(kind: str, names: Sequence[str], known: Sequence[str]) -> None:
    """Raises a ConfigError for the first of `names` that is not `known`, or for none at all."""
    unknown = [name for name in names if name not in known]
    if unknown or not names:
        found = f"{kind} {unknown[0]!r} is unknown" if unknown else f"no {kind} was given"
        raise ConfigError(f"{found}: expected some of {', '.join(known)}")


def _made(
    name: str,
    contexts: dict[str, list[Context]],
    failed: dict[str, list[Context]],
    held_out: dict[str, HeldOutTexts],
    filters: FilterOptions,
    settings: dict[str, Any],
) -> PreferenceSet:
    made = {split: rule_pairs(name, part, failed.get(split, []), settings["seed"]) for split, part in contexts.items()}
    check_made(name, made, contexts)
    return PreferenceSet(
        name,
        settings,
        {split: filter_pairs(pairs, held_out[split], filters) for split, pairs in made.items()},
        {split: len(texts) for split, texts in held_out.items()},
        {"pairs_before_filters": {split: len(pairs) for split, pairs in made.items()}},
    )


def _failed_file(path: str, source: str) -> Path:
    """FailedESConv: at `path`, else beside or in the source."""
    beside = Path(source).expanduser()
    place = Path(path).expanduser() if path else (beside.parent if beside.is_file() else beside) / FAILED_FILE
    if not place.is_file():
        raise DataError(
            f"{place}: no such file; the rule {_FAILED_RULE} takes its rejected replies from FailedESConv: name its "
            "file with --failed"
        )
    return place


def _failed(place: Path) -> dict[str, list[Context]]:
    """Contexts of FailedESConv by split: a dialogue goes to one of them by its name, so that no reply is in two."""
    rows, _ = load_all(str(place), DataOptions())
    found: dict[str, list[Context]] = {split: [] for split in SPLITS}
    for row in rows:
        if isinstance(row, Dialogue):
            share = int(row.dialogue_id[:8], 16) / 2**32
            split = "train" if share < 0.7 else "valid" if share < 0.85 else "test"
            found[split] += contexts_of([row])
    return found
