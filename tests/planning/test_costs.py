"""Operations of a step, and the bound on its time, against figures made by hand."""

import dataclasses

import numpy as np
import pytest

from empathax.config.hardware import parse_hardware
from empathax.config.lora import LoraSpec
from empathax.data.prefix_tree import ScoredSequence, build_tree
from empathax.models.architecture.presets import preset
from empathax.planning.costs import (
    Counts,
    adapter_flops,
    forward_flops,
    forward_parts,
    layer_matmul_params,
    roofline,
    train_flops,
    train_hardware_flops,
    tree_counts,
)


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


def test_the_longest_and_the_sum_of_three_times():
    # 16 v5e chips: 16 x 197 TFLOP/s, 819 GB/s and 200 GB/s a chip
    found = roofline(parse_hardware("v5e:4x4"), 2 * 16 * 197e12, 300 * 10**9, 100 * 10**9, 9500 * 10**6, 0, 19 * 10**9)
    assert found is not None
    assert found.compute == pytest.approx(2.0)
    assert found.memory == pytest.approx((300 + 2 * (100 + 9.5) + 19) / 819)
    assert found.network == pytest.approx(9.5 / 200)
    assert found.shortest == found.compute
    assert found.longest == pytest.approx(found.compute + found.memory + found.network)


def test_slices_have_a_slow_network_between_them_beside_their_links():
    # of a v5e pod's 6.4 Tbit/s a chip has 3.125 GB/s
    alone = roofline(parse_hardware("v5e:4x4"), 1e12, 1, 1, 10**9)
    found = roofline(parse_hardware("2xv5e:4x4"), 1e12, 1, 1, 10**9, 5 * 10**9)
    assert alone is not None
    assert found is not None
    assert alone.network == pytest.approx(1 / 200)
    assert found.network == pytest.approx(5 / 3.125)
    assert found.memory > alone.memory


def test_what_leaves_a_node_goes_at_the_speed_of_the_network_card_beside_the_rest():
    within, between = (
        roofline(parse_hardware("h100:2x8"), 1e12, 1, 1, 10**9, between) for between in (10**8, 5 * 10**8)
    )
    assert within is not None
    assert between is not None
    assert (within.network, between.network) == (pytest.approx(1 / 450), pytest.approx(0.5 / 50))


def test_a_network_whose_rate_is_not_known_has_no_bound():
    assert roofline(parse_hardware("2xtpu7x:2x2x1"), 1e12, 1, 1, 1, 1) is None


def test_a_cpu_has_no_known_rates():
    assert roofline(parse_hardware("cpu:2"), 1e12, 1, 1, 1) is None


def test_recomputation_is_arithmetic_of_the_hardware_only():
    config = dataclasses.replace(preset("tiny-llama"), num_layers=3)
    counts = Counts(tokens=100, trained=20, visible_pairs=4000)
    layers, attention, vocabulary = forward_parts(config, counts)
    kept = train_hardware_flops(config, counts, "none", with_reference=False)
    assert kept == pytest.approx(3 * layers + 3.5 * attention + 4 * vocabulary)
    full = train_hardware_flops(config, counts, "full", with_reference=True)
    assert full == pytest.approx(kept + layers + attention + forward_flops(config, counts))
    assert train_flops(config, counts) == 3 * (layers + attention + vocabulary)
