"""Digests of arrays, counted where the arrays are, and of files: what a checkpoint is compared with when it is read."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

_MULTIPLIERS = (2654435761, 2246822519)  # odd: of Knuth's multiplicative hash, and of xxHash32
_MIXER = 3266489917  # of MurmurHash3's last steps
_HASHED_BYTES = 1 << 20  # larger files hold arrays, which have digests of their own


def leaf_digests(tree: Any) -> dict[str, str]:
    """A 64-bit digest of each leaf's bits, in hex, by path: equal on every mesh, unequal after one flipped bit.

    Two wrap-around sums of mixed bit patterns times odd weights that depend on the place. It is compiled, and counts on
    the devices that hold the arrays.
    """
    names = [leaf_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(tree)]
    digests = jax.device_get(_digests(jax.tree.leaves(tree)))
    return {name: "".join(f"{int(word):08x}" for word in words) for name, words in zip(names, digests, strict=True)}


def leaf_records(tree: Any) -> dict[str, str]:
    """What a checkpoint says of each leaf, by path: dtype, shape and digest, such as "float32[3, 4] 09f3..."."""
    digests = leaf_digests(tree)
    return {path: f"{spelled} {digests[path]}" for path, spelled in layout(tree).items()}


def layout(tree: Any) -> dict[str, str]:
    """Dtype and shape of each leaf, by path."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {leaf_name(path): f"{jnp.dtype(leaf.dtype)}{list(leaf.shape)}" for path, leaf in leaves}


def differing(found: Mapping[str, str], wanted: Mapping[str, str]) -> list[str]:
    """What is said of the leaves on which two layouts, or records, differ."""
    return [
        f"{path}: found {found.get(path, 'nothing')}, expected {wanted.get(path, 'nothing')}"
        for path in sorted(found.keys() | wanted.keys())
        if found.get(path) != wanted.get(path)
    ]


def json_digest(value: Any) -> str:
    """SHA-256 of a JSON value, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def file_records(directory: Path, skipped: Collection[str] = ()) -> dict[str, list[Any]]:
    """Size and SHA-256 of every file below `directory` but those `skipped`, by path; of files over 1 MiB the size."""
    files = sorted(path for path in directory.rglob("*") if path.is_file())
    names = {path.relative_to(directory).as_posix(): path for path in files}
    return {name: _file_record(path) for name, path in names.items() if name not in skipped}


def _file_record(path: Path) -> list[Any]:
    size = path.stat().st_size
    return [size, hashlib.sha256(path.read_bytes()).hexdigest() if size <= _HASHED_BYTES else ""]


@jax.jit
def _digests(leaves: list[jax.Array]) -> list[tuple[jax.Array, ...]]:
    return [_digest(leaf) for leaf in leaves]


def _digest(leaf: jax.Array) -> tuple[jax.Array, ...]:
    leaf = jnp.asarray(leaf)
    leaf = leaf.astype(jnp.uint8) if leaf.dtype == jnp.bool_ else leaf
    unsigned = jnp.dtype(f"uint{8 * leaf.dtype.itemsize}")
    bits = jnp.atleast_1d(jax.lax.bitcast_convert_type(leaf, unsigned).astype(jnp.uint32))
    # mixed: a sum of bits alone would not see two flipped signs, which add up to 2^32
    mixed = (bits ^ (bits >> 16)) * np.uint32(_MIXER)
    mixed = mixed ^ (mixed >> 15)
    return tuple(_weighted_sum(mixed, multiplier) for multiplier in _MULTIPLIERS)


def _weighted_sum(values: jax.Array, multiplier: int) -> jax.Array:
    """The wrap-around sum of all values, each times one odd weight of its index in every dimension.

    The first dimension goes first: sums over it run side by side for the elements of the last, and no sharded leaf is
    gathered.
    """
    for number, size in enumerate(values.shape):
        weights = _weights(size, number, multiplier).reshape(-1, *[1] * (values.ndim - 1))
        values = (values * weights).sum(0, dtype=jnp.uint32)
    return values


@functools.cache
def _weights(size: int, dimension: int, multiplier: int) -> np.ndarray:
    """Odd numbers that depend on the place, as in the last steps of MurmurHash3."""
    mixed = np.arange(size, dtype=np.uint32) + np.uint32(dimension * 0x9E3779B9 % 2**32)
    mixed = (mixed ^ (mixed >> np.uint32(15))) * np.uint32(multiplier)
    mixed = (mixed ^ (mixed >> np.uint32(13))) * np.uint32(_MIXER)
    return (mixed ^ (mixed >> np.uint32(16))) | np.uint32(1)


def leaf_name(path: tuple[Any, ...]) -> str:
    """A leaf's path as it is shown, such as "layers/attention/query/kernel"."""
    return jax.tree_util.keystr(path, simple=True, separator="/")
