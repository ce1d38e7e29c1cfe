"""The bound on a step's time by hand."""

import dataclasses

import pytest

from empathax.models.architecture import preset
from empathax.planning.flops import Counts, forward_flops, forward_parts, train_flops
from empathax.planning.hardware import parse_topology
from empathax.planning.roofline import roofline, train_hardware_flops


def test_the_longest_and_the_sum_of_three_times():
    # 16 v5e chips: 16 x 197 TFLOP/s, 819 GB/s and 200 GB/s a chip
    found = roofline(parse_topology("v5e:4x4"), 2 * 16 * 197e12, 300 * 10**9, 100 * 10**9, 9500 * 10**6, 19 * 10**9)
    assert found is not None
    assert found.compute == pytest.approx(2.0)
    assert found.memory == pytest.approx((2 * (300 + 100 + 9.5) + 19) / 819)
    assert found.network == pytest.approx(9.5 / 200)
    assert found.shortest == found.compute
    assert found.longest == pytest.approx(found.compute + found.memory + found.network)


def test_a_cpu_has_no_known_rates():
    assert roofline(parse_topology("cpu:2"), 1e12, 1, 1, 1) is None


def test_recomputation_is_arithmetic_of_the_hardware_only():
    config = dataclasses.replace(preset("tiny-llama"), num_layers=3)
    counts = Counts(tokens=100, trained=20, visible_pairs=4000)
    layers, attention, vocabulary = forward_parts(config, counts)
    kept = train_hardware_flops(config, counts, "none", with_reference=False)
    assert kept == pytest.approx(3 * layers + 3.5 * attention + 4 * vocabulary)
    full = train_hardware_flops(config, counts, "full", with_reference=True)
    assert full == pytest.approx(kept + layers + attention + forward_flops(config, counts))
    assert train_flops(config, counts) == 3 * (layers + attention + vocabulary)
