"""Writes a model as a Hugging Face directory that transformers and vLLM load: whole, or not at all."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import ml_dtypes
import numpy as np

from empathax.atomic import whole_directory
from empathax.errors import CheckpointError, ConfigError, WeightsError
from empathax.models.architecture.hf_config import to_hf_config
from empathax.models.architecture.model_config import ModelConfig
from empathax.models.tokenizers.template_defaults import defaults_of
from empathax.models.tokenizers.tokenizer import Tokenizer
from empathax.models.weights.checks import check_finite, file_shape, parameter_at
from empathax.models.weights.names import Naming, Stored, stored_parameters
from empathax.models.weights.safetensors import INDEX_NAME, SINGLE_NAME, write_json
from empathax.models.weights.steps import seal_files, write_converted

_DTYPES = {"float32": ("F32", np.dtype(np.float32)), "bfloat16": ("BF16", np.dtype(ml_dtypes.bfloat16))}


class _Tensor(NamedTuple):
    """One tensor to write: layer `layer` of a parameter."""

    name: str
    shape: tuple[int, ...]
    stored: Stored
    layer: int


def export_model(
    params: dict[str, Any],
    config: ModelConfig,
    tokenizer: Tokenizer,
    out_dir: str | Path,
    *,
    dtype: str = "float32",
    max_shard_bytes: int = 5_000_000_000,
) -> Path:
    """Writes safetensors shards, config.json, generation_config.json and the tokenizer to `out_dir`; returns it.

    `out_dir` must not exist, or be empty. Files are written beside it and moved in one step. One layer of one
    parameter is on the host at a time. `dtype` is "float32" or "bfloat16".

    Raises:
        WeightsError: the weights are not finite, or transformers cannot read this model's config.json. Nothing is
            written then.
    """
    check_finite(str(out_dir), params)
    with export_directory(out_dir, dtype) as directory:
        _write_settings(directory, config, tokenizer, dtype)
        _check_with_transformers(directory)
        _write_weights(directory, params, list(_tensors(params, config)), dtype, max_shard_bytes)
    return Path(out_dir).absolute()


def export_orbax(
    params: dict[str, Any], config: ModelConfig, tokenizer: Tokenizer, out_dir: str | Path, *, dtype: str = "float32"
) -> Path:
    """The same directory with the parameters as Orbax arrays, in their own dtype, in place of safetensors.

    They are stored in small chunks, so that each host later reads its own part, in whatever layout.
    """
    check_finite(str(out_dir), params)
    with export_directory(out_dir, dtype) as directory:
        write_converted(directory, params)
        _write_settings(directory, config, tokenizer, dtype)
        seal_files(directory)
    return Path(out_dir).absolute()


@contextmanager
def export_directory(out_dir: str | Path, dtype: str) -> Iterator[Path]:
    """A directory to write to, which becomes `out_dir` at the end of the block, or is removed if that fails.

    Raises ConfigError if `out_dir` is not new or empty or cannot be made, CheckpointError if the disk refuses later.
    """
    target = Path(out_dir).absolute()
    _check_target(target, dtype)
    is_open = False
    try:
        with whole_directory(target) as directory:
            is_open = True
            yield directory
    except OSError as error:
        if not is_open:
            raise ConfigError(f"{target} cannot be written: {error.strerror}; choose another directory") from error
        raise CheckpointError(
            f"{target} could not be written ({error.strerror or error}); nothing was left there"
        ) from error


def _check_with_transformers(directory: Path) -> None:
    """Reads config.json as transformers does, which checks more than names of fields. Imports no torch by itself."""
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")  # that torch is not installed is as it should be
    from transformers import AutoConfig

    try:
        AutoConfig.from_pretrained(directory)
    except Exception as error:  # its validators raise what they like
        reason = " ".join(str(error).split()).rstrip(".")
        raise WeightsError(
            f"transformers cannot read the config.json of this model: {reason}; export it with --to=orbax, "
            "which empathax reads"
        ) from error


def _check_target(target: Path, dtype: str) -> None:
    if dtype not in _DTYPES:
        raise ConfigError(f"export dtype {dtype!r}: expected one of {', '.join(_DTYPES)}")
    if target.exists() and not target.is_dir():
        raise ConfigError(f"{target} is a file, expected a new or empty directory to export to")
    if target.is_dir() and any(target.iterdir()):
        raise ConfigError(f"{target} exists and is not empty: export to a new directory, or remove it first")


def _tensors(params: dict[str, Any], config: ModelConfig) -> Iterator[_Tensor]:
    for stored in stored_parameters(config, Naming("hf")):
        shape = file_shape(stored, parameter_at(params, stored.path).shape)
        for layer, name in enumerate(stored.names):
            yield _Tensor(name, shape, stored, layer)


def _write_weights(directory: Path, params: dict[str, Any], tensors: list[_Tensor], dtype: str, limit: int) -> None:
    item_bytes = _DTYPES[dtype][1].itemsize
    shards = _split(tensors, item_bytes, limit)
    names = (
        [SINGLE_NAME]
        if len(shards) == 1
        else [f"model-{number + 1:05d}-of-{len(shards):05d}.safetensors" for number in range(len(shards))]
    )
    for name, shard in zip(names, shards, strict=True):
        with (directory / name).open("wb") as file:
            _write_shard(file, params, shard, dtype)
            file.flush()
            os.fsync(file.fileno())
    if len(shards) > 1:
        weight_map = {tensor.name: name for name, shard in zip(names, shards, strict=True) for tensor in shard}
        total = sum(_num_values(tensor) for tensor in tensors) * item_bytes
        write_json(directory / INDEX_NAME, {"metadata": {"total_size": total}, "weight_map": weight_map})


def _split(tensors: list[_Tensor], item_bytes: int, limit: int) -> list[list[_Tensor]]:
    """Tensors in order, a new shard whenever the next one would pass `limit` bytes."""
    shards: list[list[_Tensor]] = [[]]
    room = limit
    for tensor in tensors:
        size = _num_values(tensor) * item_bytes
        if size > room and shards[-1]:
            shards.append([])
            room = limit
        shards[-1].append(tensor)
        room -= size
    return shards


def _write_shard(file: BinaryIO, params: dict[str, Any], tensors: list[_Tensor], dtype: str) -> None:
    """The safetensors format: header length, JSON header, then the values in the header's order."""
    type_name, numpy_type = _DTYPES[dtype]
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for tensor in tensors:
        size = _num_values(tensor) * numpy_type.itemsize
        header[tensor.name] = {"dtype": type_name, "shape": tensor.shape, "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    file.write(len(text).to_bytes(8, "little") + text)
    for tensor in tensors:
        leaf = parameter_at(params, tensor.stored.path)
        values = np.asarray(leaf[tensor.layer] if tensor.stored.stacked else leaf)
        values = values.T if tensor.stored.transposed else values
        file.write(np.ascontiguousarray(values, numpy_type).view(np.uint8).data)  # as bytes: bfloat16 has no buffer


def _num_values(tensor: _Tensor) -> int:
    return int(np.prod(tensor.shape, dtype=np.int64))


def _write_settings(directory: Path, config: ModelConfig, tokenizer: Tokenizer, dtype: str) -> None:
    tokenizer = tokenizer.fitted_to(config.vocab_size)
    write_json(directory / "config.json", to_hf_config(dataclasses.replace(config, file_dtype=dtype)))
    write_json(directory / "generation_config.json", _generation_config(config, tokenizer))
    tokenizer.save(directory)


def _generation_config(config: ModelConfig, tokenizer: Tokenizer) -> dict[str, Any]:
    stops = sorted({*tokenizer.stop_token_ids, *config.eos_token_ids})
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else config.pad_token_id
    ids = {"bos_token_id": config.bos_token_id, "pad_token_id": pad}
    found: dict[str, Any] = {key: value for key, value in ids.items() if value is not None}
    if stops:
        found["eos_token_id"] = stops
    if variables := defaults_of(tokenizer.chat_template or ""):
        found["chat_template_kwargs"] = variables  # for the reader; the template sets them itself
    return found
