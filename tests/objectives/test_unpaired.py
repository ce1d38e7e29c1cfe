"""Losses of single replies against numbers worked out by hand, their limits, and splits of the data."""

import inspect
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from empathax.config import DpoOptions
from empathax.config.losses import LOSSES, REPLIES
from empathax.errors import ConfigError
from empathax.objectives import unpaired
from empathax.objectives.pairs import Pairs
from empathax.objectives.preference import check_options, initial_loss, preference_loss
from empathax.objectives.unpaired import LABEL_WEIGHTS, Replies, kl_estimate, unpaired_loss
from empathax.training import metrics
from tests.objectives.test_preference import functions_of, keywords_of

OF_REPLIES = [name for name, loss in LOSSES.items() if loss.takes == REPLIES]
# Log-ratios 2 and -1 (desirable), 3 (undesirable); of mismatched replies 4 and -1, the third has none: KL 1.5.
THREE = Replies(
    logps=jnp.array([-10.0, -5.0, -7.0]),
    ref_logps=jnp.array([-12.0, -4.0, -10.0]),
    desirable=jnp.array([1.0, 1.0, 0.0]),
    weight=jnp.ones(3),
    mismatched_logps=jnp.array([-6.0, -9.0, -50.0]),
    ref_mismatched_logps=jnp.array([-10.0, -8.0, -1.0]),
    mismatched_weight=jnp.array([1.0, 1.0, 0.0]),
)
TOKENS = {"nll": 1.0, "entropy": 1.0, "correct": 1.0, "tokens": 1.0}


def _sigmoid(x):
    return 1 / (1 + math.exp(-x))


def _options(*names, **changes):
    options = DpoOptions(loss=names, **{"beta": 0.1, **changes})
    check_options(options)
    return options


def test_three_replies_by_hand():
    s = _sigmoid
    loss, count, sums = unpaired_loss(THREE, _options("kto", desirable_weight=2.0, undesirable_weight=0.5))
    wanted = 2 * (1 - s(0.1 * (2 - 1.5))) + 2 * (1 - s(0.1 * (-1 - 1.5))) + 0.5 * (1 - s(0.1 * (1.5 - 3)))
    np.testing.assert_allclose(loss, wanted, rtol=1e-6)
    assert float(count) == 3.0
    values = metrics.finalize(metrics.total([sums]))
    wanted_values = {
        "loss": wanted / 3, "kl": 1.5, "reward_chosen": 0.05, "reward_rejected": 0.3, "reward_margin": -0.25,
        "logp_chosen": -7.5, "logp_rejected": -7.0,
    }  # fmt: skip
    assert values == pytest.approx(wanted_values, rel=1e-6)
    loss, _, sums = unpaired_loss(THREE, _options("apo_zero_unpaired"))
    np.testing.assert_allclose(loss, 1 - s(0.2) + 1 - s(-0.1) + s(0.3), rtol=1e-6)
    assert "kl" not in sums


def test_a_loss_is_a_function_of_its_name_that_takes_the_declared_settings():
    takes_a_ratio = {
        name: keywords_of(function)
        for name, function in functions_of(unpaired).items()
        if [*inspect.signature(function).parameters][:3] == ["ratio", "sign", "kl"]
    }
    assert takes_a_ratio == {name: set(LOSSES[name].options) - set(LABEL_WEIGHTS) for name in OF_REPLIES}


def test_a_mixture_adds_up():
    parts = [unpaired_loss(THREE, _options(name))[0] for name in ("kto", "apo_zero_unpaired")]
    mixed = unpaired_loss(THREE, _options("kto", "apo_zero_unpaired", loss_weights=(1.0, 0.25)))[0]
    np.testing.assert_allclose(mixed, parts[0] + 0.25 * parts[1], rtol=1e-6)


def test_the_kl_is_at_least_zero_and_has_no_gradient():
    lower = THREE.replace(mismatched_logps=THREE.mismatched_logps - 10.0)
    assert float(kl_estimate(lower)) == 0.0
    assert float(kl_estimate(THREE.replace(mismatched_weight=jnp.zeros(3)))) == 0.0
    grads = jax.grad(lambda replies: unpaired_loss(replies, _options("kto"))[0])(THREE)
    assert not grads.mismatched_logps.any()
    assert (np.sign(grads.logps) == [-1, -1, 1]).all()  # desirable replies rise, undesirable ones fall


def test_unused_slots_count_nothing():
    padded = jax.tree.map(lambda x: jnp.pad(x, (0, 2), constant_values=-3.0), THREE)
    unused = jnp.pad(jnp.ones(3), (0, 2))
    padded = padded.replace(weight=unused, mismatched_weight=jnp.pad(THREE.mismatched_weight, (0, 2)))
    got, wanted = (unpaired_loss(replies, _options("kto")) for replies in (padded, THREE))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), got, wanted)


def test_batches_add_up_to_the_mean_of_their_own_losses():
    """Each with its own KL, as TRL's micro-batches."""
    options = _options("kto")
    halves = [jax.tree.map(lambda x, i=i, j=j: x[i:j], THREE) for i, j in ((0, 1), (1, 3))]
    sums = [unpaired_loss(half, options) for half in halves]
    values = metrics.finalize(metrics.total([part[2] | TOKENS for part in sums]))
    assert values["loss"] == pytest.approx(sum(float(part[0]) for part in sums) / 3, rel=1e-6)
    assert values["kl"] == pytest.approx((4.0 + 2 * 0.0) / 3, rel=1e-6)


@pytest.mark.parametrize("name", OF_REPLIES)
@pytest.mark.parametrize("size", [1e4, -1e4])
def test_everything_is_finite_at_extreme_log_ratios(name, size):
    extreme = THREE.replace(logps=THREE.ref_logps + size, mismatched_logps=THREE.ref_mismatched_logps - size)
    loss, grads = jax.value_and_grad(lambda replies: unpaired_loss(replies, _options(name, beta=1.0))[0])(extreme)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((loss, grads)))


def test_the_first_loss_does_not_depend_on_the_replies_unless_labels_weigh_differently():
    assert initial_loss(_options("kto")) == pytest.approx(0.5)
    assert initial_loss(_options("apo_zero_unpaired", desirable_weight=2.0, undesirable_weight=2.0)) == 1.0
    assert initial_loss(_options("kto", desirable_weight=2.0)) is None


def test_pairs_are_refused():
    nothing = jnp.zeros(2)
    with pytest.raises(ConfigError, match="'kto' takes single replies with a label, not pairs"):
        preference_loss(Pairs(nothing, nothing, nothing, nothing, jnp.ones(2)), _options("kto"))


def test_a_step_without_undesirable_replies_measures_no_margin():
    sums = unpaired_loss(jax.tree.map(lambda x: x[:2], THREE), _options("kto"))[2] | TOKENS
    values = metrics.measured(jax.device_get(metrics.in_graph(sums)))
    assert "reward_rejected" not in values
    assert "reward_margin" not in values
    assert values["reward_chosen"] == pytest.approx(0.05)
    assert all(np.isfinite(list(values.values())))
