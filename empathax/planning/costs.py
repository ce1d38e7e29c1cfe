"""What a step costs: floating-point operations, bytes on one device, and the least time that they allow.

Operations are multiplications and additions of matrix products. `*_flops` count what the mathematics asks for: forward,
and backward as twice that. They leave out padding, scores computed again in a backward pass, hidden (query, key) pairs,
elementwise work and the optimizer. `train_hardware_flops` counts what a program computes.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from empathax.config.hardware import Topology
from empathax.config.lora import LoraSpec
from empathax.data.prefix_tree import Tree
from empathax.models.architecture.model_config import ModelConfig
from empathax.models.lora.adapters import abstract_adapter
from empathax.models.transformer import abstract_params
from empathax.planning.steps import Lowered

MEMORY_KINDS = ("frozen", "parameters", "gradients", "optimizer", "reference", "batch", "temporaries")
_UNITS = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40, "": 1}
_REFUSED = re.compile(r"(?:temporaries \(|hbm\. Used )([\d.]+)([KMGT]?)")  # of all, arguments and results too


@dataclass(frozen=True)
class Counts:
    """What one or several trees hold: tokens, tokens that are trained, and (query, key) pairs that see each other."""

    tokens: int
    trained: int
    visible_pairs: int


def tree_counts(trees: Iterable[Tree]) -> Counts:
    """The counts of `trees` together; full attention, no sliding window."""
    trees = list(trees)
    return Counts(
        tokens=sum(tree.num_tokens for tree in trees),
        trained=sum(tree.num_trained for tree in trees),
        visible_pairs=sum(int((tree.subtree_end - np.arange(tree.num_tokens)).sum()) for tree in trees),
    )


def train_flops(config: ModelConfig, counts: Counts) -> int:
    """Useful operations of forward and backward over `counts`."""
    return 3 * forward_flops(config, counts)


def adapter_flops(config: ModelConfig, spec: LoraSpec, counts: Counts) -> int:
    """The same where an adapter is trained: frozen kernels are multiplied with in both directions, and have no gradient
    of their own; the adapter's factors have."""
    layers, attention, vocabulary = forward_parts(config, counts)
    factors = jax.tree.leaves(abstract_adapter(abstract_params(config), spec))
    own = 2 * counts.tokens * sum(leaf.size for leaf in factors if len(leaf.shape) == 3)
    return 2 * layers + 3 * attention + 2 * vocabulary + 3 * own


def forward_flops(config: ModelConfig, counts: Counts) -> int:
    """Useful operations of the forward pass over `counts`."""
    return sum(forward_parts(config, counts))


def forward_parts(config: ModelConfig, counts: Counts) -> tuple[int, int, int]:
    """Those of the layers' kernels, of attention's scores and mixing, and of the vocabulary projection."""
    layers = 2 * config.num_layers * layer_matmul_params(config) * counts.tokens
    attention = 4 * config.num_layers * config.query_dim * counts.visible_pairs
    vocabulary = 2 * config.vocab_size * config.model_dim * counts.trained
    return layers, attention, vocabulary


def layer_matmul_params(config: ModelConfig) -> int:
    """Entries of one layer's kernels: query, key, value, output, gate, up and down."""
    D = config.model_dim
    return D * (config.query_dim + 2 * config.kv_dim) + config.query_dim * D + 3 * D * config.ff_dim


def train_hardware_flops(config: ModelConfig, counts: Counts, remat: str, with_reference: bool) -> float:
    """What a training step computes over `counts`, recomputation included.

    The vocabulary's logits and attention's scores are always computed again in the backward pass; with remat "full" and
    "offload" so is every layer, with "attention" all of it but attention. A resident reference is one more forward
    pass.
    """
    layers, attention, vocabulary = forward_parts(config, counts)
    layers_again = remat in ("full", "offload", "attention")
    attention_again = remat in ("full", "offload")
    return (
        layers * (3 + layers_again)
        + attention * (3.5 + attention_again)
        + vocabulary * 4
        + (layers + attention + vocabulary) * with_reference
    )


@dataclass(frozen=True)
class Memory:
    """Bytes of one device.

    `by_kind` (MEMORY_KINDS) adds up to `total`. "frozen" is the model below an adapter, "parameters" what is trained.
    Gradients are the share of the temporaries that these take in float32; layout padding, code and results that take no
    argument's place are in the temporaries. `refused`: the compiler did not finish, and the total is what it named.
    """

    by_kind: dict[str, int]
    refused: bool = False

    @property
    def total(self) -> int:
        """All that must be on the device at once."""
        return sum(self.by_kind.values())


def device_bytes(tree: Any, dtype: Any = None) -> int:
    """What one device holds of a tree of sharded arrays; if `dtype` is given, of the same arrays in it."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * (np.dtype(dtype) if dtype else leaf.dtype).itemsize
        for leaf in jax.tree.leaves(tree)
    )


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
    arguments = {kind: device_bytes(tree) for kind, tree in lowered.arguments.items()}
    rest = whole - sum(arguments.values())
    if refused:  # the figure is rounded
        rest = max(0, rest)
    by_kind = dict.fromkeys(MEMORY_KINDS, 0) | arguments
    for kind, tree in lowered.held.items():
        by_kind[kind] += device_bytes(tree)
    has_gradients = "optimizer" in arguments
    gradients = min(rest, device_bytes(lowered.arguments["parameters"], "float32")) if has_gradients else 0
    return Memory(by_kind | {"gradients": gradients, "temporaries": rest - gradients}, refused)


@dataclass(frozen=True)
class Roofline:
    """Seconds of one run of a function at the hardware's rates."""

    compute: float
    memory: float
    network: float

    @property
    def shortest(self) -> float:
        """If all three overlap."""
        return max(self.compute, self.memory, self.network)

    @property
    def longest(self) -> float:
        """If they do not overlap at all."""
        return self.compute + self.memory + self.network


def roofline(
    topology: Topology,
    hardware_flops: float,
    kept_bytes: int,
    temporary_bytes: int,
    sent_bytes: int,
    between_bytes: int = 0,
    read_again_bytes: int = 0,
) -> Roofline | None:
    """The least time of a function by the bytes of one device (plan_text.ASSUMPTIONS); None where rates are not known.

    `kept_bytes`, arguments and results, are moved once, temporaries and what collectives bring are written and read;
    `read_again_bytes` are read once more. `between_bytes` go from TPU slice to slice, or from GPU node to node,
    `sent_bytes` all other ways.
    """
    kind = topology.kind
    if not kind.peak_flops or (between_bytes and not kind.network_bandwidth):
        return None
    traffic = kept_bytes + 2 * (temporary_bytes + sent_bytes + between_bytes) + read_again_bytes
    network = sent_bytes / kind.link_bandwidth
    if between_bytes:
        network = max(network, between_bytes / kind.network_bandwidth)  # cables of their own
    return Roofline(
        compute=hardware_flops / topology.num_devices / kind.peak_flops,
        memory=traffic / kind.memory_bandwidth,
        network=network,
    )
