"""What `data.path` names: packaged samples, a file, a directory of splits, or a data set on the hub."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from empathax.data.files import SUFFIXES, read_values
from empathax.data.records import Tally
from empathax.errors import DataError

_VALID = ("valid", "validation", "dev", "eval", "heldout")
_HELD_OUT = {  # data.eval_split -> names of the split, the first that is there
    "valid": (*_VALID, "test"),
    "test": ("test", "heldout"),
    "valid alone": _VALID,
}

Values = Iterable[tuple[Any, str]]  # (undecoded row, "file:line")
Part = Callable[[Tally], Iterable[Values]]  # a split: the values of each of its files; unreadable lines are tallied


def open_source(path: str, objective: str, eval_split: str = "valid") -> dict[str, Part]:
    """Undecoded rows by split: "train" and "eval" where the source has them, else "all".

    Raises a DataError if there is nothing there.
    """
    if path == "samples":
        kind = "preferences" if objective == "dpo" else "dialogues"
        folder = Path(__file__).with_name("samples")
        return {"train": _read([folder / f"{kind}_train.jsonl"]), "eval": _read([folder / f"{kind}_heldout.jsonl"])}
    if "://" in path:
        raise DataError(f"{path} is in a store: data are read from a disk or the hub, so copy them first (gsutil cp)")
    place = Path(path).expanduser()
    if place.is_dir():
        return {name: _read(files) for name, files in _directory_splits(place, eval_split).items()}
    if place.exists():
        return {"all": _read([place])}
    if path.startswith((".", "/", "~")) or place.suffix in SUFFIXES or path.count("/") > 1:
        close = difflib.get_close_matches(place.name, [p.name for p in place.parent.glob("*")], n=1)
        hint = f"; did you mean {place.parent / close[0]}?" if close else ""
        raise DataError(f"{path}: no such file or directory{hint}")
    return _hub_splits(path, eval_split)


def _split_names(eval_split: str) -> dict[str, tuple[str, ...]]:
    return {"train": ("train",), "eval": _HELD_OUT[eval_split]}


def _read(paths: Sequence[Path]) -> Part:
    return lambda tally: (read_values(path, tally) for path in paths)


def _directory_splits(directory: Path, eval_split: str) -> dict[str, list[Path]]:
    """Files by split from their names (train.jsonl, valid.jsonl, train-00000-of-00001.parquet), also in data/."""
    entries = [*directory.iterdir(), *(directory / "data").glob("*")]
    files = sorted(path for path in entries if path.suffix.lower() in SUFFIXES)
    named = sorted([*files, *(path for path in entries if path.suffix.lower() == ".txt")])
    splits: dict[str, list[Path]] = {}
    for split, names in _split_names(eval_split).items():
        for name in names:
            found = [p for p in named if p.stem.lower() == name or p.stem.lower().startswith((f"{name}-", f"{name}_"))]
            if found:
                _check_one_format(directory, found)
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


def _check_one_format(directory: Path, files: Sequence[Path]) -> None:
    """Raises a DataError for a split in several formats: most likely the same rows twice."""
    if len({path.suffix.lower() for path in files}) > 1:
        names = ", ".join(path.name for path in files[:4])
        raise DataError(f"{directory}: found one split in several formats ({names}): keep one of them")


def _hub_splits(name: str, eval_split: str) -> dict[str, Part]:
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
    for split, names in _split_names(eval_split).items():
        found = next((candidate for candidate in names if candidate in loaded), None)
        if found:
            splits[split] = _hub_rows(loaded[found], f"{name}/{found}")
    if "train" in splits:
        return splits
    first = next(iter(loaded))
    return {"all": _hub_rows(loaded[first], f"{name}/{first}")}


def _hub_rows(rows: Iterable[dict[str, Any]], origin: str) -> Part:
    """Rows of one split; a column that is null in a row is not in that row."""

    def values() -> Iterator[tuple[Any, str]]:
        for number, row in enumerate(rows, start=1):
            yield {key: value for key, value in row.items() if value is not None}, f"{origin}:{number}"

    return lambda tally: [values()]
