"""Undecoded rows of what `data.path` names, each with its "file:line".

`open_source` finds the files and their splits: packaged samples, a file, a directory, or a data set on the hub.
`read_values` reads one file: JSON lines, a JSON list, CSV or parquet.
"""

from __future__ import annotations

import csv
import json
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from empathax import json_text
from empathax.config.arguments import path_problem
from empathax.config.losses import REPLY_ROWS
from empathax.data.records import Tally
from empathax.errors import DataError, did_you_mean
from empathax.shown import quoted, shown

SUFFIXES = (".jsonl", ".json", ".csv", ".parquet", ".ndjson")
MAX_LINE_BYTES = 8 << 20  # a longer line is no row but a damaged file
_UTF8_BOM = b"\xef\xbb\xbf"
_OTHER_BOMS = {
    **dict.fromkeys((b"\xff\xfe", b"\xfe\xff"), "UTF-16"),
    b"PK\x03\x04": "a zip archive",
    b"\x1f\x8b": "a gzip archive",
}
_ANY_JSON = json.JSONDecoder(parse_int=len)  # whatever Python takes for JSON, numbers of any length
_VALID = ("valid", "validation", "dev", "eval", "heldout")
_HELD_OUT = {  # data.eval_split -> names of the split, the first that is there
    "valid": (*_VALID, "test"),
    "test": ("test", "heldout"),
    "valid alone": _VALID,
}

Values = Iterable[tuple[Any, str]]  # (undecoded row, "file:line")
Part = Callable[[Tally], Iterable[Values]]  # a split: the values of each of its files; unreadable lines are tallied


class BadRow(Exception):
    """A row that cannot be read; the message is the reason."""


class NoReply(BadRow):
    """A row that is well formed but holds no reply to learn."""


def open_source(path: str, rows_kind: str, eval_split: str = "valid") -> dict[str, Part]:
    """Undecoded rows by split: "train" and "eval" where the source has them, else "all".

    `rows_kind` (config/losses.py) chooses between the packaged dialogues and pairs.

    Raises a DataError if there is nothing there.
    """
    if path == "samples":
        kind = "dialogues" if rows_kind == REPLY_ROWS else "preferences"
        folder = Path(__file__).with_name("samples")
        return {"train": _read([folder / f"{kind}_train.jsonl"]), "eval": _read([folder / f"{kind}_heldout.jsonl"])}
    if problem := path_problem(path):
        raise DataError(f"{quoted(path)} cannot be a path: {problem}")
    if "://" in path:
        raise DataError(f"{path} is in a store: data are read from a disk or the hub, so copy them first (gsutil cp)")
    place = Path(path).expanduser()
    if place.is_dir():
        return {name: _read(files) for name, files in _directory_splits(place, eval_split).items()}
    if place.exists():
        return {"all": _read([place])}
    if path.startswith((".", "/", "~")) or place.suffix in SUFFIXES or path.count("/") > 1:
        hint = did_you_mean(place.name, (other.name for other in place.parent.glob("*")))
        raise DataError(f"{path}: no such file or directory{hint}")
    return _hub_splits(path, eval_split)


def read_values(path: Path, tally: Tally) -> Iterator[tuple[Any, str]]:
    """(value, "file:line") of every row; rows that cannot be decoded are counted in `tally.bad`.

    Raises:
        DataError: the file as a whole cannot be read.
    """
    readers = {".csv": _read_csv, ".parquet": _read_parquet, ".json": _read_json}
    with json_text.content_of(path, DataError):
        try:
            _check_encoding(path)
            yield from readers.get(path.suffix.lower(), _read_json_lines)(path, tally)
        except OSError as error:
            raise DataError(f"{path}: cannot be read: {error.strerror or error}") from None


def _read(paths: Sequence[Path]) -> Part:
    return lambda tally: (read_values(path, tally) for path in paths)


def _split_names(eval_split: str) -> dict[str, tuple[str, ...]]:
    return {"train": ("train",), "eval": _HELD_OUT[eval_split]}


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


def check_ordinary(path: Path) -> None:
    """Raises a DataError for a device or a pipe, which may have no end, and an OSError if there is nothing."""
    mode = path.stat().st_mode
    if not stat.S_ISREG(mode):
        raise DataError(f"{path}: it is {'a directory' if stat.S_ISDIR(mode) else 'no ordinary file'}, expected a file")


def _check_encoding(path: Path) -> None:
    check_ordinary(path)
    with path.open("rb") as file:
        head = file.read(4)
    if not head.removeprefix(_UTF8_BOM):
        raise DataError(f"{path}: the file is empty")
    for mark, name in _OTHER_BOMS.items():
        if head.startswith(mark):
            raise DataError(f"{path}: the file is {name}, expected UTF-8 text or parquet; convert it first")


def _read_json_lines(path: Path, tally: Tally) -> Iterator[tuple[Any, str]]:
    with path.open("rb") as file:
        for number, line in enumerate(_lines(file), start=1):
            text = line.removeprefix(_UTF8_BOM) if number == 1 else line
            if text.strip():
                origin = f"{path}:{number}"
                try:
                    yield _parsed(text), origin
                except BadRow as error:
                    tally.num_rows += 1
                    tally.add_bad(origin, str(error))


def _lines(file: Any) -> Iterator[bytes]:
    """Lines of a binary file; of a line over the limit, only its beginning."""
    while line := file.readline(MAX_LINE_BYTES + 1):
        rest = line
        while rest and not rest.endswith(b"\n") and len(rest) > MAX_LINE_BYTES:
            rest = file.readline(MAX_LINE_BYTES + 1)
        yield line


def _parsed(line: bytes) -> Any:
    if len(line) > MAX_LINE_BYTES:
        raise BadRow(f"the line has more than {MAX_LINE_BYTES >> 20} MiB")
    try:
        return json_text.parse(line.rstrip())
    except json_text.JsonError as error:
        raise BadRow(str(error)) from None


def _read_json(path: Path, tally: Tally) -> Iterator[tuple[Any, str]]:
    """A JSON list, its items with the line they begin at; or JSON lines under the name .json."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 at byte {error.start}") from None
    if not text.lstrip().startswith("["):
        yield from _read_json_lines(path, tally)
        return
    position, line, counted = text.index("[") + 1, 1, 0
    while True:
        while text[position : position + 1].isspace():
            position += 1
        if text[position : position + 1] == "]":
            if rest := text[position + 1 :].strip():
                line = 1 + text.count("\n", 0, position + 1)
                raise DataError(f"{path}:{line}: found {rest[:20]!r} after the list's end: expected one JSON list")
            return
        line, counted = line + text.count("\n", counted, position), position
        try:
            value, position = _next_item(text, position)
        except (json.JSONDecodeError, RecursionError) as error:
            if isinstance(error, json.JSONDecodeError):
                line = error.lineno
            raise DataError(f"{path}:{line}: not a JSON list: {getattr(error, 'msg', 'nested too deeply')}") from None
        if isinstance(value, BadRow):
            tally.num_rows += 1
            tally.add_bad(f"{path}:{line}", str(value))
        else:
            yield value, f"{path}:{line}"
        while text[position : position + 1].isspace() or text[position : position + 1] == ",":
            position += 1


def _next_item(text: str, position: int) -> tuple[Any, int]:
    """The value that begins at `position`, or a BadRow if it is JSON that is refused, and where it ends."""
    try:
        value, end = json_text.decoder().raw_decode(text, position)
        json_text.check_value(value, text[position:end])
        return value, end
    except json_text.JsonError:
        end = _ANY_JSON.raw_decode(text, position)[1]
    try:
        return json_text.parse(text[position:end]), end  # raises it again, with the name of the field
    except json_text.JsonError as error:
        return BadRow(str(error)), end


def _read_csv(path: Path, tally: Tally) -> Iterator[tuple[Any, str]]:
    with path.open(encoding="utf-8-sig", errors="replace", newline="") as file:
        columns = file.readline(MAX_LINE_BYTES).strip().replace('"', "").split(",")
    # EmpatheticDialogues as first published does not quote: a quotation mark is text there.
    quoting: Any = csv.QUOTE_NONE if "selfeval" in columns else csv.QUOTE_MINIMAL
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader: csv.DictReader[str] = csv.DictReader(file, None, "", None, "excel", quoting=quoting, strict=True)
            for row in reader:
                yield {key: value for key, value in row.items() if key}, f"{path}:{reader.line_num}"
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 at byte {error.start}; save it as UTF-8") from None
    except csv.Error as error:
        raise DataError(f"{path}: not a CSV file: {shown(str(error))}") from None


def _read_parquet(path: Path, tally: Tally) -> Iterator[tuple[Any, str]]:
    import pyarrow.parquet

    try:
        number = 0
        for batch in pyarrow.parquet.ParquetFile(path).iter_batches():
            for value in batch.to_pylist():
                number += 1
                yield {key: item for key, item in value.items() if item is not None}, f"{path}:{number}"
    except pyarrow.ArrowException as error:
        raise DataError(f"{path}: not a parquet file: {shown(str(error))}") from None
