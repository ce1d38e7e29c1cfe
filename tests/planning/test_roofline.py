"""The bound on a step's time by hand."""

import dataclasses

import pytest

from empathax.config.hardware import parse_hardware
from empathax.models.architecture.presets import preset
from empathax.planning.costs import Counts, forward_flops, forward_parts, roofline, train_flops, train_hardware_flops


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
