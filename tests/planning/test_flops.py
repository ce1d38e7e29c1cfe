"""The count of operations against one made by hand."""

import dataclasses

import numpy as np

from empathax.config.lora import LoraSpec
from empathax.data.prefix_tree import ScoredSequence, build_tree
from empathax.models.architecture.presets import preset
from empathax.planning.costs import Counts, adapter_flops, layer_matmul_params, train_flops, tree_counts


def _ids(*values: int) -> np.ndarray:
    return np.array(values, np.int32)


def test_counts_of_a_pair_that_shares_its_prompt():
    pair = [ScoredSequence(_ids(5, 6), _ids(7, 8), 0), ScoredSequence(_ids(5, 6), _ids(9), 1)]
    # Tokens 5 6 | 7 8 | 9. Each sees itself and its ancestors: 1 + 2 + 3 + 4, and 3 for the 9.
    assert tree_counts([build_tree(pair)]) == Counts(tokens=5, trained=3, visible_pairs=13)


def test_operations_of_a_step_by_hand():
    config = dataclasses.replace(
        preset("tiny-llama"),
        num_layers=2,
        model_dim=8,
        num_heads=4,
        num_kv_heads=2,
        head_dim=3,
        ff_dim=10,
        vocab_size=20,
    )
    # query 8x12, key and value 8x6 each, output 12x8, three 8x10 of the MLP
    assert layer_matmul_params(config) == 96 + 2 * 48 + 96 + 3 * 80
    # A product with a kernel of n entries costs 2n a token, forward; scores and their mix with the values 2 x 3 each
    # for every head and visible pair. Backward costs twice as much again.
    forward = 5 * 2 * 2 * 528 + 3 * 2 * 8 * 20 + 2 * 4 * 13 * (2 * 3 + 2 * 3)
    counts = Counts(tokens=5, trained=3, visible_pairs=13)
    assert train_flops(config, counts) == 3 * forward
    # factors of rank 2 on query (8 + 12) and down (10 + 8) in both layers; kernels have no gradient of their own
    factors, attention = 2 * 2 * (20 + 18), 2 * 4 * 13 * (2 * 3 + 2 * 3)
    wanted = 2 * (forward - attention) + 3 * attention + 3 * 2 * 5 * factors
    assert adapter_flops(config, LoraSpec(2, 2.0, targets=("q_proj", "down_proj")), counts) == wanted
