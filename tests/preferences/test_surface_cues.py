"""Bag of words and length on sets whose answer is known."""

import random

import numpy as np
import pytest
import scipy.sparse

from empathax.preferences.surface_cues import PENALTY, fit, surface_cues


def words(draw: random.Random, count: int = 12) -> str:
    return " ".join(f"w{draw.randrange(30)}" for _ in range(count))


def sets(pairs):
    return pairs, [f"d{number // 4}" for number in range(len(pairs))]


def test_a_word_that_only_chosen_replies_have_orders_all_pairs():
    draw = random.Random(0)
    found = surface_cues(*sets([(f"hear {words(draw)}", f"{words(draw)} x") for _ in range(200)]))
    assert found.bag_accuracy == 1.0
    assert found.cues[0][0] == "hear"
    assert any('"hear"' in text for text in found.warnings())


def test_words_that_say_nothing_are_chance():
    draw = random.Random(0)
    found = surface_cues(*sets([(words(draw), words(draw)) for _ in range(600)]))
    assert 0.42 < found.bag_accuracy < 0.58
    assert found.bag_interval.low < 0.5 < found.bag_interval.high
    assert not found.warnings()


def test_pairs_that_stand_both_ways_cannot_be_ordered_nor_learned_the_wrong_way_round():
    draw = random.Random(0)
    pairs = [(words(draw), words(draw)) for _ in range(100)]
    turned = [(rejected, chosen) for chosen, rejected in pairs]
    found = surface_cues(pairs + turned, [f"d{number}" for number in range(200)])
    assert (found.bag_accuracy, found.length_accuracy) == (0.5, 0.5)


@pytest.mark.parametrize(("chosen", "is_longer"), [(20, True), (5, False)])
def test_length_alone(chosen, is_longer):
    draw = random.Random(0)
    pairs = [(words(draw, chosen), words(draw, 10)) for _ in range(30)] + [(words(draw, 7), words(draw, 7))] * 10
    found = surface_cues(*sets(pairs))
    assert found.length_accuracy == pytest.approx((30 + 10 / 2) / 40)
    assert found.longer_is_chosen is is_longer
    assert any("longer" if is_longer else "shorter" in text for text in found.warnings())


def test_the_fit_is_where_the_gradient_of_its_loss_vanishes():
    draw = np.random.default_rng(0)
    x_PW = draw.integers(-1, 2, (50, 6)).astype(float)
    x_PW[:, 0] += 0.5
    w_W = fit(scipy.sparse.csr_matrix(x_PW))
    gradient = PENALTY * w_W - sum(x / (1 + np.exp(x @ w_W)) for x in x_PW)
    assert np.abs(gradient).max() < 1e-3
    assert np.abs(w_W).max() > 0.1


def test_an_empty_set_has_no_interval():
    found = surface_cues([], [])
    assert (found.num_pairs, found.bag_accuracy, found.bag_interval) == (0, 0.5, None)


def test_replies_that_return_are_not_known_by_heart():
    """Random words: nothing but having seen the rejected replies before orders them."""
    draw = random.Random(0)
    pool = [words(draw) for _ in range(30)]
    found = surface_cues([(words(draw), draw.choice(pool)) for _ in range(500)], [f"d{n}" for n in range(500)])
    assert 0.4 < found.bag_accuracy < 0.6
    assert found.bag_accuracy_with_repeats > 0.7


def test_one_reply_that_is_always_rejected_is_warned_of():
    draw = random.Random(0)
    found = surface_cues(*sets([(words(draw), "There is nothing you can do.") for _ in range(100)]))
    assert (found.bag_accuracy, found.bag_accuracy_with_repeats) == (0.5, 1.0)  # nothing is left to fit
    assert any("replies give themselves away" in text for text in found.warnings())


@pytest.mark.parametrize(
    ("chosen", "rejected"), [("Я слышу, как тебе тяжело", "Тебе надо отдохнуть"), ("我听到你很难过", "你应该休息")]
)
def test_words_of_other_scripts_count(chosen, rejected):
    pairs = [(f"{chosen} {n}", f"{rejected} {n + 1000}") for n in range(60)]
    found = surface_cues(*sets(pairs))
    assert found.bag_accuracy == 1.0
    assert found.chosen_words > found.rejected_words
    assert found.length_accuracy == 1.0
