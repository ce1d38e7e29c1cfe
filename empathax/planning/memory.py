"""What one device must hold of a compiled function, by kind."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any

import jax

from empathax.planning.steps import Lowered

KINDS = ("frozen", "parameters", "gradients", "optimizer", "reference", "batch", "temporaries")
_UNITS = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40, "": 1}
_REFUSED = re.compile(r"(?:temporaries \(|hbm\. Used )([\d.]+)([KMGT]?)")  # of all, arguments and results too


@dataclass(frozen=True)
class Memory:
    """Bytes of one device.

    `by_kind` adds up to `total`. "frozen" is the model below an adapter, "parameters" what is trained. Gradients are
    the share of the temporaries that these take in float32; layout padding, code and results that take no argument's
    place are in the temporaries. `refused`: the compiler would not finish, and the total is what it named.
    """

    by_kind: dict[str, int]
    refused: bool = False

    @property
    def total(self) -> int:
        """All that must be on the device at once."""
        return sum(self.by_kind.values())


def device_bytes(tree: Any) -> int:
    """What one device holds of a tree of sharded arrays."""
    leaves = jax.tree.leaves(tree)
    return sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in leaves)


def as_dtype(tree: Any, dtype: Any) -> Any:
    """The same abstract arrays of another dtype."""
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, dtype, sharding=leaf.sharding), tree)


def compiled_bytes(stats: Any) -> int:
    """The bytes that XLA's `memory_analysis()` says a device must have for a program."""
    own_results = stats.output_size_in_bytes - stats.alias_size_in_bytes
    return stats.argument_size_in_bytes + own_results + stats.temp_size_in_bytes + stats.generated_code_size_in_bytes


def memory_of(lowered: Lowered, stats: Any) -> Memory:
    """The memory of a compiled function and of what is held beside it."""
    return _memory(lowered, compiled_bytes(stats))


def refused_memory(lowered: Lowered, message: str) -> Memory | None:
    """The memory of a function that the compiler refused for what it needs; None if `message` says otherwise."""
    found = _REFUSED.search(message)
    if not found:
        return None
    return _memory(lowered, round(float(found[1]) * _UNITS[found[2]]), refused=True)


def _memory(lowered: Lowered, whole: int, refused: bool = False) -> Memory:
    """Of a program that takes `whole` bytes, arguments and results included."""
    known = {kind: device_bytes(tree) for kind, tree in lowered.arguments.items()}
    rest = whole - sum(known.values())
    if refused:  # the figure is rounded
        rest = max(0, rest)
    by_kind = dict.fromkeys(KINDS, 0)
    for kind, size in [*known.items(), *((kind, device_bytes(tree)) for kind, tree in lowered.held.items())]:
        by_kind[kind] += size
    gradients = (
        min(rest, device_bytes(as_dtype(lowered.arguments["parameters"], "float32"))) if "optimizer" in known else 0
    )
    return Memory(by_kind | {"gradients": gradients, "temporaries": rest - gradients}, refused)
