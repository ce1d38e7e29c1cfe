"""Useful floating-point operations of a training step: what the mathematics asks for, whatever a program computes.

Counted are multiplications and additions of matrix products, forward and backward (three times forward). Not counted:
padding, scores computed again in a backward pass, hidden (query, key) pairs, elementwise work, the optimizer.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import jax
import numpy as np

from empathax.data.prefix_tree import Tree
from empathax.lora_settings import LoraSpec
from empathax.models.lora import abstract_adapter
from empathax.models.model_config import ModelConfig
from empathax.models.transformer import abstract_params


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


def layer_matmul_params(config: ModelConfig) -> int:
    """Entries of one layer's kernels: query, key, value, output, gate, up and down."""
    D = config.model_dim
    return D * (config.query_dim + 2 * config.kv_dim) + config.query_dim * D + 3 * D * config.ff_dim


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
