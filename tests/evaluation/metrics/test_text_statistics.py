"""The text metrics reply by reply against NLTK, rouge-score and sacrebleu on each pair, and on all of them together."""

import warnings

import numpy as np
import pytest
from nltk.tokenize import TreebankWordTokenizer
from nltk.translate.bleu_score import sentence_bleu

from empathax.evaluation.metrics.text_statistics import text_statistics
from tests.evaluation.metrics.reference_metrics import lcs_f, reference_metrics, scorer
from tests.evaluation.metrics.test_text_metrics import REFERENCES, REPLIES
from tests.evaluation.report.made_up import plain

DIALOGUES = ["a", "a", "b", "b", "c", "c"]
words = TreebankWordTokenizer().tokenize


@pytest.fixture(scope="module")
def statistics():
    return text_statistics(REPLIES, REFERENCES, DIALOGUES)


def test_together_they_are_the_metrics(statistics):
    found = {name: value for entry in statistics.items() for name, value in plain(*entry).items()}
    assert found == pytest.approx(reference_metrics(REPLIES, REFERENCES), rel=1e-6)


def test_each_reply_has_its_own_score(statistics):
    pairs = [(words(a.lower()), words(b.lower())) for a, b in zip(REPLIES, REFERENCES, strict=True)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        bleu = [100 * sentence_bleu([b], a) for a, b in pairs]
    assert statistics["bleu4_sentence"].values == pytest.approx(bleu, rel=1e-6, abs=1e-30)
    assert statistics["rouge_l_coco"].values == pytest.approx([100 * lcs_f(a, b) for a, b in pairs], rel=1e-6)
    rouge = [100 * scorer().score(b, a)["rougeL"].fmeasure for a, b in zip(REPLIES, REFERENCES, strict=True)]
    assert statistics["rouge_l"].values == pytest.approx(rouge, rel=1e-6)
    assert statistics["rouge_l"].dialogues == tuple(DIALOGUES)


def test_replies_without_an_ngram_are_left_out(statistics):
    long_enough = [name for name, reply in zip(DIALOGUES, REPLIES, strict=True) if len(words(reply)) >= 2]
    assert statistics["distinct_2_reply"].dialogues == tuple(long_enough)
    only_empty = text_statistics(["", ""], ["yes", "no"], ["a", "b"])
    assert not {"distinct_1_reply", "distinct_2_reply", "distinct_3_reply"} & only_empty.keys()


def test_a_resample_is_the_metric_of_the_drawn_dialogues(statistics):
    weights_RD = np.array([[1.0, 0.0, 1.0]])
    drawn = [place for place, name in enumerate(DIALOGUES) if name in "ac"]
    expected = reference_metrics([REPLIES[place] for place in drawn], [REFERENCES[place] for place in drawn])
    for name, statistic in statistics.items():
        for metric, value_R in statistic.estimates(name, ("a", "b", "c"), weights_RD).items():
            assert value_R[0] == pytest.approx(expected[metric], rel=1e-6), metric
