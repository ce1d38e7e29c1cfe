"""Words against NLTK, rouge-score and sacrebleu themselves, text by text and in bulk."""

import re
from itertools import accumulate, chain, pairwise

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from nltk.tokenize import TreebankWordTokenizer
from rouge_score.tokenizers import DefaultTokenizer
from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a

from empathax.evaluation.metrics.words import (
    cased_pieces,
    lower_pieces,
    mteval_piece,
    mteval_words,
    rouge_piece,
    rouge_words,
    treebank_piece,
    treebank_words,
)

_treebank, _rouge, _mteval = TreebankWordTokenizer(), DefaultTokenizer(), Tokenizer13a()
REFERENCES = {
    "treebank": (
        treebank_words,
        lambda texts: lower_pieces(texts).ids(treebank_piece),
        lambda text: _treebank.tokenize(text.lower()),
    ),
    "rouge": (rouge_words, lambda texts: lower_pieces(texts).ids(rouge_piece), _rouge.tokenize),
    "mteval": (
        mteval_words,
        lambda texts: cased_pieces(texts).ids(mteval_piece),
        lambda text: _mteval(text.rstrip()).split(),
    ),
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
    words, _, reference = REFERENCES[name]
    assert words(text) == reference(text)


@pytest.mark.parametrize("name", REFERENCES)
@settings(max_examples=120, deadline=None)
@given(text=odd_text)
def test_words_of_random_text(name, text):
    words, _, reference = REFERENCES[name]
    assert words(text) == reference(text)


@pytest.mark.parametrize("name", REFERENCES)
@settings(max_examples=120, deadline=None)
@given(texts=st.lists(odd_text, max_size=6))
@example(texts=list(TEXTS))
@example(texts=[f"{text} {text}" for text in TEXTS])
@example(texts=[])
def test_ids_are_those_of_the_reference_words(name, texts):
    _, in_bulk, reference = REFERENCES[name]
    expected = [reference(text) for text in texts]
    ids = in_bulk(texts)
    assert ids.lengths_N.tolist() == list(map(len, expected))
    ends = [0, *accumulate(map(len, expected))]
    found = [ids.ids_K[start:end].tolist() for start, end in pairwise(ends)]
    by_word = {}
    for word, word_id in zip(chain.from_iterable(expected), ids.ids_K.tolist(), strict=True):
        assert by_word.setdefault(word, word_id) == word_id
    assert len(set(by_word.values())) == len(by_word)
    assert found == [[by_word[word] for word in words] for words in expected]


def test_a_slice_is_some_of_the_texts():
    ids = lower_pieces(["one two", "", "two three four"]).ids(treebank_piece)
    assert ids[1:].lengths_N.tolist() == [0, 3]
    np.testing.assert_array_equal(ids[1:].ids_K, ids.ids_K[2:])
    assert len(ids[:1].ids_K) == 2


def test_what_the_treebank_does():
    assert treebank_words("They'll cost $3.88, can't they? Yes.") == [
        "they", "'ll", "cost", "$", "3.88", ",", "ca", "n't", "they", "?", "yes", ".",
    ]  # fmt: skip
    assert not re.search(r"[^a-z0-9 ]", " ".join(rouge_words("Élan: 50% off, don't!")))
