"""From `data.path` to rows: which files or hub splits it names, what format they have, what is held out."""

from __future__ import annotations

import difflib
import hashlib
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from empathax.config import DataOptions
from empathax.data.files import SUFFIXES, BadRow, NoReply, read_values
from empathax.data.records import CompletionRow, Dialogue, PreferenceRow, Row, Tally
from empathax.data.support_corpora import esconv_pairs, parse_empathetic_dialogues, parse_esconv
from empathax.data.trl_format import group_id, parse_row
from empathax.errors import DataError, raise_all

SPLIT_NAMES = {"train": ("train",), "eval": ("valid", "validation", "dev", "eval", "heldout", "test")}
SHOWN_REASONS = 5

Values = Iterable[tuple[Any, str]]  # (undecoded row, "file:line")
Part = Callable[[Tally], Iterable[Values]]  # a split: the values of each of its files; unreadable lines are tallied


@dataclass
class Splits:
    """Rows to train on and rows held out, and what was lost while reading them."""

    train: list[Row]
    eval: list[Row]
    tally: Tally


def load_splits(options: DataOptions, objective: str, seed: int = 0) -> Splits:
    """Rows for `objective` ("sft" or "dpo").

    "dpo" reads `preference_path` where that is set. Held out is: `eval_path`, which belongs to `path`; else the source's
    own valid (or test) split; else `eval_fraction` of the rows by a hash of the prompt, the same for every seed.

    Raises:
        DataError: nothing there, not readable, no row of a known format, or more bad rows than `max_bad_fraction`.
    """
    tally = Tally()
    own = bool(objective == "dpo" and options.preference_path)
    path = options.preference_path if own else options.path
    if not path:
        raise DataError("data.path is empty: set it to a file, a directory, a hub name or 'samples'")
    parts = {name: _rows(part, options, tally) for name, part in open_source(path, objective).items()}
    if options.eval_path and not own:
        held_out = open_source(options.eval_path, objective)
        parts["eval"] = _rows(held_out.get("eval") or held_out.get("all") or held_out["train"], options, tally)
        parts["train"] = parts.get("train", parts.pop("all", []))
    check_bad_rows(tally, options.max_bad_fraction)
    if not any(parts.values()):
        raise DataError(f"{path}: there is no row in it")
    parts = {name: _seeker_first(rows, options.seeker_first_only, tally) for name, rows in parts.items()}
    if "eval" not in parts:
        parts = _held_out(parts.get("all", parts.get("train", [])), options.eval_fraction)
    train, held = parts.get("train", parts.get("all", [])), parts["eval"]
    if objective == "dpo":
        train, held = (_as_pairs(rows, options.esconv_rejected, seed, path) for rows in (train, held))
    return Splits(_limited(train, options.max_train_dialogues), _limited(held, options.max_eval_dialogues), tally)


def load_all(path: str, options: DataOptions) -> tuple[list[Row], Tally]:
    """Every row of one source in its own order, splits one after another; nothing is left out.

    Raises:
        DataError: as `load_splits`.
    """
    tally = Tally()
    rows = [row for part in open_source(path, "sft").values() for row in _rows(part, options, tally)]
    check_bad_rows(tally, options.max_bad_fraction)
    if not rows:
        raise DataError(f"{path}: there is no row in it")
    return rows, tally


def check_bad_rows(tally: Tally, max_bad_fraction: float) -> None:
    """Raises a DataError with the first reasons if more rows are bad than allowed."""
    if not tally.bad or len(tally.bad) <= max_bad_fraction * tally.num_rows:
        return
    allowed = f"data.max_bad_fraction = {max_bad_fraction:g} allows {int(max_bad_fraction * tally.num_rows)}"
    heading = f"{len(tally.bad)} of {tally.num_rows} rows cannot be used ({allowed})"
    raise_all(DataError, heading, tally.bad, limit=SHOWN_REASONS)


def open_source(path: str, objective: str) -> dict[str, Part]:
    """Undecoded rows by split: "train" and "eval" where the source has them, else "all"."""
    if path == "samples":
        kind = "preferences" if objective == "dpo" else "dialogues"
        folder = Path(__file__).with_name("samples")
        return {"train": _read([folder / f"{kind}_train.jsonl"]), "eval": _read([folder / f"{kind}_heldout.jsonl"])}
    place = Path(path).expanduser()
    if place.is_dir():
        return {name: _read(files) for name, files in _directory_splits(place).items()}
    if place.exists():
        return {"all": _read([place])}
    if path.startswith((".", "/", "~")) or place.suffix in SUFFIXES or path.count("/") > 1:
        close = difflib.get_close_matches(place.name, [p.name for p in place.parent.glob("*")], n=1)
        hint = f"; did you mean {place.parent / close[0]}?" if close else ""
        raise DataError(f"{path}: no such file or directory{hint}")
    return _hub_splits(path)


def split_key(row: Row) -> str:
    """What decides the side of the held-out split: the dialogue, or the prompt's first user message."""
    return row.dialogue_id if isinstance(row, Dialogue) else group_id(row.prompt)


def _read(paths: Sequence[Path]) -> Part:
    return lambda tally: (read_values(path, tally) for path in paths)


def _directory_splits(directory: Path) -> dict[str, list[Path]]:
    """Files by split from their names (train.jsonl, valid.jsonl, train-00000-of-00001.parquet), also in data/."""
    files = sorted(p for p in [*directory.iterdir(), *(directory / "data").glob("*")] if p.suffix.lower() in SUFFIXES)
    splits: dict[str, list[Path]] = {}
    for split, names in SPLIT_NAMES.items():
        for name in names:
            found = [p for p in files if p.stem.lower() == name or p.stem.lower().startswith((f"{name}-", f"{name}_"))]
            if found:
                splits[split] = found
                break
    if "train" in splits:
        return splits
    if len(files) == 1:
        return {"all": files}
    listing = ", ".join(p.name for p in files) or "no data file"
    raise DataError(
        f"{directory}: found {listing}; expected train.* and valid.* or test.*, or exactly one file of "
        f"{', '.join(SUFFIXES)}: name the file itself"
    )


def _hub_splits(name: str) -> dict[str, Part]:
    """Splits of a `datasets` hub name, downloaded on first use."""
    import datasets

    try:
        loaded = datasets.load_dataset(name)
    except Exception as error:  # the library raises whatever its network layer raises
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(
            f"{name!r} is no file or directory here, and could not be loaded from the Hugging Face hub: {reason}"
        ) from None
    splits: dict[str, Part] = {}
    for split, names in SPLIT_NAMES.items():
        found = next((candidate for candidate in names if candidate in loaded), None)
        if found:
            splits[split] = _hub_rows(loaded[found], f"{name}/{found}")
    if "train" in splits:
        return splits
    first = next(iter(loaded))
    return {"all": _hub_rows(loaded[first], f"{name}/{first}")}


def _hub_rows(rows: Iterable[Any], origin: str) -> Part:
    return lambda tally: [((row, f"{origin}:{number}") for number, row in enumerate(rows, start=1))]


def _rows(part: Part, options: DataOptions, tally: Tally) -> list[Row]:
    """The typed rows of one split, each file by its own format."""
    return [row for values in part(tally) for row in _parsed(values, options.source, tally)]


def _parsed(values: Values, source: str, tally: Tally) -> Iterator[Row]:
    iterator = iter(values)
    first = next(iterator, None)
    if first is None:
        return
    iterator = itertools.chain([first], iterator)
    source = _detected(first[0]) if source == "auto" else source
    for result, origin in _results(iterator, source):
        tally.num_rows += 1
        if isinstance(result, NoReply):
            tally.dropped[str(result)] += 1
        elif isinstance(result, BadRow):
            tally.add_bad(origin, str(result))
        else:
            yield result


def _results(values: Values, source: str) -> Iterator[tuple[Row | BadRow, str]]:
    """Typed rows, or what is wrong with them."""
    if source == "empathetic_dialogues":
        yield from parse_empathetic_dialogues(values)
        return
    parse = parse_esconv if source == "esconv" else parse_row
    for value, origin in values:
        try:
            yield parse(value, origin), origin
        except BadRow as error:
            yield error, origin


def _detected(value: Any) -> str:
    """The format of a source, from its first row."""
    if isinstance(value, dict) and "dialog" in value:
        return "esconv"
    if isinstance(value, dict) and {"conv_id", "utterance"} <= value.keys():
        return "empathetic_dialogues"
    return "trl"


def _seeker_first(rows: list[Row], only: bool, tally: Tally) -> list[Row]:
    def supporter_opens(row: Row) -> bool:
        turns = [m for m in row.messages if m.role != "system"] if isinstance(row, Dialogue) else []
        return bool(turns) and turns[0].role == "assistant"

    kept = [row for row in rows if not (only and supporter_opens(row))]
    tally.counts["dialogues left out because the supporter opens them"] += len(rows) - len(kept)
    return kept


def _held_out(rows: list[Row], fraction: float) -> dict[str, list[Row]]:
    """Splits off `fraction` by a hash of the prompt; at least one prompt on each side where there are two."""
    keys = sorted({split_key(row) for row in rows}, key=_hash)
    if fraction <= 0.0 or len(keys) < 2:
        return {"train": rows, "eval": []}
    num_held = sum(_hash(key) < fraction * 2**64 for key in keys)
    held = set(keys[: min(max(num_held, 1), len(keys) - 1)])
    return {
        "train": [row for row in rows if split_key(row) not in held],
        "eval": [row for row in rows if split_key(row) in held],
    }


def _hash(key: str) -> int:
    return int.from_bytes(hashlib.sha256(f"held out/{key}".encode()).digest()[:8], "big")


def _as_pairs(rows: list[Row], rejected: str, seed: int, path: str) -> list[Row]:
    """Preference rows as they are; pairs made of dialogues whose turns can be replaced."""
    dialogues = [row for row in rows if isinstance(row, Dialogue)]
    if any(isinstance(row, CompletionRow) for row in rows) or any("strategies" not in d.meta for d in dialogues):
        if rejected == "advice" or any(isinstance(row, CompletionRow) for row in rows):
            raise DataError(
                f"{path}: the rows have no rejected reply, which dpo needs: set data.preference_path to rows with prompt, "
                "chosen and rejected, or for dialogues data.esconv_rejected='random'"
            )
    pairs = esconv_pairs(dialogues, rejected, seed) if dialogues else []
    return [row for row in rows if isinstance(row, PreferenceRow)] + pairs


def _limited(rows: list[Row], num_dialogues: int) -> list[Row]:
    """The rows of the first `num_dialogues` dialogues; 0 = all."""
    if not num_dialogues:
        return rows
    kept = set(itertools.islice(dict.fromkeys(row.dialogue_id for row in rows), num_dialogues))
    return [row for row in rows if row.dialogue_id in kept]
