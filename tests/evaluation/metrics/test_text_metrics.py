"""Text metrics against NLTK, rouge-score, sacrebleu and direct counts, on any text and any number of devices."""

import json
import os
import random
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from empathax.config import MeshOptions
from empathax.errors import ConfigError, DataError
from empathax.evaluation.generation.decoding import DecodeOptions, generate
from empathax.evaluation.generation.prompt_tree import lay_out_prompts
from empathax.evaluation.metrics.text_metrics import METRICS, score_ids, score_texts
from empathax.models.architecture.presets import preset
from empathax.models.transformer import init_params
from empathax.parallel.mesh import make_mesh
from empathax.parallel.processes import put_batch
from empathax.parallel.rules import batch_sharding
from tests.evaluation.metrics.reference_metrics import lcs, reference_metrics, word_metrics
from tests.evaluation.metrics.test_words import TEXTS, odd_text

CORPORA = Path(os.environ.get("EMPATHAX_CORPORA", Path(__file__).parents[4] / "shared" / "data"))
CORPUS = CORPORA / "esconv" / "test.jsonl"
score = jax.jit(score_ids)
CLOSE = {"rel": 1e-6, "abs": 0.0}

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


def check(replies, references):
    found = score_texts(replies, references)
    assert tuple(found) == METRICS
    assert found == pytest.approx(reference_metrics(replies, references), **CLOSE)


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


def test_token_unit_takes_the_ids_of_an_encoder():
    replies, references = REPLIES[:2], REFERENCES[:2]

    def encode(text):
        return [ord(letter) for letter in text]

    found = score_texts(replies, references, unit="token", encode=encode)
    expected = word_metrics(list(map(encode, replies)), list(map(encode, references)))
    assert {name: found[name] for name in expected} == pytest.approx(expected, **CLOSE)
    f1 = [2 * lcs(a, b) / (len(a) + len(b)) for a, b in zip(replies, references, strict=True)]
    assert found["rouge_l"] == pytest.approx(100 * sum(f1) / len(f1), **CLOSE)


def test_generated_ids_are_scored_in_the_same_compiled_function():
    config = preset("tiny-llama")
    params = init_params(config, 0)
    prompts = lay_out_prompts([[5, 6, 7], [5, 6, 8, 9]])
    references, lengths = np.array([[3, 4, 5, 6], [9, 8, 0, 0]]), np.array([4, 2])

    @jax.jit
    def generate_and_score(params):
        out = generate(params, config, prompts, jnp.arange(2), options=DecodeOptions(6, (), "cpu"))
        said = out.lengths_B - out.stopped_B
        return score_ids(out.token_ids_BM, said, references, lengths), out

    state, out = generate_and_score(params)
    said = words_of(jax.device_get(out.token_ids_BM), [6, 6])
    expected = word_metrics(said, words_of(references, lengths))
    found = state.compute()
    assert {name: found[name] for name in expected} == pytest.approx(expected, **CLOSE)


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
    found = score(*rows).compute()
    expected = word_metrics(words_of(*rows[:2]), words_of(*rows[2:]))
    assert {name: found[name] for name in expected} == pytest.approx(expected, **CLOSE)


def test_states_merge_in_any_order():
    rows = random_ids(24, 9)
    parts = [score(*(array[start : start + 8] for array in rows)) for start in (0, 8, 16)]
    whole = score(*rows).compute()
    assert parts[0].merge(parts[1]).merge(parts[2]).compute() == whole
    assert parts[2].merge(parts[0].merge(parts[1])).compute() == whole


def test_rows_that_do_not_count_add_nothing():
    rows = random_ids(8, 9)
    found, everything = (score(*rows, np.arange(8) < count).compute() for count in (5, 8))
    words = words_of(*rows[:2])[:5], words_of(*rows[2:])[:5]
    expected = word_metrics(*words)
    assert {name: found[name] for name in expected} == pytest.approx(expected, **CLOSE)
    assert found != everything


@pytest.mark.parametrize("shape", [(8, 1, 1), (2, 2, 2)])
def test_the_same_on_any_mesh(shape):
    mesh = make_mesh(MeshOptions(*shape))
    rows = random_ids(64, 21)
    placed = put_batch(rows, batch_sharding(mesh))
    assert len(placed[0].sharding.device_set) == 8
    assert score(*placed).compute() == score(*rows).compute()
    pairs = REPLIES[:2] * 600, REFERENCES[:2] * 600
    metrics = ("rouge_l", "distinct_3")
    assert score_texts(*pairs, metrics=metrics, mesh=mesh) == score_texts(*pairs, metrics=metrics)


def test_ids_up_to_the_largest_are_told_apart():
    largest = 2**31 - 2
    ids = jnp.array([[largest, largest - 1, largest, largest, 0, 1 << 30, 0, 0]], jnp.int32)
    lengths = jnp.array([8])
    found = score(ids, lengths, ids, lengths).compute()
    assert found == pytest.approx(word_metrics(words_of(ids, lengths), words_of(ids, lengths)) | {
        "rouge_l": 100.0, "bleu4_sacre": 100.0,
    }, **CLOSE)  # fmt: skip


def test_only_what_is_asked_for():
    metrics = ("rouge_l", "distinct_2")
    found = score_texts(REPLIES, REFERENCES, metrics=metrics)
    everything = score_texts(REPLIES, REFERENCES)
    assert found == {name: everything[name] for name in METRICS if name in metrics}


def test_what_cannot_be_scored():
    with pytest.raises(DataError, match="2 replies and 1 references"):
        score_texts(["a", "b"], ["a"])
    with pytest.raises(DataError, match="0 replies"):
        score_texts([], [])
    with pytest.raises(ConfigError, match="unknown metrics bleu5"):
        score_texts(["a"], ["a"], metrics=["bleu5"])
    with pytest.raises(ConfigError, match="needs `encode`"):
        score_texts(["a"], ["a"], unit="token")
    with pytest.raises(ConfigError, match="expected 'word' or 'token'"):
        score_texts(["a"], ["a"], unit="letter")
