"""Words against NLTK, rouge-score and sacrebleu themselves, text by text and in bulk."""

import re
from itertools import chain

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from nltk.tokenize import TreebankWordTokenizer
from rouge_score.tokenizers import DefaultTokenizer
from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a

from empathax.evaluation.metrics.words import TextIds, mteval_words, rouge_words, tokenized, treebank_words

_treebank, _rouge, _mteval = TreebankWordTokenizer(), DefaultTokenizer(), Tokenizer13a()
REFERENCES = {
    "treebank": (lambda text: treebank_words(text.lower()), lambda text: _treebank.tokenize(text.lower())),
    "rouge": (rouge_words, _rouge.tokenize),
    "mteval": (mteval_words, lambda text: _mteval(text.rstrip()).split()),
}
TEXTS = (
    "",
    " ",
    "\n",
    ".",
    "I'm sorry. You can't, won't or cannot do it... gonna wanna?! 'Tis \"quoted\" ''odd'' ``ticks''",
    " leading, and trailing.  ",
    "''first'' and \"second.\" (third.) 'fourth.'  ",
    "a'm' ",
    "a'm'",
    "dogs' cats' .' ,, ,,a a,b 1,000 1,a 3:30 :: -- --- 1-2 -\nx -<skipped>\ny &amp;quot; &lt;b&gt;",
    "tab\there\n\nnew line.\n",
    "wanna\nwanna wannabe Lemme gimme GIMME d'ye more'n 'twas 'tisn't I'Ll N'T n't cann't",
    "İstanbul ΑΣ. Straße ſo 'tiſ K 10\u00a0% \u2028 “curly” ’s naïve\x1c.\x1d café，。",
    "end.\x1c",
    'x.) "y." z.\'" . .. ... .... a.%',
    "<|im_end|> </s> [INST] {x} a@b.c #tag $5.50 50% a;b",
)
# Pieces that meet the tokenizers' rules far more often than random characters do.
_pieces = st.sampled_from(
    [*"'\"`.,:;?!-()[]{}<>&@$%/ \n\t\u00a0\x1c", *"aI7éİΣß’，😀٣", "  ", "''", "``", "...", "--", "'s", "'ll", "n't",
     "N'T", "'Tis", "don't", "can", "not", "cannot", "gonna", "wanna", "gimme", "d'ye", "more'n", "1,0", "3-4",
     "&amp;", "&lt;", "<skipped>", "-\n"]
)  # fmt: skip
odd_text = st.one_of(st.lists(_pieces, max_size=12).map("".join), st.text(max_size=20))


@pytest.mark.parametrize("name", REFERENCES)
@pytest.mark.parametrize("text", TEXTS)
def test_words_of_odd_texts(name, text):
    words, reference = REFERENCES[name]
    assert words(text) == reference(text)


@pytest.mark.parametrize("name", REFERENCES)
@settings(max_examples=120, deadline=None)
@given(text=odd_text)
def test_words_of_random_text(name, text):
    words, reference = REFERENCES[name]
    assert words(text) == reference(text)


@pytest.mark.parametrize("name", REFERENCES)
@settings(max_examples=120, deadline=None)
@given(texts=st.lists(odd_text, max_size=6))
@example(texts=list(TEXTS))
@example(texts=[f"{text} {text}" for text in TEXTS])
@example(texts=[])
def test_ids_are_those_of_the_reference_words(name, texts):
    _, reference = REFERENCES[name]
    expected = [reference(text) for text in texts]
    ids, _ = tokenized(texts, [])(name)
    assert ids.lengths_N.tolist() == list(map(len, expected))
    by_word = {}
    for word, word_id in zip(chain.from_iterable(expected), ids.ids_K.tolist(), strict=True):
        assert by_word.setdefault(word, word_id) == word_id
    assert len(set(by_word.values())) == len(by_word)
    assert ids.rows() == tuple(tuple(by_word[word] for word in words) for words in expected)


def test_a_slice_is_some_of_the_texts():
    ids = TextIds.of([[1, 2], [], [2, 3, 4]])
    assert ids[1:].lengths_N.tolist() == [0, 3]
    np.testing.assert_array_equal(ids[1:].ids_K, ids.ids_K[2:])
    assert len(ids[:1].ids_K) == 2


def test_one_row_holds_all_texts_with_a_gap_after_each():
    ids, texts = TextIds.of([[1, 2], [], [2, 3, 4], [5]]).in_one_row()
    assert ids.tolist() == [1, 2, -1, -1, 2, 3, 4, -1, 5, *[-1] * 7]
    assert texts[ids >= 0].tolist() == [0, 0, 2, 2, 2, 3]


def test_replies_and_references_share_their_ids():
    replies, references = tokenized(["Yes, I do."], ["i do, yes"])("treebank")
    assert set(references.rows()[0]) < set(replies.rows()[0])  # all but the period


def test_what_the_treebank_does():
    assert treebank_words("they'll cost $3.88, can't they? yes.") == [
        "they", "'ll", "cost", "$", "3.88", ",", "ca", "n't", "they", "?", "yes", ".",
    ]  # fmt: skip
    assert not re.search(r"[^a-z0-9 ]", " ".join(rouge_words("Élan: 50% off, don't!")))
