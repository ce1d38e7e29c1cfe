"""Text metrics against NLTK, rouge-score, sacrebleu and direct counts: all replies together, one by one, resampled."""

import json
import os
import random
import warnings
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nltk.tokenize import TreebankWordTokenizer
from nltk.translate.bleu_score import sentence_bleu

from empathax.config import MeshOptions
from empathax.evaluation.generation.decoding import DecodeOptions, generate
from empathax.evaluation.generation.prompt_tree import lay_out_prompts
from empathax.evaluation.metrics.overlap import PairRows, pair_values
from empathax.evaluation.metrics.text_metrics import TEXT_METRICS, text_statistics
from empathax.evaluation.metrics.words import MAX_ID, TextIds, tokenized
from empathax.models.architecture.presets import preset
from empathax.models.transformer import init_params
from empathax.parallel.mesh import make_mesh
from empathax.parallel.processes import put_batch
from empathax.parallel.rules import batch_sharding
from tests.evaluation.metrics.reference_metrics import lcs, lcs_f, reference_metrics, scorer, word_metrics
from tests.evaluation.metrics.test_words import TEXTS, odd_text

CORPORA = Path(os.environ.get("EMPATHAX_CORPORA", Path(__file__).parents[4] / "shared" / "data"))
CORPUS = CORPORA / "esconv" / "test.jsonl"
CLOSE = {"rel": 1e-6, "abs": 0.0}
DIALOGUES = ["a", "a", "b", "b", "c", "c"]
words = TreebankWordTokenizer().tokenize

REPLIES = [
    "I'm sorry to hear that. It sounds like a very hard week for you.",
    "Have you tried to talk to your manager about the long hours, and about the weekends?",
    "yes",
    "",
    "That must be hard, that must be hard, that must be hard for you!",
    "I hear you. What would help you most right now?",
]
REFERENCES = [
    "I am sorry to hear that. It sounds like it was a very hard week!",
    "Have you talked to your manager about the long hours?",
    "yes",
    "Take your time.",
    "It must be hard for you, it must be really hard.",
    "",
]


def metrics_of(statistics):
    return {metric: value for name, entry in statistics.items() for metric, value in entry.metrics(name).items()}


def statistics_of(replies, references):
    return text_statistics(tokenized(replies, references), [f"dialogue {n}" for n in range(len(replies))])


def statistics_of_ids(replies, references):
    """Unit "token": the same ids for every metric."""
    ids = TextIds.of(replies), TextIds.of(references)
    return text_statistics(lambda tokenization: ids, [f"dialogue {n}" for n in range(len(replies))])


def check(replies, references):
    found, expected = metrics_of(statistics_of(replies, references)), reference_metrics(replies, references)
    assert found == pytest.approx({name: expected[name] for name in found}, **CLOSE)
    for name in expected.keys() - found.keys():  # no reply has an n-gram to take a mean of
        assert name.startswith("distinct_")
        assert name.endswith("_reply")
        assert expected[name] == 0.0


@pytest.mark.parametrize(
    ("replies", "references"),
    [
        (REPLIES, REFERENCES),
        (REFERENCES, REPLIES),
        (REPLIES, REPLIES),
        (REPLIES[:1], REFERENCES[:1]),
        (["yes"], ["yes"]),  # NLTK: no bigram, 2**-766.5
        (["a"], ["a " + "e " * 120]),  # a brevity penalty below float32
        (["a"], ["b"]),
        ([""], [""]),
        (["", ""], ["one", ""]),
        (["😀 Größe naïve ’tis ١٢٣"], ["😀 größe naïve ’tis"]),
        (TEXTS, TEXTS[::-1]),
        (["so " * 30 + "and on " * 20], ["on and " * 40]),
        (["the the the the the"], ["the cat the mat"]),
    ],
)  # fmt: skip
def test_equal_to_the_references(replies, references):
    check(replies, references)


_likely = st.lists(st.sampled_from(["i", "hear", "you", "it's", "hard,", "hard.", "really?", "and"]), max_size=9)
_reply = st.one_of(_likely.map(" ".join), odd_text)


@settings(max_examples=40, deadline=None)
@given(pairs=st.lists(st.tuples(_reply, _reply), min_size=1, max_size=8))
def test_equal_on_random_texts(pairs):
    check([reply for reply, _ in pairs], [reference for _, reference in pairs])


@pytest.mark.skipif(not CORPUS.exists(), reason="ESConv is not beside the project (../shared/data)")
def test_equal_on_all_test_replies_of_esconv():
    dialogues = [json.loads(line)["dialog"] for line in CORPUS.read_text().split("\n") if line]
    gold = [turn["text"] for turns in dialogues for turn in turns if turn["speaker"] == "sys"]
    assert len(gold) == 2_895
    shuffled = random.Random(0).sample(gold, len(gold))
    check(shuffled, gold)
    check(gold, gold)


@pytest.fixture(scope="module")
def statistics():
    return text_statistics(tokenized(REPLIES, REFERENCES), DIALOGUES)


def test_each_reply_has_its_own_score(statistics):
    pairs = [(words(a.lower()), words(b.lower())) for a, b in zip(REPLIES, REFERENCES, strict=True)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        bleu = [100 * sentence_bleu([b], a) for a, b in pairs]
    assert statistics["bleu4_sentence"].values == pytest.approx(bleu, **CLOSE)
    assert statistics["rouge_l_coco"].values == pytest.approx([100 * lcs_f(a, b) for a, b in pairs], rel=1e-6)
    rouge = [100 * scorer().score(b, a)["rougeL"].fmeasure for a, b in zip(REPLIES, REFERENCES, strict=True)]
    assert statistics["rouge_l"].values == pytest.approx(rouge, rel=1e-6)
    assert statistics["rouge_l"].dialogues == tuple(DIALOGUES)


def test_replies_without_an_ngram_are_left_out(statistics):
    long_enough = [name for name, reply in zip(DIALOGUES, REPLIES, strict=True) if len(words(reply)) >= 2]
    assert statistics["distinct_2_reply"].dialogues == tuple(long_enough)
    only_empty = statistics_of(["", ""], ["yes", "no"])
    assert not {"distinct_1_reply", "distinct_2_reply", "distinct_3_reply"} & only_empty.keys()


def test_a_resample_is_the_metric_of_the_drawn_dialogues(statistics):
    weights_RD = np.array([[1.0, 0.0, 1.0]])
    drawn = [place for place, name in enumerate(DIALOGUES) if name in "ac"]
    expected = reference_metrics([REPLIES[place] for place in drawn], [REFERENCES[place] for place in drawn])
    for name, statistic in statistics.items():
        for metric, value_R in statistic.estimates(name, ("a", "b", "c"), weights_RD).items():
            assert value_R[0] == pytest.approx(expected[metric], rel=1e-6), metric


def test_pairs_around_it_do_not_change_a_pair():
    """Blocks of other sizes and orders give the same bits."""
    texts = [(reply, reference) for reply in [*REPLIES, *TEXTS[:20]] for reference in REFERENCES] * 9
    order = random.Random(0).sample(range(len(texts)), len(texts))
    found = statistics_of(*zip(*texts, strict=True))
    shuffled = statistics_of(*zip(*(texts[place] for place in order), strict=True))
    for name in ("bleu4_sentence", "rouge_l", "rouge_l_coco"):
        assert shuffled[name].values == tuple(found[name].values[place] for place in order)
    assert shuffled["bleu4_sacre"].matches == tuple(found["bleu4_sacre"].matches[place] for place in order)


def test_only_what_is_asked_for(statistics):
    names = ("rouge_l", "distinct")
    assert text_statistics(tokenized(REPLIES, REFERENCES), DIALOGUES, names) == {
        name: statistics[name] for name in TEXT_METRICS if name in names
    }


def test_token_unit_takes_any_ids():
    replies, references = ([list(map(ord, text)) for text in texts[:2]] for texts in (REPLIES, REFERENCES))
    found, expected = metrics_of(statistics_of_ids(replies, references)), word_metrics(replies, references)
    assert {name: found[name] for name in expected} == pytest.approx(expected, **CLOSE)
    f1 = [2 * lcs(a, b) / (len(a) + len(b)) for a, b in zip(replies, references, strict=True)]
    assert found["rouge_l"] == pytest.approx(100 * sum(f1) / len(f1), **CLOSE)


def test_generated_ids_are_counted_in_the_same_compiled_function():
    config = preset("tiny-llama")
    params = init_params(config, 0)
    prompts = lay_out_prompts([[5, 6, 7], [5, 6, 8, 9]])
    references, lengths = np.array([[3, 4, 5, 6], [9, 8, 0, 0]]), np.array([4, 2])

    @jax.jit
    def generate_and_count(params):
        out = generate(params, config, prompts, jnp.arange(2), options=DecodeOptions(6, (), "cpu"))
        said = out.lengths_B - out.stopped_B
        return pair_values(PairRows(out.token_ids_BM, said, references, lengths)), out

    values, out = jax.device_get(generate_and_count(params))
    said, wanted = words_of(out.token_ids_BM, [6, 6]), words_of(references, lengths)
    check_values(values, said, wanted)
    found, expected = metrics_of(statistics_of_ids(said, wanted)), word_metrics(said, wanted)
    assert {name: found[name] for name in expected} == pytest.approx(expected, **CLOSE)


def check_values(values, said, wanted):
    """The values of each pair against the metrics of that pair alone."""
    bleu = np.ldexp(np.float64(values.sentence_mantissas_B), values.sentence_exponents_B)
    for row, (reply, reference) in enumerate(zip(said, wanted, strict=True)):
        expected = word_metrics([reply], [reference])
        assert 100 * bleu[row] == pytest.approx(expected["bleu4_sentence"], **CLOSE)
        assert 100 * values.rouge_l_coco_B[row] == pytest.approx(expected["rouge_l_coco"], **CLOSE)
        total = max(len(reply) + len(reference), 1)
        assert values.rouge_l_B[row] == pytest.approx(2 * lcs(reply, reference) / total, **CLOSE)
        shares = 100 * values.distinct_BN[row] / np.maximum(values.totals_BN[row], 1)
        assert shares[:3] == pytest.approx([expected[f"distinct_{n}_reply"] for n in (1, 2, 3)], **CLOSE)


def random_ids(num_rows, width, seed=0, vocabulary=12):
    generator = np.random.default_rng(seed)
    ids = generator.integers(0, vocabulary, (2, num_rows, width)).astype(np.int32)
    lengths = generator.integers(0, width + 1, (2, num_rows)).astype(np.int32)
    return ids[0], lengths[0], ids[1], lengths[1]


def words_of(ids, lengths):
    return [row[:length].tolist() for row, length in zip(ids, lengths, strict=True)]


@pytest.mark.parametrize(("num_rows", "width"), [(8, 40), (16, 7), (8, 70), (8, 2)])
def test_ids_on_the_device(num_rows, width):
    rows = random_ids(num_rows, width)
    said, wanted = words_of(*rows[:2]), words_of(*rows[2:])
    check_values(jax.device_get(jax.jit(pair_values)(PairRows(*rows))), said, wanted)
    found, expected = metrics_of(statistics_of_ids(said, wanted)), word_metrics(said, wanted)
    assert found == pytest.approx({name: expected.get(name, found[name]) for name in found}, **CLOSE)


@pytest.mark.parametrize("shape", [(8, 1, 1), (2, 2, 2)])
def test_the_same_on_any_mesh(shape):
    rows = PairRows(*random_ids(64, 21))
    placed = put_batch(rows, batch_sharding(make_mesh(MeshOptions(*shape))))
    assert len(placed.reply_ids_BT.sharding.device_set) == 8
    jax.tree.map(np.testing.assert_array_equal, jax.jit(pair_values)(placed), jax.jit(pair_values)(rows))


def test_ids_up_to_the_largest_are_distinguished():
    ids = [[MAX_ID, MAX_ID - 1, MAX_ID, MAX_ID, 0, 1 << 30, 0, 0]]
    found = metrics_of(statistics_of_ids(ids, ids))
    assert found == pytest.approx(word_metrics(ids, ids) | {"rouge_l": 100.0, "bleu4_sacre": 100.0}, **CLOSE)
