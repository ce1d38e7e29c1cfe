"""The files of a Hugging Face directory: JSON settings, and safetensors weights in one file or in shards.

safetensors: https://github.com/huggingface/safetensors#format. Pickled weights are never opened.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import safetensors

from empathax import json_text
from empathax.errors import WeightsError, raise_all
from empathax.models.weights.byte_files import RangeFile, TensorInfo, exists, is_url
from empathax.shown import quoted, shown

INDEX_NAME = "model.safetensors.index.json"
SINGLE_NAME = "model.safetensors"
FLOAT_TYPES = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16}
_PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt")
_CUT_BYTES = 16 << 20  # read at a time where only a part of each row is wanted
_MAX_HEADER_BYTES = 100_000_000  # the format's own limit
_MAX_NAME_BYTES = 255  # of a file's name, in all usual file systems


def read_json(path: Path) -> dict[str, Any] | None:
    """The object in a JSON file; None if there is no such file, a WeightsError if it is not a JSON object."""
    try:
        value = json_text.read(path, WeightsError)
    except FileNotFoundError:
        return None
    if not isinstance(value, dict):
        raise WeightsError(f"{path} holds a JSON {type(value).__name__}, expected an object")
    return value


def write_json(path: Path, value: Any) -> None:
    """Writes a settings file of such a directory."""
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


class SafetensorsFiles:
    """The tensors of one or several safetensors files, read by byte range."""

    def __init__(self, paths: Iterable[Path | str], expected_files: dict[str, str] | None = None):
        """`expected_files` is the index's tensor -> file name; it must agree with what the files hold."""
        self.tensors: dict[str, TensorInfo] = {}
        self._places: dict[str, tuple[RangeFile, int]] = {}
        self._files: list[RangeFile] = []
        problems: list[str] = []
        for path in paths:
            self._add(path, problems)
        problems += _index_problems(self.tensors, expected_files)
        raise_all(WeightsError, "the safetensors files cannot be used", problems)

    def read(self, name: str, index: tuple[slice, ...]) -> np.ndarray:
        """A copy of the values at `index`, in the file's own float type."""
        info = self.tensors[name]
        file, start = self._places[name]
        dtype = np.dtype(FLOAT_TYPES[info.dtype])
        if not info.shape:
            return file.read(start, dtype.itemsize).view(dtype).reshape(())
        first, last, _ = index[0].indices(info.shape[0])
        row_bytes = math.prod(info.shape[1:]) * dtype.itemsize

        def rows(low: int, high: int) -> np.ndarray:
            found = file.read(start + low * row_bytes, (high - low) * row_bytes)
            return found.view(dtype).reshape(high - low, *info.shape[1:])

        columns = index[1:]
        if all(range(*part.indices(size)) == range(size) for part, size in zip(columns, info.shape[1:], strict=False)):
            return rows(first, last)
        # a part of each row: they are read whole, some at a time, because many small reads take longer
        step = max(1, _CUT_BYTES // row_bytes)
        parts = [rows(low, min(low + step, last))[:, *columns].copy() for low in range(first, last, step)]
        return np.concatenate(parts)

    @property
    def bytes_read(self) -> int:
        """How much was read of all files so far, headers included."""
        return sum(file.bytes_read for file in self._files)

    @property
    def versions(self) -> list[str]:
        """What a store says of each file's content; see RangeFile."""
        return [file.version for file in self._files]

    def _add(self, path: Path | str, problems: list[str]) -> None:
        parent, _, file_name = str(path).rpartition("/")
        size = 0
        try:
            file = RangeFile(path)
            size = len(file)
            header, data_start = _header(file)
            if is_url(str(path)):
                _check_end(file, header, data_start)
            else:
                with safetensors.safe_open(path, framework="numpy"):  # checks sizes and offsets against the file
                    pass
        except FileNotFoundError:
            problems.append(f"{shown(file_name)}: found no such file in {parent}, expected a weight shard")
            return
        except (safetensors.SafetensorError, WeightsError, OSError, ValueError) as error:
            problems.append(
                f"{shown(file_name)}: cut short or damaged ({size:,} bytes: {shown(str(error))}); download it again"
            )
            return
        self._files.append(file)
        for name, info, first in _entries(header, file_name):
            if name in self.tensors:
                problems.append(f"{name}: found in {self.tensors[name].file} and in {file_name}, expected once")
            self.tensors[name] = info
            self._places[name] = (file, data_start + first)


def _header(file: RangeFile) -> tuple[dict[str, Any], int]:
    """The JSON object that a file begins with, and where its data begin. Raises a ValueError, or a WeightsError."""
    length = int.from_bytes(file.read(0, 8).tobytes(), "little")
    if length > _MAX_HEADER_BYTES:
        raise ValueError(f"its header has {length:,} bytes, and the format allows {_MAX_HEADER_BYTES:,}")
    if 8 + length > len(file):
        raise ValueError(f"its header has {length:,} bytes, the file {len(file):,}")
    header = json_text.parse(file.read(8, length).tobytes())
    if not isinstance(header, dict):
        raise ValueError("its header is no JSON object")
    return header, 8 + length


def _entries(header: dict[str, Any], file_name: str) -> Iterator[tuple[str, TensorInfo, int]]:
    """(name, what it is, first byte among the data) of every tensor."""
    for name, entry in header.items():
        if name != "__metadata__":
            dtype = entry["dtype"]
            info = TensorInfo(tuple(entry["shape"]), dtype, file_name, dtype in FLOAT_TYPES)
            yield name, info, entry["data_offsets"][0]


def _check_end(file: RangeFile, header: dict[str, Any], data_start: int) -> None:
    """Raises a ValueError unless the entries of a file in a store are whole and end where it ends."""
    end = 0
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        is_whole = isinstance(entry, dict) and isinstance(entry.get("dtype"), str)
        if not is_whole or not all(_are_sizes(entry.get(key)) for key in ("shape", "data_offsets")):
            raise ValueError(f"the entry {shown(name)} of its header is not whole")
        first, last = entry["data_offsets"]
        size = np.dtype(FLOAT_TYPES.get(entry["dtype"], np.uint8)).itemsize * math.prod(entry["shape"])
        if entry["dtype"] in FLOAT_TYPES and last - first != size:
            raise ValueError(f"the tensor {shown(name)} has {last - first:,} bytes, expected {size:,}")
        end = max(end, last)
    if data_start + end != len(file):
        raise ValueError(f"its tensors end at byte {data_start + end:,}")


def _are_sizes(value: Any) -> bool:
    return isinstance(value, list) and all(type(size) is int and 0 <= size < 2**63 for size in value)


def open_weights(directory: Path, url: str = "") -> SafetensorsFiles:
    """The weights of a directory: model.safetensors, else by its index, else its one .safetensors file; in this order
    as transformers, which leaves an old index where it saves one file. Never opens pickles.

    With `url` they are in the store there, and the directory holds the index only.
    """
    index = read_json(directory / INDEX_NAME)
    single = f"{url}/{SINGLE_NAME}" if url else directory / SINGLE_NAME
    if (url and index is None) or exists(single):
        return SafetensorsFiles([single])
    if index is not None:
        return _open_index(directory, index, url)
    found = sorted(directory.glob("*.safetensors"))
    if len(found) == 1 and found[0].name != "adapter_model.safetensors":
        return SafetensorsFiles(found)
    if len(found) > 1:
        names = ", ".join(path.name for path in found[:3])
        raise WeightsError(
            f"{directory} has {len(found)} .safetensors files ({names}, ...) but no {INDEX_NAME}: copy it too"
        )
    raise WeightsError(_no_weights(directory, found))


def _open_index(directory: Path, index: dict[str, Any], url: str) -> SafetensorsFiles:
    weight_map = index.get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
        raise WeightsError(f"{directory / INDEX_NAME} has no 'weight_map' of tensor names to file names")
    files = sorted(set(weight_map.values()))
    raise_all(
        WeightsError,
        f"{directory / INDEX_NAME} names files that no file system can hold, so nothing was read",
        [f"found {quoted(name)}" for name in files if len(name.encode()) > _MAX_NAME_BYTES or not name.isprintable()],
    )
    outside = [name for name in files if Path(name).name != name or name in ("", ".", "..") or "\\" in name]
    raise_all(
        WeightsError,
        f"{directory / INDEX_NAME} points outside its directory, so nothing was read",
        [f"found {name!r}, expected a plain file name" for name in outside],
    )
    pickles = [name for name in files if not name.endswith(".safetensors")]
    raise_all(
        WeightsError,
        f"{directory / INDEX_NAME} names files that are not safetensors, so nothing was read",
        [f"found {name!r}, expected *.safetensors" for name in pickles],
    )
    places = [f"{url}/{name}" if url else directory / name for name in files]
    return SafetensorsFiles(places, weight_map)


def _index_problems(tensors: dict[str, TensorInfo], expected: dict[str, str] | None) -> list[str]:
    if expected is None:
        return []
    problems = []
    for name, file in expected.items():
        if name not in tensors:
            problems.append(f"{name}: found in no readable file, expected in {file} by the index")
        elif tensors[name].file != file:
            problems.append(f"{name}: found in {tensors[name].file}, expected in {file} by the index")
    extra = [
        f"{name}: found in {info.file}, but the index does not name it"
        for name, info in tensors.items()
        if name not in expected
    ]
    return problems + extra


def _no_weights(directory: Path, found: list[Path]) -> str:
    if found:
        return f"{directory} holds a LoRA adapter (adapter_model.safetensors), expected a whole model: merge it first"
    pickles = sorted(path.name for path in directory.iterdir() if path.suffix in _PICKLE_SUFFIXES)
    if pickles:
        return (
            f"{directory} has only pickled weights ({', '.join(pickles[:3])}), which can run code when opened and were "
            "not read: expected *.safetensors; save the model again with transformers, or take another revision of it"
        )
    return f"{directory} has no weights: expected {SINGLE_NAME}, or {INDEX_NAME} with its shards"
