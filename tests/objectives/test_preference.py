"""The preference losses against numbers worked out by hand, their limits, and splits of the data."""

import inspect
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from empathax.config import DpoOptions, losses
from empathax.config.losses import LOSSES, REPLIES
from empathax.errors import ConfigError
from empathax.objectives import pair_losses
from empathax.objectives.pairs import Pairs
from empathax.objectives.preference import check_options, initial_loss, nll_weight, preference_loss
from empathax.training import metrics

OF_PAIRS = [name for name, loss in LOSSES.items() if loss.takes != REPLIES]
# what a loss cannot do without
NEEDED = {"exo_pair": {"label_smoothing": 1e-3}, "alphapo": {"alphapo_alpha": 0.25}}
# Two pairs. Log-ratios: chosen 2 and -1, rejected -1 and 0; margins 3 and -1; lengths 5, 2 and 4, 2.
TWO = Pairs(
    chosen=jnp.array([-10.0, -5.0]),
    rejected=jnp.array([-20.0, -6.0]),
    ref_chosen=jnp.array([-12.0, -4.0]),
    ref_rejected=jnp.array([-19.0, -6.0]),
    weight=jnp.ones(2),
    chosen_tokens=jnp.array([5.0, 2.0]),
    rejected_tokens=jnp.array([4.0, 2.0]),
)


def _log_sigmoid(x):
    return -math.log1p(math.exp(-x)) if x > 0 else x - math.log1p(math.exp(x))


def _sigmoid(x):
    return math.exp(_log_sigmoid(x))


def _options(*names, **changes):
    needed = {key: value for name in names for key, value in NEEDED.get(name, {}).items()}
    options = DpoOptions(loss=names, **{"beta": 0.1, **needed, **changes})
    check_options(options)
    return options


def _margin(margin):
    """Pairs whose chosen log-ratios are `margin`, all else 0."""
    zero, one = jnp.zeros_like(margin), jnp.ones_like(margin)
    return Pairs(margin, zero, zero, zero, one, one, one)


def _mean(pairs, options):
    loss_sum, count, _ = preference_loss(pairs, options)
    return float(loss_sum / count)


S, L = _sigmoid, _log_sigmoid
BY_HAND = [
    (_options("sigmoid"), -L(0.3) - L(-0.1)),
    (_options("sigmoid", label_smoothing=0.2), -0.8 * (L(0.3) + L(-0.1)) - 0.2 * (L(-0.3) + L(0.1))),
    (_options("robust", label_smoothing=0.2), (-0.8 * (L(0.3) + L(-0.1)) + 0.2 * (L(-0.3) + L(0.1))) / 0.6),
    (_options("hinge"), 0.7 + 1.1),
    (_options("ipo"), (2 / 5 + 1 / 4 - 5) ** 2 + (-1 / 2 - 5) ** 2),
    (
        _options("exo_pair", label_smoothing=0.1),
        sum(S(m) * math.log(S(m) / 0.9) + S(-m) * math.log(S(-m) / 0.1) for m in (0.3, -0.1)),
    ),
    (
        _options("discopop", discopop_tau=0.5),
        sum(-L(m) * (1 - S(m / 0.5)) + math.exp(-m) * S(m / 0.5) for m in (0.3, -0.1)),
    ),
    (_options("sigmoid_norm"), -L(0.1 * (2 / 5 + 1 / 4)) - L(-0.1 / 2)),
    (_options("nca_pair"), sum(-L(c) - 0.5 * L(-c) - 0.5 * L(-r) for c, r in ((0.2, -0.1), (-0.1, 0.0)))),
    (_options("bco_pair"), -L(0.2) - L(0.1) - L(-0.1) - L(0.0)),
    (_options("sppo_hard"), (2 - 5) ** 2 + (-1 + 5) ** 2 + (-1 - 5) ** 2 + 5**2),
    (_options("apo_zero"), 1 - S(0.2) + S(-0.1) + 1 - S(-0.1) + S(0.0)),
    (_options("apo_down"), S(0.2) + 1 - S(0.3) + S(-0.1) + 1 - S(-0.1)),
    # policy margins 10, 1 -> 1, 10; reference 7, 2 -> 2, 7
    (_options("aot"), -L(0.1 * (1 - 2)) - L(0.1 * (10 - 7))),
    # chosen log-ratios -1, 2; rejected -1, 0
    (_options("aot_unpaired"), -L(0.0) - L(0.2)),
    (_options("sft"), 2 * 15 / 7),
    (_options("cpo", cpo_alpha=0.5), -L(1.0) - L(0.1) + 0.5 * 2 * 15 / 7),
    (_options("cpo_hinge", cpo_alpha=0.0), 0.0 + 0.9),
    (_options("cpo_ipo", cpo_alpha=0.0), (3 - 5) ** 2 + (0.5 - 5) ** 2),
    (_options("simpo", simpo_gamma=0.4), -L(0.3 - 0.4) - L(0.05 - 0.4)),
    (
        _options("alphapo", simpo_gamma=0.0),
        -L(0.1 * 4 * (math.exp(1.25) - math.exp(0.5))) - L(0.1 * 4 * (math.exp(0.75) - math.exp(0.625))),
    ),
    (
        _options("orpo"),
        2 * 15 / 7
        - sum(
            0.1 * L(math.log(math.exp(c) / (1 - math.exp(c))) - math.log(math.exp(r) / (1 - math.exp(r))))
            for c, r in ((-2.0, -5.0), (-2.5, -3.0))
        ),
    ),
    (_options("sigmoid", "sft", loss_weights=(1.0, 0.5)), -L(0.3) - L(-0.1) + 15 / 7),  # RPO
    (  # MPO
        _options("sigmoid", "bco_pair", "sft", loss_weights=(0.8, 0.2, 1.0)),
        0.8 * (-L(0.3) - L(-0.1)) + 0.2 * (-L(0.2) - L(0.1) - L(-0.1) - L(0.0)) + 2 * 15 / 7,
    ),
    (_options("sigmoid", f_divergence="forward_kl"), -L(0.1 * (math.e - math.exp(-2))) - L(0.1 * (1 - math.e))),
    (
        _options("sigmoid", f_divergence="js"),
        -L(0.1 * (L(2) - L(-1))) - L(0.1 * (L(-1) - L(0))),
    ),
    (
        _options("sigmoid", f_divergence="alpha", f_alpha=0.5),
        -L(0.1 * 2 * (math.exp(0.5) - math.exp(-1))) - L(0.1 * 2 * (1 - math.exp(0.5))),
    ),
]


@pytest.mark.parametrize(("options", "wanted"), BY_HAND, ids=lambda x: "+".join(getattr(x, "loss", "")))
def test_two_pairs_by_hand(options, wanted):
    loss_sum, pairs, _ = preference_loss(TWO, options)
    assert float(pairs) == 2.0
    np.testing.assert_allclose(loss_sum, wanted, rtol=2e-6)


def functions_of(module):
    """The public functions that a module defines, by name."""
    functions = inspect.getmembers(module, inspect.isfunction)
    return {name: one for name, one in functions if one.__module__ == module.__name__ and not name.startswith("_")}


def keywords_of(function):
    """The keyword-only parameters of a function."""
    return {name for name, one in inspect.signature(function).parameters.items() if one.kind is one.KEYWORD_ONLY}


def test_a_loss_is_a_function_of_its_name_that_takes_the_declared_settings():
    wanted = {name: set(LOSSES[name].options) for name in OF_PAIRS if LOSSES[name].takes != losses.NOTHING}
    assert {name: keywords_of(function) for name, function in functions_of(pair_losses).items()} == wanted


def test_a_new_loss_is_a_function_and_a_declaration(monkeypatch):
    monkeypatch.setattr(pair_losses, "mine", lambda margin, *, beta: -beta * margin, raising=False)
    monkeypatch.setitem(losses.LOSSES, "mine", losses.Loss("mine", losses.MARGIN))
    assert _mean(TWO, _options("mine")) == pytest.approx(-0.1 * (3 - 1) / 2)


def test_every_loss_has_a_number_by_hand():
    assert {name for options, _ in BY_HAND for name in options.loss} == set(OF_PAIRS)


def test_metrics_by_hand():
    _, _, sums = preference_loss(TWO, _options("sigmoid"))
    wanted = {
        "reward_chosen": 0.2 - 0.1,
        "reward_rejected": -0.1 + 0.0,
        "reward_margin": 0.3 - 0.1,
        "reward_accuracy": 1.0,
        "logp_chosen": -15.0,
        "logp_rejected": -26.0,
        "pairs": 2.0,
    }
    for name, value in wanted.items():
        np.testing.assert_allclose(sums[name], value, rtol=1e-5, err_msg=name)


def test_rewards_without_a_reference_are_what_the_loss_compares():
    _, _, sums = preference_loss(TWO, _options("simpo", beta=2.0))
    np.testing.assert_allclose(sums["reward_chosen"], 2 * (-2.0 - 2.5), rtol=1e-6)
    _, _, sums = preference_loss(TWO, _options("alphapo", beta=2.0, alphapo_alpha=0.5))
    np.testing.assert_allclose(sums["reward_chosen"], 2 * 2 * (2 - math.exp(1) - math.exp(1.25)), rtol=1e-6)
    _, _, sums = preference_loss(TWO, _options("cpo"))
    np.testing.assert_allclose(sums["reward_chosen"], 0.1 * (-10 - 5), rtol=1e-6)


def _random_pairs(seed=0, count=6, used=5):
    rng = np.random.default_rng(seed)
    values = [jnp.asarray(-rng.gamma(2.0, 5.0, count), jnp.float32) for _ in range(4)]
    lengths = [jnp.asarray(rng.integers(1, 9, count), jnp.float32) for _ in range(2)]
    return Pairs(*values, (jnp.arange(count) < used).astype(jnp.float32), *lengths)


ALONE = [_options(name) for name in OF_PAIRS]
MIXED = [
    _options("sigmoid", "sft", loss_weights=(1.0, 0.3)),
    _options("nca_pair", "hinge", "sft"),
    _options("simpo", "sft"),
]
ADDITIVE = [o for o in [*ALONE, *MIXED] if not any(LOSSES[name].whole_batch for name in o.loss)]
NAMES = {"ids": lambda options: "+".join(options.loss)}


@pytest.mark.parametrize("options", ADDITIVE, **NAMES)
def test_sums_add_up_over_any_split(options):
    pairs = _random_pairs()
    whole = preference_loss(pairs, options)
    parts = [jax.tree.map(lambda x, i=i, j=j: x[i:j], pairs) for i, j in ((0, 1), (1, 4), (4, 6))]
    values = metrics.finalize(metrics.total([preference_loss(part, options)[2] | TOKENS for part in parts]))
    wanted = float(whole[0] / whole[1])
    assert values["loss"] == pytest.approx(wanted, rel=1e-6)
    # with the tokens per pair of all data the loss sums add up too, and with them the gradients
    tokens_per_pair = (pairs.chosen_tokens * pairs.weight).sum() / 5
    sums = sum(preference_loss(part, options, tokens_per_pair)[0] for part in parts)
    assert float(sums) / 5 == pytest.approx(wanted, rel=1e-6)


TOKENS = {"nll": 1.0, "entropy": 1.0, "correct": 1.0, "tokens": 1.0}


@pytest.mark.parametrize("options", [*ALONE, *MIXED], **NAMES)
def test_unused_pairs_count_nothing(options):
    pairs = _random_pairs()
    with_padding = preference_loss(pairs, options)
    without = preference_loss(jax.tree.map(lambda x: x[:5], pairs), options)
    jax.tree.map(lambda got, wanted: np.testing.assert_allclose(got, wanted, rtol=1e-6), with_padding, without)


@pytest.mark.parametrize("name", ["aot", "aot_unpaired"])
def test_sorted_losses_see_the_whole_batch_and_not_its_shape(name):
    pairs, options = _random_pairs(count=8, used=8), _options(name)
    order = np.random.default_rng(3).permutation(8)
    shuffled = jax.tree.map(lambda x: x[order].reshape(2, 4), pairs)
    assert _mean(shuffled, options) == pytest.approx(_mean(pairs, options), rel=1e-6)
    halves = [jax.tree.map(lambda x, s=s: x[s], pairs) for s in (slice(0, 4), slice(4, 8))]
    assert abs(sum(_mean(half, options) for half in halves) / 2 - _mean(pairs, options)) > 1e-3


@pytest.mark.parametrize("options", ALONE, **NAMES)
def test_extreme_log_probs_stay_finite(options):
    ends = jnp.array([0.0, -1e-3, -1.0, -100.0, -1e4])
    grid = [x.ravel() for x in jnp.meshgrid(ends, ends, jnp.array([0.0, -1e4]), jnp.array([0.0, -1e4]))]
    one = jnp.ones_like(grid[0])
    for length in (1.0, 300.0):
        loss = lambda x, n=length: preference_loss(Pairs(*x, one, n * one, n * one), options)[0]  # noqa: E731
        value, grad = jax.value_and_grad(loss)(jnp.stack(grid))
        assert np.isfinite(value)
        assert np.isfinite(grad).all()


@pytest.mark.parametrize("divergence", losses.DIVERGENCES)
def test_divergences_stay_finite_in_every_loss_that_takes_them(divergence):
    margin = jnp.array([-1e4, -90.0, -1.0, 0.0, 1.0, 90.0, 1e4])
    for loss in (loss for loss in LOSSES.values() if loss.takes == losses.MARGIN):
        options = _options(loss.name, f_divergence=divergence)
        value, grad = jax.value_and_grad(lambda m, o=options: preference_loss(_margin(m), o)[0])(margin)
        assert np.isfinite(value)
        assert np.isfinite(grad).all()


def test_divergences_meet_at_the_ends_of_alpha():
    margin = jnp.array([-1.5, 0.3, 2.0])
    for alpha, same in ((0.0, "forward_kl"), (1.0, "reverse_kl")):
        of_alpha = _mean(_margin(margin), _options("sigmoid", f_divergence="alpha", f_alpha=alpha))
        assert of_alpha == pytest.approx(_mean(_margin(margin), _options("sigmoid", f_divergence=same)), rel=1e-6)
    near = _mean(_margin(margin), _options("sigmoid", f_divergence="alpha", f_alpha=1.0 + 1e-4))
    assert near == pytest.approx(_mean(_margin(margin), _options("sigmoid")), rel=1e-3)


@settings(max_examples=30, deadline=None)
@given(margin=st.floats(-30, 30), epsilon=st.floats(0, 0.49), beta=st.floats(0.01, 2))
def test_label_smoothing_is_cdpo_and_robust_undoes_it(margin, epsilon, beta):
    pairs = _margin(jnp.full(1, margin))
    sure, flipped = -_log_sigmoid(beta * margin), -_log_sigmoid(-beta * margin)
    smoothed = _mean(pairs, _options("sigmoid", beta=beta, label_smoothing=epsilon))
    np.testing.assert_allclose(smoothed, (1 - epsilon) * sure + epsilon * flipped, rtol=1e-5, atol=1e-6)
    robust = _mean(pairs, _options("robust", beta=beta, label_smoothing=epsilon))
    wanted = ((1 - epsilon) * sure - epsilon * flipped) / (1 - 2 * epsilon)
    np.testing.assert_allclose(robust, wanted, rtol=1e-4, atol=1e-4)


def test_no_smoothing_is_the_limit_of_little():
    for name in ("robust", "aot", "simpo", "cpo"):
        none, little = (_mean(TWO, _options(name, label_smoothing=epsilon)) for epsilon in (0.0, 1e-5))
        assert little == pytest.approx(none, rel=1e-3)
        assert _mean(TWO, _options("robust")) == pytest.approx(_mean(TWO, _options("sigmoid")), rel=1e-6)


def test_exo_is_least_at_its_own_probability():
    # reverse KL 0 where s(margin) = 1 - e
    margin = jnp.full(1, math.log(0.9 / 0.1))
    options = _options("exo_pair", beta=1.0, label_smoothing=0.1)
    value, grad = jax.value_and_grad(lambda m: preference_loss(_margin(m), options)[0])(margin)
    np.testing.assert_allclose([value, grad[0]], 0.0, atol=1e-6)


def test_smoothed_loss_is_least_at_its_own_probability():
    options = _options("sigmoid", beta=1.0, label_smoothing=0.1)
    grad = jax.grad(lambda m: preference_loss(_margin(m), options)[0])(jnp.full(1, math.log(0.9 / 0.1)))
    np.testing.assert_allclose(grad, 0.0, atol=1e-6)


AT_REFERENCE = {
    "sigmoid": math.log(2),
    "hinge": 1.0,
    "ipo": 25.0,
    "sppo_hard": 50.0,
    "nca_pair": 2 * math.log(2),
    "apo_zero": 1.0,
    "apo_down": 1.0,
    "aot": math.log(2),
    "sft": 0.0,
    "simpo": None,
    "cpo": None,
}


@pytest.mark.parametrize(("name", "wanted"), AT_REFERENCE.items())
def test_the_loss_of_a_policy_that_is_its_reference(name, wanted):
    found = initial_loss(_options(name))
    assert found == (None if wanted is None else pytest.approx(wanted, rel=1e-6))


@pytest.mark.parametrize("options", [o for o in ALONE if LOSSES[o.loss[0]].needs_reference], **NAMES)
def test_the_initial_loss_is_that_of_any_pairs(options):
    pairs = _random_pairs()
    same = pairs.replace(ref_chosen=pairs.chosen, ref_rejected=pairs.rejected)
    _, _, sums = preference_loss(same, options)
    assert float(sums["loss"]) / 5 == pytest.approx(initial_loss(options), rel=1e-6)
    assert float(sums["reward_margin"]) == 0.0
    assert float(sums["reward_accuracy"]) == 0.0  # ties do not win, as in TRL


@pytest.mark.parametrize("name", [name for name, loss in LOSSES.items() if loss.reduction == "mean" or loss.nll])
def test_a_loss_of_means_refuses_sums(name):
    without = TWO.replace(chosen_tokens=None, rejected_tokens=None)
    with pytest.raises(ConfigError, match="without the replies' lengths"):
        preference_loss(without, _options(name))


def test_weights_of_pairs_weigh_their_losses():
    weighted = TWO.replace(importance=jnp.array([0.5, 0.25]))
    loss_sum, pairs, sums = preference_loss(weighted, _options("sigmoid"))
    np.testing.assert_allclose(loss_sum, -0.5 * L(0.3) - 0.25 * L(-0.1), rtol=1e-6)
    assert float(pairs) == 2.0
    np.testing.assert_allclose(sums["reward_margin"], 0.2, rtol=1e-5)


def test_the_weight_of_the_likelihood():
    assert nll_weight(_options("sigmoid")) == 0.0
    assert nll_weight(_options("orpo")) == 1.0
    assert nll_weight(_options("cpo", "sft", cpo_alpha=0.3, loss_weights=(2.0, 0.1))) == pytest.approx(0.7)
