"""Dialogue health, by hand."""

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from empathax.errors import DataError
from empathax.evaluation.metrics.dialogue_health import dialogue_health
from tests.evaluation.metrics.reference_metrics import ngrams

REPLIES = [
    "I am so sorry, that must hurt. What happened?",
    "You should talk to her. Have you tried to write?? Why not!",
    "i am SO  sorry, that must hurt. what happened?",
    "When I lost my job it was the same for me.",
    "  ",
    "Okay.<|im_end|>",
]


def test_by_hand():
    found = dialogue_health(REPLIES, dialogue_ids=["a", "a", "a", "b", "b", "b"])
    assert found["repeated_replies"] == pytest.approx(100 / 6)
    assert found["empty_replies"] == pytest.approx(100 / 6)
    assert found["questions_per_reply"] == pytest.approx(3 / 6)
    assert found["understanding"] == pytest.approx(200 / 6)
    assert found["self_disclosure"] == pytest.approx(100 / 6)
    assert found["advice"] == pytest.approx(100 / 6)
    assert found["template_leakage"] == pytest.approx(100 / 6)
    # Treebank words: "hurt." keeps its period inside a reply, "<|im_end|>" is three
    assert found["reply_words"] == pytest.approx((11 + 15 + 11 + 12 + 0 + 4) / 6)


def test_repeats_are_looked_for_in_the_own_dialogue():
    same = ["Okay.", "okay. "]
    assert dialogue_health(same, dialogue_ids=[1, 2])["repeated_replies"] == 0
    assert dialogue_health(same, dialogue_ids=[1, 1])["repeated_replies"] == 50
    assert dialogue_health(same, histories=[["Hello"], ["Hello", "Okay."]])["repeated_replies"] == 50
    assert dialogue_health(["", ""], dialogue_ids=[1, 1])["repeated_replies"] == 0
    assert "repeated_replies" not in dialogue_health(same)


@pytest.mark.parametrize("text", ["ok</s>", "[INST] hi", "<start_of_turn>user", "<|eot_id|>", "a <|im_end", "<<SYS>>"])
def test_template_leakage(text):
    assert dialogue_health([text])["template_leakage"] == (0 if text == "a <|im_end" else 100)


def test_special_tokens_of_a_tokenizer():
    assert dialogue_health(["well [DONE]"])["template_leakage"] == 0
    assert dialogue_health(["well [DONE]"], special_tokens=["[DONE]"])["template_leakage"] == 100
    assert dialogue_health(["1 < 2 and <3, [sic]"])["template_leakage"] == 0


@settings(max_examples=25, deadline=None)
@given(st.lists(st.lists(st.sampled_from("abc"), max_size=9), min_size=1, max_size=6))
def test_the_most_frequent_four_gram(replies):
    seen = Counter(ngram for words in replies for ngram in ngrams(words, 4))
    share = 100 * max(seen.values(), default=0) / max(seen.total(), 1)
    assert dialogue_health(list(map(" ".join, replies)))["top_4gram_share"] == pytest.approx(share)


def test_what_cannot_be_scored():
    with pytest.raises(DataError, match="no replies"):
        dialogue_health([])
    with pytest.raises(DataError, match="1 dialogue_ids for 2 replies"):
        dialogue_health(["a", "b"], dialogue_ids=[1])
