"""GGUF files: the header, and tensors unpacked to float32 a few rows at a time.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, versions 2 and 3. The header is parsed here because
the `gguf` package's reader takes 12 s for a vocabulary of 262,144; its block sizes and its unpacking are used.
"""

from __future__ import annotations

import dataclasses
import math
import struct
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from empathax import json_text
from empathax.errors import WeightsError, raise_all
from empathax.models.architecture.gguf_config import from_gguf_metadata
from empathax.models.architecture.model_config import ModelConfig
from empathax.models.rope import RopeConfig, inverse_frequencies
from empathax.models.weights.byte_files import MappedFile, TensorInfo
from empathax.shown import quoted, shown

# files named "Q4_K_M" and the like mix several of these
GGUF_TYPES = ("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K")

# value types of the metadata that have a fixed size: id -> struct code
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_CHUNK_BYTES = 8 << 20  # float32 bytes unpacked at once
# A header's counts are bounded by what files have, not by what they say: a vocabulary has some 260,000 tokens.
_MAX_ITEMS, _MAX_FIELDS, _MAX_TENSORS = 1 << 24, 1 << 16, 1 << 20
_MAX_DIMS = 4  # GGML_MAX_DIMS
_MAX_NAME_BYTES, _MAX_TEXT_BYTES = 1 << 16, 64 << 20


class _Place(NamedTuple):
    """Where a tensor's blocks lie."""

    start: int
    row_bytes: int
    type_id: int


class GgufFile:
    """One GGUF file: `metadata` as a dict, `tensors` by name, `read` for values."""

    def __init__(self, path: Path):
        self.path = path
        self._gguf = _import_gguf()
        self._file = MappedFile(path)
        self.tensors: dict[str, TensorInfo] = {}
        self._places: dict[str, _Place] = {}
        with json_text.content_of(path, WeightsError):
            try:
                self.metadata, entries, data_start = _parse_header(self._file)
            except (struct.error, UnicodeDecodeError, _BadHeader) as error:
                detail = error if isinstance(error, _BadHeader) else "the header ends early or is damaged"
                raise WeightsError(f"{path} cannot be read as GGUF: {detail}; download it again") from error
            self._locate(entries, data_start)

    def read(self, name: str, index: tuple[slice, ...]) -> np.ndarray:
        """Float32 values of a tensor at `index`; only the rows asked for are unpacked."""
        info, place = self.tensors[name], self._places[name]
        row_index, column_index = (index[0], index[1]) if len(info.shape) == 2 else (slice(None), index[0])
        num_rows, num_columns = (info.shape[0] if len(info.shape) == 2 else 1), info.shape[-1]
        first, last, _ = row_index.indices(num_rows)
        columns = range(num_columns)[column_index]
        values = np.empty((last - first, len(columns)), np.float32)
        step = max(1, _CHUNK_BYTES // (4 * num_columns))
        for row in range(first, last, step):
            stop = min(row + step, last)
            values[row - first : stop - first] = self._unpack(place, row, stop)[:, column_index]
        self._file.forget(place.start + first * place.row_bytes, (last - first) * place.row_bytes)
        return values if len(info.shape) == 2 else values[0]

    def _unpack(self, place: _Place, first: int, last: int) -> np.ndarray:
        raw = self._file.view(place.start + first * place.row_bytes, (last - first) * place.row_bytes, np.uint8)
        kind = self._gguf.GGMLQuantizationType(place.type_id)
        return self._gguf.quants.dequantize(raw.reshape(last - first, place.row_bytes), kind)

    def _locate(self, entries: list[tuple[str, tuple[int, ...], int, int]], data_start: int) -> None:
        problems = []
        for name, shape, type_id, offset in entries:
            type_name, block, block_bytes = self._type(type_id)
            row_bytes = shape[-1] // block * block_bytes if shape else 0
            end = data_start + offset + math.prod(shape[:-1]) * row_bytes
            if name in self.tensors:
                problems.append(f"{shown(name)}: found twice, expected once")
            elif block and end > len(self._file):
                problems.append(f"{shown(name)}: ends at byte {end:,}, but the file has {len(self._file):,}")
            elif block and (len(shape) not in (1, 2) or shape[-1] % block):
                problems.append(f"{shown(name)}: shape {list(shape)} does not fit blocks of {block} ({type_name})")
            self.tensors[name] = TensorInfo(shape, type_name, self.path.name, type_name in GGUF_TYPES)
            self._places[name] = _Place(data_start + offset, row_bytes, type_id)
        raise_all(WeightsError, f"{self.path} is damaged or cut short; download it again", problems)

    def _type(self, type_id: int) -> tuple[str, int, int]:
        """Name, values per block and bytes per block; (name, 0, 0) for a type that `gguf` does not know."""
        try:
            kind = self._gguf.GGMLQuantizationType(type_id)
        except ValueError:
            return f"type {type_id}", 1, 0
        block, block_bytes = self._gguf.GGML_QUANT_SIZES[kind]
        return kind.name, block, block_bytes


def config_of(file: GgufFile) -> ModelConfig:
    """The config in the metadata, with what GGUF leaves to the presence of tensors: tying, biases, rope factors."""
    num_tokens = len(file.metadata.get("tokenizer.ggml.tokens", ()))
    config = from_gguf_metadata(file.metadata | ({"tokenizer.vocab_size": num_tokens} if num_tokens else {}))
    rope = config.rope
    if "rope_freqs.weight" in file.tensors:
        rope = _rope_with_factors(config, file.read("rope_freqs.weight", (slice(None),)))
    return dataclasses.replace(
        config,
        tied_embeddings="output.weight" not in file.tensors,
        attention_bias=config.attention_bias or "blk.0.attn_q.bias" in file.tensors,
        output_bias="blk.0.attn_output.bias" in file.tensors,
        mlp_bias="blk.0.ffn_up.bias" in file.tensors,
        rope=rope,
    )


def _rope_with_factors(config: ModelConfig, factors: np.ndarray) -> RopeConfig:
    """The llama3 scaling that made `rope_freqs.weight`: divisors of each plane's frequency, up to the factor itself.

    llama.cpp keeps the divisors, not the settings; Llama 3.1, 3.2 and 3.3 all use the ones below.
    """
    if np.all(factors == 1):
        return config.rope
    scaled = dataclasses.replace(
        config.rope,
        type="llama3",
        factor=float(factors.max()),
        low_freq_factor=1.0,
        high_freq_factor=4.0,
        original_max_positions=8192,
    )
    unscaled = inverse_frequencies(dataclasses.replace(config.rope, type="default"), config.head_dim)
    divisors = unscaled / inverse_frequencies(scaled, config.head_dim)
    if factors.shape != divisors.shape or not np.allclose(factors, divisors, rtol=1e-4):
        raise WeightsError(
            f"rope_freqs.weight is not the scaling of Llama 3.1 (factor {scaled.factor:g}, frequency factors 1 and 4, "
            "context 8192), the only one supported in GGUF files; use the model's safetensors files"
        )
    return scaled


class _BadHeader(Exception):
    pass


def _import_gguf() -> ModuleType:
    try:
        import gguf
        import gguf.quants
    except ImportError as error:
        raise WeightsError(
            "reading a .gguf file needs the package 'gguf', which is not installed: pip install gguf "
            "(or install empathax with its 'demo' extra)"
        ) from error
    return gguf


def _parse_header(file: MappedFile) -> tuple[dict[str, Any], list[tuple[str, tuple[int, ...], int, int]], int]:
    """(metadata, [(name, shape with rows first, type, offset)], start of the data)."""
    if len(file) < 24 or file.buffer[:4] != b"GGUF":
        raise _BadHeader("it does not start with the letters GGUF")
    version, num_tensors, num_fields = struct.unpack_from("<IQQ", file.buffer, 4)
    if version not in (2, 3):
        raise _BadHeader(f"found version {version}, expected 2 or 3 (little-endian)")
    _check_count("tensors", num_tensors, _MAX_TENSORS)
    _check_count("metadata fields", num_fields, _MAX_FIELDS)
    cursor = _Cursor(file.buffer, 24)
    metadata: dict[str, Any] = {}
    for _ in range(num_fields):
        key = cursor.string(_MAX_NAME_BYTES)
        if key in metadata:
            raise _BadHeader(f"the header has the key {quoted(key)} twice")
        metadata[key] = cursor.value(cursor.scalar("I"))
    entries = [_tensor_entry(cursor) for _ in range(num_tensors)]
    alignment = metadata.get("general.alignment", 32)
    if not isinstance(alignment, int) or alignment < 1:
        raise _BadHeader(f"general.alignment = {alignment!r}: expected a number of bytes")
    return metadata, entries, -(-cursor.position // alignment) * alignment


def _tensor_entry(cursor: _Cursor) -> tuple[str, tuple[int, ...], int, int]:
    name = cursor.string(_MAX_NAME_BYTES)
    num_dims = cursor.scalar("I")
    _check_count(f"dimensions of {shown(name)}", num_dims, _MAX_DIMS)
    sizes = tuple(cursor.scalar("Q") for _ in range(num_dims))
    return name, sizes[::-1], cursor.scalar("I"), cursor.scalar("Q")  # GGUF names the fastest axis first


def _check_count(what: str, count: int, limit: int) -> None:
    if count > limit:
        raise _BadHeader(f"the header speaks of {count:,} {what}, expected at most {limit:,}")


class _Cursor:
    """Reads little-endian values one after the other."""

    def __init__(self, buffer: Any, position: int):
        self._buffer = buffer
        self.position = position

    def scalar(self, code: str) -> Any:
        (value,) = struct.unpack_from(f"<{code}", self._buffer, self.position)
        self.position += struct.calcsize(code)
        return value

    def string(self, limit: int = _MAX_TEXT_BYTES) -> str:
        start = self.position + 8
        (length,) = struct.unpack_from("<Q", self._buffer, self.position)
        _check_count("bytes of one text", length, limit)
        if start + length > len(self._buffer):
            raise _BadHeader("the header ends early or is damaged")
        self.position = start + length
        return str(self._buffer[start : start + length], "utf-8", "replace")

    def value(self, kind: int) -> Any:
        if kind == _STRING:
            return self.string()
        if kind != _ARRAY:
            if kind not in _SCALARS:
                raise _BadHeader(f"the header has a value of unknown type {kind}")
            return self.scalar(_SCALARS[kind])
        item, count = self.scalar("I"), self.scalar("Q")
        _check_count("values of one list", count, _MAX_ITEMS)
        if item in _SCALARS:
            values = struct.unpack_from(f"<{count}{_SCALARS[item]}", self._buffer, self.position)
            self.position += count * struct.calcsize(_SCALARS[item])
            return list(values)
        if item != _STRING:
            raise _BadHeader(f"the header has a list of values of type {item}, expected numbers or texts")
        return [self.string() for _ in range(count)]
