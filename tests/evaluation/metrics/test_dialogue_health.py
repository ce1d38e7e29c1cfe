"""Dialogue health, by hand."""

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from empathax.evaluation.metrics.dialogue_health import health_columns, repeated_replies, top_4gram_share
from empathax.evaluation.metrics.words import tokenized
from tests.evaluation.metrics.reference_metrics import ngrams

REPLIES = [
    "I am so sorry, that must hurt. What happened?",
    "You should talk to her. Have you tried to write?? Why not!",
    "i am SO  sorry, that must hurt. what happened?",
    "When I lost my job it was the same for me.",
    "  ",
    "Okay.<|im_end|>",
]


def words_of(replies):
    return tokenized(replies, replies)("treebank")[0]


def means(replies):
    return {name: column.mean() for name, column in health_columns(replies, words_of(replies)).items()}


def test_by_hand():
    found = means(REPLIES)
    assert found["empty_replies"] == pytest.approx(100 / 6)
    assert found["questions_per_reply"] == pytest.approx(3 / 6)
    assert found["understanding"] == pytest.approx(200 / 6)
    assert found["self_disclosure"] == pytest.approx(100 / 6)
    assert found["advice"] == pytest.approx(100 / 6)
    assert found["template_leakage"] == pytest.approx(100 / 6)
    # Treebank words: "hurt." keeps its period inside a reply, "<|im_end|>" is three
    assert found["reply_words"] == pytest.approx((11 + 15 + 11 + 12 + 0 + 4) / 6)


def test_repeats_are_looked_for_in_the_own_dialogue():
    same, silent = ["Okay.", "okay. "], [(), ()]
    assert repeated_replies(REPLIES, ["a", "a", "a", "b", "b", "b"], [()] * 6).tolist() == [0, 0, 100, 0, 0, 0]
    assert repeated_replies(same, [1, 2], silent).tolist() == [0, 0]
    assert repeated_replies(same, [1, 1], silent).tolist() == [0, 100]
    assert repeated_replies(same, [1, 2], [["Hello"], ["Hello", "Okay."]]).tolist() == [0, 100]
    assert repeated_replies(["", ""], [1, 1], silent).tolist() == [0, 0]


@pytest.mark.parametrize("text", ["ok</s>", "[INST] hi", "<start_of_turn>user", "<|eot_id|>", "a <|im_end", "<<SYS>>"])
def test_template_leakage(text):
    assert means([text])["template_leakage"] == (0 if text == "a <|im_end" else 100)


def test_brackets_are_no_template():
    assert means(["well [DONE]", "1 < 2 and <3, [sic]"])["template_leakage"] == 0


@settings(max_examples=25, deadline=None)
@given(st.lists(st.lists(st.sampled_from("abc"), max_size=9), min_size=1, max_size=6))
def test_the_most_frequent_four_gram(replies):
    seen = Counter(ngram for words in replies for ngram in ngrams(words, 4))
    share = 100 * max(seen.values(), default=0) / max(seen.total(), 1)
    assert top_4gram_share(words_of(list(map(" ".join, replies)))) == pytest.approx(share)
