"""Statistics against counts by hand, intervals against scipy's bootstrap and against resampling in a plain loop."""

import math
from collections import Counter

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from empathax.evaluation.metrics.bootstrap import Resampled, difference, draw, resample
from empathax.evaluation.metrics.statistics import (
    BleuCounts,
    LogLikelihoods,
    MeanOfValues,
    RatioOfSums,
    ReplyLevels,
    ReplyWords,
    RewardMargins,
)
from tests.evaluation.report import made_up

DIALOGUES = tuple(f"d{number % 15}" for number in range(60))  # 15 dialogues of 4 replies


def resampled(name, statistic, metric=None, **options):
    metrics = made_up.plain(name, statistic)
    return resample({name: statistic}, metrics, **{"seed": 0, "num_resamples": 4000} | options)[metric or name]


def scipy_interval(per_dialogue, statistic):
    """scipy's percentile interval over dialogues; columns of `per_dialogue` are resampled together."""
    result = scipy.stats.bootstrap(
        tuple(np.array(per_dialogue, float).T), statistic, paired=True, vectorized=False, method="percentile",
        n_resamples=4000, rng=np.random.default_rng(1),
    )  # fmt: skip
    return result.confidence_interval


def by_dialogue(*columns):
    return [[sum(np.array(column)[np.array(DIALOGUES) == f"d{d}"]) for column in columns] for d in range(15)]


def test_a_mean_against_scipy():
    values = np.random.default_rng(2).gamma(2, 3, 60)
    ours = resampled("rouge_l", MeanOfValues(DIALOGUES, tuple(values)))
    theirs = scipy_interval(by_dialogue(values, np.ones(60)), lambda top, bottom: top.sum() / bottom.sum())
    assert ours.value == pytest.approx(values.mean())
    spread = theirs.high - theirs.low
    assert np.allclose(ours.interval(), theirs, atol=0.04 * spread)  # two runs of 4,000 resamples differ by so much


def test_ratios_against_scipy():
    rng = np.random.default_rng(3)
    nlls, tokens = rng.gamma(30, 1, 60), rng.integers(5, 40, 60)
    ours = resampled("perplexity", LogLikelihoods(DIALOGUES, tuple(nlls), tuple(tokens.tolist())))
    theirs = scipy_interval(by_dialogue(nlls, tokens), lambda top, bottom: math.exp(top.sum() / bottom.sum()))
    assert ours.value == pytest.approx(math.exp(nlls.sum() / tokens.sum()))
    assert np.allclose(ours.interval(), theirs, atol=0.04 * (theirs.high - theirs.low))
    ratio = resampled("x", RatioOfSums(DIALOGUES, tuple(nlls), tuple(map(float, tokens))))
    assert np.allclose(np.log(ours.interval()), ratio.interval())


def test_rewards_of_pairs_by_hand():
    margins = (0.5, -1.0, 0.0, 2.5)  # a tie is no win
    found = made_up.plain("reward_margin", RewardMargins(("a", "b", "c", "d"), margins))
    assert found == {"reward_margin": 0.5, "reward_accuracy": 0.5}


def loop_distinct(replies, n):
    ngrams = [tuple(reply[place : place + n]) for reply in replies for place in range(len(reply) - n + 1)]
    return 100 * len(set(ngrams)) / max(len(ngrams), 1)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("abcd"), st.lists(st.integers(0, 4), max_size=6)), min_size=1, max_size=12))
def test_distinct_of_resamples_is_the_count_over_the_drawn_replies(rows):
    statistic = ReplyWords(tuple(name for name, _ in rows), tuple(tuple(words) for _, words in rows))
    order = statistic.all_dialogues()
    weights_RD = draw(len(order), seed=1, num_resamples=5)
    found = statistic.estimates("distinct", order, weights_RD)
    for n in (1, 2, 3):
        for number, weights_D in enumerate(weights_RD):
            times = dict(zip(order, weights_D.astype(int), strict=True))
            replies = [words for name, words in rows for _ in range(times[name])]
            assert found[f"distinct_{n}"][number] == pytest.approx(loop_distinct(replies, n))


def loop_gap(model, reference):
    """METRICS: 1/4 sum over quartiles of the squared difference of shares, for each level."""

    def share(replies, quartile, level):
        inside = [found for found, place in replies if place == quartile]
        return Counter(inside)[level] / len(inside) if inside else 0.0

    return [sum((share(model, q, k) - share(reference, q, k)) ** 2 for q in range(4)) / 4 for k in range(4)]


def test_validation_gap_of_resamples_is_the_loop_over_the_drawn_replies():
    rng = np.random.default_rng(4)
    columns = [tuple(rng.integers(0, 4, 60).tolist()) for _ in range(4)]
    statistic = ReplyLevels(DIALOGUES, "quartile", columns[0], columns[1], DIALOGUES, columns[2], columns[3])
    order = statistic.all_dialogues()
    weights_RD = draw(len(order), seed=5, num_resamples=6)
    found = statistic.estimates("validation_gap", order, weights_RD)
    for number, weights_D in enumerate(weights_RD):
        times = dict(zip(order, weights_D.astype(int), strict=True))
        model = [
            row for row, name in zip(zip(*columns[:2], strict=True), DIALOGUES, strict=True) for _ in range(times[name])
        ]
        gold = [
            row for row, name in zip(zip(*columns[2:], strict=True), DIALOGUES, strict=True) for _ in range(times[name])
        ]
        gaps = loop_gap(model, gold)
        names = ("listening", "reflection", "validating", "genuineness")
        assert [found[f"validation_gap_{name}"][number] for name in names] == pytest.approx(gaps)
        assert found["validation_gap"][number] == pytest.approx(np.mean(gaps))


def test_a_model_of_one_level_against_the_other_normalisation():
    levels = ReplyLevels(("a",) * 4, "level", (3,) * 4, (0, 1, 2, 3), ("a",) * 4, (0, 1, 2, 3), (0, 1, 2, 3))
    found = made_up.plain("validation_gap", levels)
    # level 3 spreads evenly over the quartiles against all in the last; the others: all in one quartile against none
    assert found["validation_gap_genuineness"] == pytest.approx((3 * 0.25**2 + 0.75**2) / 4)
    assert found["validation_gap_listening"] == pytest.approx(0.25)


def test_corpus_bleu_by_hand():
    two = BleuCounts(("a", "b"), ((3, 1, 0, 0), (2, 1, 0, 0)), ((5, 4, 3, 2), (4, 3, 2, 1)), (5, 4), (6, 6))
    # 5/9, 2/7, then 1/2 of 1/5 and 1/4 of 1/3 (method 3); 9 words against 12
    expected = 100 * math.exp(1 - 12 / 9) * (5 / 9 * 2 / 7 * 0.5 / 5 * 0.25 / 3) ** 0.25
    assert made_up.plain("bleu4_corpus", two)["bleu4_corpus"] == pytest.approx(expected)
    nothing = BleuCounts(("a",), ((0, 0, 0, 0),), ((5, 4, 3, 2),), (5,), (6,))
    assert made_up.plain("bleu4_corpus", nothing) == {"bleu4_corpus": 0.0}


def test_intervals_hold_the_value_where_resamples_are_biased():
    rng = np.random.default_rng(6)
    words = tuple(tuple(rng.zipf(1.4, 15).clip(0, 3000).tolist()) for _ in DIALOGUES)
    for n in (1, 2, 3):
        found = resampled("distinct", ReplyWords(DIALOGUES, words), f"distinct_{n}")
        assert found.replicates_R.max() < found.value  # the plain percentiles would not hold it
        assert found.interval().low < found.value < found.interval().high
    levels = tuple(rng.integers(0, 4, 60).tolist())
    same = ReplyLevels(DIALOGUES, "quartile", levels, levels, DIALOGUES, levels, levels)
    assert resampled("validation_gap", same).interval() == (0.0, 0.0)


def test_differences_are_taken_in_pairs():
    rng = np.random.default_rng(7)
    values = rng.gamma(2, 3, 60)
    first, second = (resampled("m", MeanOfValues(DIALOGUES, tuple(values + add))) for add in (0.5, 0.0))
    assert np.allclose(difference(first, second), 0.5)  # the replies vary, the difference does not
    apart = first.interval().high - second.interval().low
    assert apart > 0.5
    elsewhere = MeanOfValues(tuple(f"other-{name}" for name in DIALOGUES), tuple(values))
    assert difference(first, resampled("m", elsewhere)) is None


def test_seeds_and_single_dialogues():
    statistic = MeanOfValues(DIALOGUES, tuple(np.random.default_rng(8).normal(0, 1, 60)))
    assert resampled("m", statistic).interval() == resampled("m", statistic).interval()
    assert resampled("m", statistic).interval() != resampled("m", statistic, seed=1).interval()
    assert resampled("m", MeanOfValues(("a", "a"), (1.0, 2.0))).interval() is None
    empty = Resampled(1.0, np.array([math.nan, 1.0, math.nan, 3.0]), ("a", "b"), False)
    assert empty.interval() == pytest.approx((1.05, 2.95))


def test_every_metric_of_a_record_with_statistics_has_an_interval():
    record = made_up.record("+SFT")
    found = resample(record.per_example, record.metrics, seed=0)
    assert set(record.metrics) - set(found) == {"reply_length"}
    assert all(low <= found[name].value <= high for name in found for low, high in [found[name].interval()])
