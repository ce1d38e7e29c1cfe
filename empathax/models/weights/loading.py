"""Weights on disk -> the parameter tree: checked as a whole, then read piece by piece into each device's memory."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding, PartitionSpec

from empathax.errors import WeightsError, raise_all
from empathax.models.architecture.model_config import ModelConfig
from empathax.models.transformer import abstract_params
from empathax.models.weights.byte_files import TensorReader
from empathax.models.weights.checks import check_size, check_tensors, parameter_at, put_parameter
from empathax.models.weights.names import Naming, Stored, stored_parameters

Params = dict[str, Any]
Finish = Callable[[tuple[str, ...], jax.Array], dict[str, jax.Array]]  # (path, parameter) -> values by name
_PIECE_BYTES = 8 << 20  # of a parameter, on the host at one time (or one layer of it, if that is more)
_SHARED_BYTES = 1 << 20  # from this size on the devices share the reading of a parameter


def identity(path: tuple[str, ...], leaf: jax.Array) -> dict[str, jax.Array]:
    """The parameter itself, under its own name."""
    return {path[-1]: leaf}


def finished(params: Params, finish: Finish) -> Params:
    """Parameters that came all at once, each as `finish` makes it."""
    done: Params = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        names = tuple(key.key for key in path)
        for name, value in finish(names, leaf).items():
            put_parameter(done, (*names[:-1], name), value)
    return done


def load_params(
    reader: TensorReader,
    config: ModelConfig,
    naming: Naming,
    source: str,
    param_dtype: jnp.dtype = jnp.float32,
    shardings: Params | None = None,
    finish: Finish = identity,
) -> Params:
    """The parameter tree of `abstract_params(config, param_dtype)`, each leaf laid out as `shardings` says.

    `finish` makes of each parameter, as soon as it is there, what takes its place.

    Raises one WeightsError with every tensor that is missing, left over, of a wrong shape or type, or not finite.
    `source` names the file or directory in it. The host holds one piece of a parameter at a time (8 MB, or one layer).
    However the parameters are laid out, each device reads other rows of the file's tensors, which lie together there,
    and the devices exchange what they have read: of n hosts each reads 1/n of the bytes, and none twice.
    """
    shapes = abstract_params(config, param_dtype)
    if finish is identity:
        check_size(shapes, config, source, np.dtype(param_dtype).itemsize)
    check_tensors(reader, config, naming, source)
    default = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    nonfinite: dict[str, int] = {}
    params: Params = {}
    for stored in stored_parameters(config, naming):
        shape = parameter_at(shapes, stored.path)
        sharding = default if shardings is None else parameter_at(shardings, stored.path)
        read = functools.partial(_read_part, reader, stored, shape, nonfinite)
        for name, value in finish(stored.path, _load_leaf(shape, sharding, stored, read)).items():
            put_parameter(params, (*stored.path[:-1], name), value)
    nonfinite = _of_all_processes(nonfinite, reader)
    problems = [
        f"{name}: found {count:,} NaN or infinite values (or more), expected none" for name, count in nonfinite.items()
    ]
    raise_all(WeightsError, f"{source} holds weights that are not finite", problems)
    return params


def read_parameter(reader: TensorReader, stored: Stored, layer: int, index: tuple[slice, ...]) -> np.ndarray:
    """The part of one layer's parameter at `index` (in our layout), in a float dtype."""
    name = stored.names[layer]
    file_index = index[::-1] if stored.transposed else index
    if stored.interleaved_heads:
        values = _read_interleaved(reader, name, stored.interleaved_heads, file_index)
    else:
        values = reader.read(name, file_index)
    if stored.offset:  # in float32: near 1 a bfloat16 has too few digits left for the scale
        values = values.astype(np.float32) - np.float32(stored.offset)
    return values.T if stored.transposed else values


def _read_interleaved(reader: TensorReader, name: str, num_heads: int, index: tuple[slice, ...]) -> np.ndarray:
    """Rows of a query or key tensor in our order: a head's even rows of the file first, then its odd ones.

    llama.cpp rotates planes (2i, 2i + 1), so its converter interleaves the halves of each head.
    """
    num_rows = reader.tensors[name].shape[0]
    head_rows = num_rows // num_heads
    first, last, _ = index[0].indices(num_rows)
    low, high = first // head_rows * head_rows, -(-last // head_rows) * head_rows
    rows = reader.read(name, (slice(low, high), *index[1:]))
    by_plane = rows.reshape(-1, head_rows // 2, 2, *rows.shape[1:])
    return by_plane.swapaxes(1, 2).reshape(rows.shape)[first - low : last - low]


def _read_part(
    reader: TensorReader,
    stored: Stored,
    leaf: jax.ShapeDtypeStruct,
    nonfinite: dict[str, int],
    index: tuple[slice, ...],
) -> np.ndarray:
    """The part of a whole parameter (layer axis included) at `index`, in its target dtype."""
    ranges = [range(*part.indices(size)) for part, size in zip(index, leaf.shape, strict=True)]
    values = np.empty([len(part) for part in ranges], leaf.dtype)
    inner = index[1:] if stored.stacked else index
    for row, layer in enumerate(ranges[0] if stored.stacked else (0,)):
        part = read_parameter(reader, stored, layer, inner)
        num_bad = part.size - int(np.count_nonzero(np.isfinite(part)))
        if num_bad:
            nonfinite[stored.names[layer]] = max(num_bad, nonfinite.get(stored.names[layer], 0))
        values[row if stored.stacked else ...] = part
    return values


def _load_leaf(
    leaf: jax.ShapeDtypeStruct, sharding: jax.sharding.Sharding, stored: Stored, read: Callable[..., np.ndarray]
) -> jax.Array:
    """Fills one array piece by piece, in place on the devices."""
    rows_axis = len(leaf.shape) - 1 if stored.transposed else int(stored.stacked)  # the first axis of a tensor's file
    reading = sharding
    if math.prod(leaf.shape) * np.dtype(leaf.dtype).itemsize >= _SHARED_BYTES:
        reading = _reading_sharding(leaf, sharding, rows_axis)
    axes = (0, rows_axis) if stored.stacked else (rows_axis,)
    shape = _piece_shape(leaf, sharding, axes, 1 if reading is sharding else len(sharding.device_set))
    if shape == leaf.shape:
        read_as = jax.make_array_from_callback(leaf.shape, reading, read)
        return read_as if reading is sharding else _exchange(sharding)(read_as)
    empty, put = _placers(leaf.shape, np.dtype(leaf.dtype), sharding)
    whole: jax.Array = empty()
    for starts in _starts(leaf.shape, shape):
        piece = jax.make_array_from_callback(shape, reading, functools.partial(_read_shifted, read, starts, shape))
        whole = put(whole, piece, starts)
        whole.block_until_ready()  # else pieces pile up on the host
    return whole


def _piece_shape(
    leaf: jax.ShapeDtypeStruct, sharding: jax.sharding.Sharding, axes: tuple[int, ...], multiple: int
) -> tuple[int, ...]:
    """The shape of a piece of about _PIECE_BYTES: less along `axes` in this order, never along one that is split.

    The last of `axes`, the rows of a file, stays a multiple of `multiple`.
    """
    shape, shard = list(leaf.shape), sharding.shard_shape(leaf.shape)
    for axis in axes:
        num_bytes = math.prod(shape) * np.dtype(leaf.dtype).itemsize
        if shard[axis] == shape[axis] and num_bytes > _PIECE_BYTES:
            unit = multiple if axis == axes[-1] else 1
            step = max(1, _PIECE_BYTES * shape[axis] // num_bytes // unit) * unit
            shape[axis] = min(step, shape[axis])
    return tuple(shape)


def _starts(whole: tuple[int, ...], piece: tuple[int, ...]) -> Iterable[tuple[int, ...]]:
    """Where pieces begin; the last ones overlap others rather than have a size of their own to compile."""
    sides = zip(whole, piece, strict=True)
    return itertools.product(*([min(start, size - step) for start in range(0, size, step)] for size, step in sides))


def _reading_sharding(
    leaf: jax.ShapeDtypeStruct, sharding: jax.sharding.Sharding, rows_axis: int
) -> jax.sharding.Sharding:
    """Which device reads what: the rows of the file in equal parts; its own slice if they do not divide."""
    if not isinstance(sharding, NamedSharding) or sharding.mesh.size == 1 or leaf.shape[rows_axis] % sharding.mesh.size:
        return sharding
    spec: list[Any] = [None] * len(leaf.shape)
    spec[rows_axis] = sharding.mesh.axis_names
    return NamedSharding(sharding.mesh, PartitionSpec(*spec))


@functools.lru_cache(maxsize=64)
def _exchange(sharding: jax.sharding.Sharding) -> Callable[[jax.Array], jax.Array]:
    return jax.jit(lambda array: array, out_shardings=sharding)


@functools.lru_cache(maxsize=64)
def _placers(
    shape: tuple[int, ...], dtype: np.dtype, sharding: jax.sharding.Sharding
) -> tuple[Callable[[], jax.Array], Callable[[jax.Array, jax.Array, tuple[int, ...]], jax.Array]]:
    empty = jax.jit(lambda: jnp.zeros(shape, dtype), out_shardings=sharding)
    return empty, jax.jit(jax.lax.dynamic_update_slice, donate_argnums=0, out_shardings=sharding)


def _read_shifted(
    read: Callable[..., np.ndarray], starts: tuple[int, ...], shape: tuple[int, ...], index: tuple[slice, ...] | None
) -> np.ndarray:
    """`read` at an index into the piece of `shape` that begins at `starts`."""
    assert index is not None  # None is for arrays of no dimensions
    ranges = [part.indices(size) for part, size in zip(index, shape, strict=True)]
    return read(
        tuple(slice(start + first, start + last) for start, (first, last, _) in zip(starts, ranges, strict=True))
    )


def _of_all_processes(counts: dict[str, int], reader: TensorReader) -> dict[str, int]:
    """The same counts by tensor on every process, each of which has read another part: the largest of them."""
    if jax.process_count() == 1:
        return counts
    names = sorted(reader.tensors)
    own = np.array([counts.get(name, 0) for name in names], np.int32)
    largest = multihost_utils.process_allgather(own).max(axis=0)
    return {name: int(count) for name, count in zip(names, largest, strict=True) if count}
