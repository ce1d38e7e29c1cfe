"""The same numbers from NLTK, rouge-score, sacrebleu and plain counting, for tests and benchmarks."""

import warnings
from collections import Counter
from functools import cache

from nltk.tokenize import TreebankWordTokenizer
from nltk.translate.bleu_score import SmoothingFunction, corpus_bleu, sentence_bleu
from rouge_score.rouge_scorer import RougeScorer
from sacrebleu.metrics import BLEU

_words = TreebankWordTokenizer().tokenize


def mean(values):
    values = list(values)
    return sum(values) / len(values) if values else 0.0


@cache
def scorer():
    return RougeScorer(["rougeL"])


def lcs(a, b):
    """Length of the longest common subsequence, cell by cell."""
    row = [0] * (len(b) + 1)
    for x in a:
        last = row
        row = [0]
        for j, y in enumerate(b):
            row.append(last[j] + 1 if x == y else max(last[j + 1], row[j]))
    return row[-1]


def lcs_f(reply, reference, beta=1.2):
    """ESConv's calc_rouge_l of one pair (codes_zcj/metric/myMetrics.py)."""
    common = lcs(reference, reply)
    precision, recall = common / max(len(reply), 1e-10), common / max(len(reference), 1e-10)
    if not precision or not recall:
        return 0.0
    return (1 + beta**2) * precision * recall / (recall + beta**2 * precision)


def ngrams(words, n):
    return [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]


def distinct(replies, n):
    seen = Counter(ngram for words in replies for ngram in ngrams(words, n))
    return len(seen) / max(seen.total(), 1)


def reply_distinct(replies, n):
    return mean(len(set(ngrams(words, n))) / len(ngrams(words, n)) for words in replies if len(words) >= n)


def word_metrics(replies, references):
    """The metrics of lists of words that come from Treebank words."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # NLTK warns of orders without a match
        pairs = list(zip(replies, references, strict=True))
        return {
            "bleu4_sentence": 100 * mean(sentence_bleu([b], a) for a, b in pairs),
            "bleu4_corpus": 100
            * corpus_bleu([[b] for b in references], replies, smoothing_function=SmoothingFunction().method3),
            "rouge_l_coco": 100 * mean(lcs_f(a, b) for a, b in pairs),
            **{f"distinct_{n}": 100 * distinct(replies, n) for n in (1, 2, 3)},
            **{f"distinct_{n}_reply": 100 * reply_distinct(replies, n) for n in (1, 2, 3)},
        }


def reference_metrics(replies, references):
    """All metrics of texts."""
    words = [[_words(text.lower()) for text in texts] for texts in (replies, references)]
    return {
        **word_metrics(*words),
        "rouge_l": 100
        * mean(scorer().score(b, a)["rougeL"].fmeasure for a, b in zip(replies, references, strict=True)),
        "bleu4_sacre": BLEU(force=True).corpus_score(replies, [references]).score,
    }


def core_metrics(replies, references):
    """B-4, R-L and Dist-2 of texts, without a step too many."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        said, wanted = ([_words(text.lower()) for text in texts] for texts in (replies, references))
        bleu = mean(sentence_bleu([b], a) for a, b in zip(said, wanted, strict=True))
    rouge = mean(scorer().score(b, a)["rougeL"].fmeasure for a, b in zip(replies, references, strict=True))
    return {"bleu4_sentence": 100 * bleu, "rouge_l": 100 * rouge, "distinct_2": 100 * distinct(said, 2)}
