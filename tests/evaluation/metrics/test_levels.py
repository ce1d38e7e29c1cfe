"""validation_gap against numbers worked out by hand, and the laws it has to follow."""

from pathlib import Path

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from empathax.config import MeshOptions
from empathax.data.files import read_values
from empathax.data.records import Tally
from empathax.data.support_corpora import esconv_utterances
from empathax.errors import ConfigError
from empathax.evaluation.classifiers.data import LEVELS, level_of_strategy
from empathax.evaluation.metrics.levels import count_levels, most_likely, quartile, shares, validation_gap
from empathax.parallel.mesh import make_mesh
from empathax.parallel.rules import batch_sharding

CORPORA = Path(__file__).parents[4] / "shared" / "data"
# shares within quartile on ESConv's training split, counted apart from this code
ESCONV = np.array([[0.503, 0.220, 0.131, 0.145], [0.178, 0.190, 0.194, 0.439], [0.138, 0.131, 0.199, 0.531]])
ESCONV = np.vstack([ESCONV, [0.104, 0.121, 0.285, 0.491]])
COUNTS = st.lists(st.integers(0, 50), min_size=16, max_size=16).map(lambda v: np.array(v, np.int32).reshape(4, 4))
REPLIES = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3), st.integers(0, 2)), min_size=9, max_size=9)


def counts_of(rows):
    return np.array(rows, np.int32)


def by_definition(model, reference, axis):
    """The definition's formula, cell by cell, in float64."""
    gaps = np.zeros(4)
    for level in range(4):
        for q in range(4):
            found = []
            for counts in (np.asarray(model, float), np.asarray(reference, float)):
                total = counts[q].sum() if axis == "quartile" else counts[:, level].sum()
                found.append(counts[q, level] / total if total else 0.0)
            gaps[level] += (found[0] - found[1]) ** 2 / 4
    return gaps


def test_a_case_by_hand():
    model = counts_of([[2, 0, 0, 0], [0, 2, 0, 0], [0, 0, 0, 0], [0, 0, 0, 4]])
    reference = counts_of([[1, 1, 0, 0], [0, 2, 0, 0], [0, 0, 3, 1], [0, 0, 0, 2]])
    gap = validation_gap(model, reference)
    # q1: listening 1 - 1/2, reflection 0 - 1/2; q3: validating 0 - 3/4, genuineness 0 - 1/4; squared, over four
    assert float(gap["validation_gap_listening"]) == pytest.approx(1 / 16)
    assert float(gap["validation_gap_reflection"]) == pytest.approx(1 / 16)
    assert float(gap["validation_gap_validating"]) == pytest.approx(9 / 64)
    assert float(gap["validation_gap_genuineness"]) == pytest.approx(1 / 64)
    assert float(gap["validation_gap"]) == pytest.approx((4 + 4 + 9 + 1) / 64 / 4)
    # by level, reflection is (0, 1, 0, 0) against (1/3, 2/3, 0, 0); genuineness (0, 0, 0, 1) against (0, 0, 1/3, 2/3)
    by_level = validation_gap(model, reference, "level")
    assert float(by_level["validation_gap_listening"]) == 0.0
    assert float(by_level["validation_gap_reflection"]) == pytest.approx(2 / 9 / 4)
    assert float(by_level["validation_gap_validating"]) == pytest.approx(1 / 4)
    assert float(by_level["validation_gap_genuineness"]) == pytest.approx(2 / 9 / 4)


@pytest.mark.parametrize(("level", "expected"), [(0, 0.2186), (1, 0.2512), (2, 0.2328), (3, 0.1332)])
def test_a_model_of_one_level(level, expected):
    """The mean of (1[l = level] - V_q^l)^2 over the 16 cells, computed apart: 0.13 to 0.25 on ESConv."""
    one_level = np.zeros((4, 4), np.int32)
    one_level[:, level] = 100
    gap = float(validation_gap(counts_of(one_level), counts_of(np.round(ESCONV * 1000)))["validation_gap"])
    assert gap == pytest.approx(expected, abs=1e-4)


@settings(max_examples=30, deadline=None)
@given(COUNTS, COUNTS)
@pytest.mark.parametrize("normalise", ["quartile", "level"])
def test_gap_is_the_definition(normalise, model, reference):
    gap = validation_gap(counts_of(model), counts_of(reference), normalise)
    expected = by_definition(model, reference, normalise)
    ours = [float(gap[f"validation_gap_{level}"]) for level in LEVELS]
    np.testing.assert_allclose(ours, expected, rtol=1e-12, atol=1e-15)
    assert float(gap["validation_gap"]) == pytest.approx(expected.mean(), rel=1e-12, abs=1e-15)
    assert float(validation_gap(counts_of(model), counts_of(model), normalise)["validation_gap"]) == 0.0


@settings(max_examples=20, deadline=None)
@given(REPLIES, st.randoms())
def test_counts_of_each_dialogue_do_not_depend_on_order(replies, random):
    expected = np.zeros((3, 4, 4), int)
    for level, q, dialogue in replies:
        expected[dialogue, q, level] += 1
    for rows in (replies, random.sample(replies, len(replies))):
        np.testing.assert_array_equal(count_levels(*np.array(rows).T, 3), expected)


def test_levels_and_counts_are_the_same_on_eight_devices():
    rng = np.random.default_rng(0)
    logits, quartiles, dialogues = rng.normal(size=(64, 4)), rng.integers(0, 4, 64), rng.integers(0, 5, 64)
    logits[7] = 1.0  # of equal logits the first
    split = batch_sharding(make_mesh(MeshOptions(8, 1, 1)))
    levels = most_likely(jax.device_put(logits, split))
    np.testing.assert_array_equal(levels, logits.argmax(axis=1))
    over_devices = count_levels(levels, *jax.device_put((quartiles, dialogues), split), 5)
    np.testing.assert_array_equal(over_devices, count_levels(logits.argmax(axis=1), quartiles, dialogues, 5))


def test_quartiles():
    assert [quartile(i, 4) for i in range(4)] == [0, 1, 2, 3]
    assert [quartile(i, 6) for i in range(6)] == [0, 0, 1, 2, 2, 3]
    assert [quartile(i, 2) for i in range(2)] == [0, 2]
    assert quartile(0, 1) == 0
    with pytest.raises(ValueError, match="turn 3 of 3"):
        quartile(3, 3)


def _marked_levels(split):
    """Counts from the annotators' strategies, utterance by utterance."""
    levels, quartiles = [], []
    for value, _ in read_values(CORPORA / "esconv" / f"{split}.jsonl", Tally()):
        replies = [utterance for utterance in esconv_utterances(value) if utterance.role == "assistant"]
        for index, reply in enumerate(replies):
            level = level_of_strategy(reply.strategy)
            if level is not None:
                levels.append(level)
                quartiles.append(quartile(index, len(replies)))
    return np.asarray(count_levels(np.array(levels), np.array(quartiles), np.zeros(len(levels), int), 1))[0]


@pytest.mark.skipif(not CORPORA.is_dir(), reason="the corpora are not beside the project (../shared/data)")
def test_esconv_is_as_the_definition_reports_it():
    np.testing.assert_allclose(shares(_marked_levels("train"), "quartile"), ESCONV, atol=6e-4)
    valid, test = _marked_levels("valid"), _marked_levels("test")
    assert float(validation_gap(valid, test)["validation_gap"]) <= 0.005
    assert round(float(validation_gap(valid, test)["validation_gap"]), 4) in (0.0004, 0.0005)


def test_another_normalisation_is_refused():
    with pytest.raises(ConfigError, match="quartile, level"):
        validation_gap(counts_of(ESCONV), counts_of(ESCONV), "row")
