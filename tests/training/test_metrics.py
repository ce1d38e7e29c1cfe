"""Sums to means: exact under any split, and the definitions of each number."""

import math

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from empathax.training import metrics

TOKEN_SUMS = {"nll": 30.0, "entropy": 5.0, "correct": 4.0, "tokens": 10.0}
PAIR_SUMS = {
    "loss": 1.0,
    "reward_accuracy": 3.0,
    "reward_margin": 0.8,
    "reward_chosen": -0.4,
    "reward_rejected": -1.2,
    "logp_chosen": -80.0,
    "logp_rejected": -120.0,
    "pairs": 4.0,
}


def test_token_metrics_by_hand():
    assert metrics.finalize(TOKEN_SUMS) == pytest.approx(
        {"loss": 3.0, "perplexity": math.exp(3.0), "entropy": 0.5, "token_accuracy": 0.4}
    )


def test_pair_metrics_by_hand_keep_both_log_probs_apart():
    result = metrics.finalize(TOKEN_SUMS | PAIR_SUMS)
    assert result == pytest.approx(
        {
            "loss": 0.25,
            "reward_accuracy": 0.75,
            "reward_margin": 0.2,
            "reward_chosen": -0.1,
            "reward_rejected": -0.3,
            "logp_chosen": -20.0,
            "logp_rejected": -30.0,
            "perplexity": math.exp(3.0),
            "entropy": 0.5,
            "token_accuracy": 0.4,
        }
    )


def test_perplexity_is_never_a_mean_of_batch_means():
    short = {"nll": 2.0, "entropy": 0.0, "correct": 0.0, "tokens": 1.0}
    long = {"nll": 9.0, "entropy": 0.0, "correct": 0.0, "tokens": 9.0}
    assert metrics.finalize(metrics.total([short, long]))["perplexity"] == pytest.approx(math.exp(1.1))


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=30), st.randoms())
def test_totals_do_not_depend_on_order_or_device(values, random):
    parts = [{"nll": jnp.float32(value), "tokens": 1.0} for value in values]
    total = metrics.total(parts)
    random.shuffle(parts)
    assert total == metrics.total(parts) == {"nll": math.fsum(values), "tokens": float(len(values))}


def test_counts_past_float32_stay_exact():
    assert metrics.total([{"tokens": jnp.float32(2**24)}, {"tokens": jnp.float32(1)}]) == {"tokens": 2.0**24 + 1}


def test_what_was_not_counted_is_absent_not_zero():
    assert metrics.finalize(dict.fromkeys(TOKEN_SUMS | PAIR_SUMS, 0.0)) == {}
    assert metrics.total([]) == {}


def test_non_finite_sums_are_shown():
    total = metrics.total([TOKEN_SUMS | {"nll": float("inf")}, TOKEN_SUMS])
    assert metrics.finalize(total)["perplexity"] == math.inf
    assert math.isnan(metrics.finalize(metrics.total([TOKEN_SUMS | {"nll": float("nan")}]))["loss"])
    assert metrics.finalize(TOKEN_SUMS | {"nll": 1e5})["perplexity"] == math.inf


def test_different_kinds_of_sums_do_not_mix():
    with pytest.raises(ValueError, match="different kinds"):
        metrics.total([TOKEN_SUMS, TOKEN_SUMS | PAIR_SUMS])


def test_the_graph_computes_the_same_numbers():
    sums = {name: jnp.float32(value) for name, value in (TOKEN_SUMS | PAIR_SUMS).items()}
    in_graph = metrics.in_graph(sums)
    for name, value in metrics.finalize(sums).items():
        np.testing.assert_allclose(in_graph[name], value, rtol=1e-6, err_msg=name)
    assert {name: float(in_graph[name]) for name in ("tokens", "pairs")} == {"tokens": 10.0, "pairs": 4.0}
