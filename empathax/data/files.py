"""Undecoded rows of what `data.path` names, each with its "file:line".

`open_source` finds the files and their splits: packaged samples, a file, a directory, or a data set on the hub.
`read_values` reads one file: JSON lines, a JSON list, CSV or parquet; all but parquet also packed (.gz, .bz2, .zst).
"""

from __future__ import annotations

import csv
import io
import json
import re
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, cast

from empathax import json_text
from empathax.config.arguments import path_problem
from empathax.config.losses import REPLY_ROWS
from empathax.data.records import Tally
from empathax.data.splits import VALIDATION_NAMES, choose_splits, split_name
from empathax.errors import DataError, did_you_mean
from empathax.shown import quoted, shown

SUFFIXES = (".jsonl", ".json", ".csv", ".parquet", ".ndjson")
MAX_LINE_BYTES = 8 << 20  # a longer line is no row but a damaged file
_UTF8_BOM = b"\xef\xbb\xbf"
_OTHER_BOMS = {
    **dict.fromkeys((b"\xff\xfe", b"\xfe\xff"), "UTF-16"),
    b"PK\x03\x04": "a zip archive",
}
_SPACE = re.compile(r"\s*")
_ANY_JSON = json.JSONDecoder(parse_int=len)  # whatever Python takes for JSON, numbers of any length
_PACKED = {b"\x1f\x8b": "gzip", b"BZh": "bz2", b"\x28\xb5\x2f\xfd": "zstd"}  # first bytes -> pyarrow's name
_PACKED_SUFFIXES = (".gz", ".bz2", ".zst", ".zstd")
_LFS_POINTER = b"version https://git-lfs.github.com/spec/"
# Of a JSON object that is no row: the rows are the one list in it
_CONTAINERS = ("train", "valid", "validation", "dev", "test", "data", "rows", "examples")

Values = Iterable[tuple[Any, str]]  # (undecoded row, "file:line")
Part = Callable[[Tally], Iterable[Values]]  # a split: the values of each of its files; unreadable lines are tallied


class BadRow(Exception):
    """A row that cannot be read; the message is the reason."""


class NoReply(BadRow):
    """A row that is well formed but holds no reply to learn."""


def open_source(path: str, rows_kind: str, eval_split: str = "valid", train_split: str = "") -> dict[str, Part]:
    """Undecoded rows by split: "train" and "eval" where the source has them, else "all".

    `rows_kind` (config/losses.py) chooses between the packaged dialogues and pairs, and between splits that are named
    by what they are for (data/splits.py, also for `eval_split` and `train_split`).

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
    if any((place / name).exists() for name in ("dataset_dict.json", "state.json")):
        found = _saved_splits(place, path)
        if found.keys() == {""}:
            _check_no_split(path, train_split)
            return {"all": found[""]}
    elif place.is_dir():
        found = _directory_splits(place)
    elif place.exists():
        _check_no_split(path, train_split)
        return {"all": _read([place])}
    elif path.startswith((".", "/", "~")) or data_suffix(place) in SUFFIXES or path.count("/") > 1:
        hint = did_you_mean(place.name, (other.name for other in place.parent.glob("*")))
        raise DataError(f"{path}: no such file or directory{hint}")
    else:
        found = _hub_splits(path)
    chosen = choose_splits(path, found, rows_kind, train_split, eval_split)
    if "train" in chosen:
        return {part: found[name] for part, name in chosen.items()}
    return _only_split(path, found)


def data_suffix(path: Path) -> str:
    """The suffix that tells a file's format: of rows.jsonl.zst it is .jsonl."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in _PACKED_SUFFIXES:
        suffixes.pop()
    return suffixes[-1] if suffixes else ""


def read_values(path: Path, tally: Tally) -> Iterator[tuple[Any, str]]:
    """(value, "file:line") of every row; rows that cannot be decoded are counted in `tally.bad`.

    Raises:
        DataError: the file as a whole cannot be read.
    """
    readers = {".csv": _read_csv, ".parquet": _read_parquet}
    with json_text.content_of(path, DataError):
        try:
            _check_encoding(path)
            yield from readers.get(data_suffix(path), _read_any_json)(path, tally)
        except OSError as error:  # also what unpacking finds wrong
            raise DataError(f"{path}: cannot be read: {error.strerror or error}") from None


def _read(paths: Sequence[Path]) -> Part:
    return lambda tally: (read_values(path, tally) for path in paths)


def _directory_splits(directory: Path) -> dict[str, Part]:
    """Files by split from their names (train.jsonl, valid.jsonl, train-00000-of-00001.parquet), also in data/."""
    entries = sorted([*directory.iterdir(), *(directory / "data").glob("*")])
    splits: dict[str, list[Path]] = {}
    for path in entries:
        if data_suffix(path) in SUFFIXES:
            splits.setdefault(split_name(_stem(path)), []).append(path)
    plain = {path.stem.lower(): path for path in entries if path.suffix.lower() == ".txt"}
    for name in {"train", *VALIDATION_NAMES, "test"} & plain.keys() - splits.keys():
        splits[name] = [plain[name]]  # JSON lines, as some sets name them
    for files in splits.values():
        _check_one_format(directory, files)
    return {name: _read(files) for name, files in splits.items()}


def _stem(path: Path) -> str:
    """The name without the suffixes of format and packing."""
    name = path.name
    for suffix in (*_PACKED_SUFFIXES, *SUFFIXES):
        name = name[: -len(suffix)] if name.lower().endswith(suffix) else name
    return name


def _only_split(path: str, found: Mapping[str, Part]) -> dict[str, Part]:
    """The one split of a source without any named train. Raises a DataError where there are several or none."""
    if len(found) == 1:
        return {"all": next(iter(found.values()))}
    listing = ", ".join(sorted(found)) or "no data file"
    raise DataError(
        f"{path}: found {listing}; expected train.* and valid.* or test.*, or exactly one file of "
        f"{', '.join(SUFFIXES)}: name the file itself, or a split in data.train_split"
    )


def _check_no_split(path: str, train_split: str) -> None:
    if train_split:
        raise DataError(f"{path} is one file without splits: leave data.train_split = {train_split!r} out")


def _check_one_format(directory: Path, files: Sequence[Path]) -> None:
    """Raises a DataError for a split in several formats: most likely the same rows twice."""
    if len({path.suffix.lower() for path in files}) > 1:
        names = ", ".join(path.name for path in files[:4])
        raise DataError(f"{directory}: found one split in several formats ({names}): keep one of them")


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
    return {split: _hub_rows(loaded[split], f"{name}/{split}") for split in loaded}


def _saved_splits(directory: Path, origin: str) -> dict[str, Part]:
    """Splits of a folder that `datasets` wrote with save_to_disk; "" of one without splits."""
    import datasets

    try:
        loaded = datasets.load_from_disk(str(directory))
    except Exception as error:  # damaged files raise whatever their reader raises
        raise DataError(f"{directory}: not a folder that datasets' save_to_disk wrote: {error}") from None
    if isinstance(loaded, datasets.Dataset):
        return {"": _hub_rows(loaded, origin)}
    return {str(split): _hub_rows(loaded[split], f"{origin}/{split}") for split in loaded}


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
    with _opened(path) as file:
        head = file.read(len(_LFS_POINTER))
    if not head.removeprefix(_UTF8_BOM):
        raise DataError(f"{path}: the file is empty")
    if head == _LFS_POINTER:
        raise DataError(
            f"{path} is a Git LFS pointer: the data themselves were not downloaded; run `git lfs pull` where it lies"
        )
    for mark, name in _OTHER_BOMS.items():
        if head.startswith(mark):
            raise DataError(f"{path}: the file is {name}, expected UTF-8 text or parquet; convert it first")


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    """The file's bytes, unpacked where its first ones say that it is packed."""
    with path.open("rb") as raw:
        head = raw.read(4)
        raw.seek(0)
        packing = next((name for mark, name in _PACKED.items() if head.startswith(mark)), None)
        if packing is None:
            yield raw
            return
        import pyarrow

        with pyarrow.CompressedInputStream(raw, packing) as unpacked:
            yield io.BufferedReader(cast("io.RawIOBase", unpacked))


def _read_any_json(path: Path, tally: Tally) -> Iterator[tuple[Any, str]]:
    """JSON lines, a list, or objects over several lines, as the first line says, whatever the file's name."""
    with _opened(path) as file:
        head = file.read(1 << 16).removeprefix(_UTF8_BOM).lstrip()
    first = head.partition(b"\n")[0].rstrip()
    if first.startswith(b"["):
        yield from _read_json(path, tally)
    elif first.startswith(b"{") and first.endswith((b"{", b"[")):
        yield from _read_objects(path)
    else:
        yield from _read_json_lines(path, tally)


def _read_objects(path: Path) -> Iterator[tuple[Any, str]]:
    """Objects printed over several lines, one after another; of a single one that holds one list, its items."""
    with _opened(path) as file:
        text = file.read().decode("utf-8-sig", errors="replace").rstrip()
    decoder, end, line, found = json_text.decoder(), 0, 1, []
    while end < len(text):
        space = _SPACE.match(text, end)
        start = space.end() if space else end
        line += text.count("\n", end, start)
        try:
            value, end = decoder.raw_decode(text, start)
        except (ValueError, RecursionError) as error:
            at = getattr(error, "lineno", line)
            reason = getattr(error, "msg", str(error) or "nested too deeply")
            raise DataError(f"{path}:{at}: not JSON: {shown(reason)}; expected a row on each line, or a list") from None
        found.append((value, f"{path}:{line}"))
        line += text.count("\n", start, end)
    if len(found) == 1 and (key := _container(path, found[0][0])):
        found = [(item, f"{path}:{key}[{number}]") for number, item in enumerate(found[0][0][key])]
    yield from found


def _container(path: Path, value: Any) -> str:
    """The key of an object that is no row but holds the rows; "" for a row."""
    keys = [key for key in _CONTAINERS if isinstance(value, dict) and isinstance(value.get(key), list)]
    if len(keys) > 1:
        raise DataError(
            f"{path}: one JSON object with the lists {', '.join(keys)}: write each to a file of its own "
            f"({keys[0]}.json)"
        )
    return keys[0] if keys else ""


def _read_json_lines(path: Path, tally: Tally) -> Iterator[tuple[Any, str]]:
    with _opened(path) as file:
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
        with _opened(path) as file:
            text = file.read().decode("utf-8-sig")
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
    csv.field_size_limit(MAX_LINE_BYTES)  # of one field; the module's own limit is 128 KiB
    with _opened(path) as binary, io.TextIOWrapper(binary, "utf-8-sig", "replace", newline="") as file:
        columns = next(csv.reader(file), [])
    # EmpatheticDialogues as first published does not quote: a quotation mark is text there.
    quoting: Any = csv.QUOTE_NONE if "selfeval" in columns else csv.QUOTE_MINIMAL
    try:
        with _opened(path) as binary, io.TextIOWrapper(binary, "utf-8-sig", newline="") as file:
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
