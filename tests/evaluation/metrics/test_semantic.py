"""Semantic scores against loops over tokens; batches and order change nothing."""

import jax
import numpy as np
import pytest

from empathax.evaluation.metrics.semantic import bertscore, semantic_similarity, semantic_values
from empathax.models.encoder.files import load_encoder

REPLIES = [
    "It sounds like you miss her very much.",
    "You should join a club.",
    "",
    "I hear you",
    "What are the nights like for you since she left?",
]
REFERENCES = [
    "You must miss her a lot.",
    "It sounds like the silence has become hard to bear.",
    "I am listening.",
    "I hear you",
    "Tell me about the nights.",
]


@pytest.fixture(scope="module")
def minilm():
    return load_encoder()


def by_loops(reply, reference):
    """Precision, recall, F1 of two lists of vectors, one token at a time."""
    cosine = lambda a, b: float(a @ b / np.sqrt(a @ a) / np.sqrt(b @ b))  # noqa: E731
    precision = np.mean([max(cosine(a, b) for b in reference) for a in reply])
    recall = np.mean([max(cosine(a, b) for a in reply) for b in reference])
    return precision, recall, 2 * precision * recall / (precision + recall)


def test_bertscore_is_greedy_matching():
    rng = np.random.default_rng(0)
    lengths, reference_lengths = (7, 1, 4), (5, 6, 2)
    reply, reference = rng.normal(size=(3, 7, 16)), rng.normal(size=(3, 6, 16))
    mask = np.arange(7) < np.array(lengths)[:, None]
    reference_mask = np.arange(6) < np.array(reference_lengths)[:, None]
    ours = jax.jit(bertscore)(reply, mask, reference, reference_mask)
    for row in range(3):
        expected = by_loops(reply[row, : lengths[row]], reference[row, : reference_lengths[row]])
        np.testing.assert_allclose([float(value[row]) for value in ours], expected, rtol=1e-5)


def test_a_case_by_hand():
    reply, reference = np.array([[[1.0, 0.0], [0.0, 2.0]]]), np.array([[[3.0, 4.0], [0.0, 0.0]]])
    both, first = np.ones((1, 2), bool), np.array([[True, False]])
    precision, recall, f1 = bertscore(reply, both, reference, first)  # cosines with (3, 4) / 5: 0.6 and 0.8
    assert (float(precision[0]), float(recall[0])) == (pytest.approx(0.7), pytest.approx(0.8))
    assert float(f1[0]) == pytest.approx(2 * 0.7 * 0.8 / 1.5)
    similarity = semantic_similarity(reply, both, reference, first)  # (1/2, 1) and (3, 4)
    assert float(similarity[0]) == pytest.approx(5.5 / 5 / np.sqrt(1.25))


def test_the_same_text_scores_one_and_an_empty_one_nothing(minilm):
    same = semantic_values(minilm, REFERENCES[:2], REFERENCES[:2])
    assert {name: values.tolist() for name, values in same.items()} == {
        name: pytest.approx([1.0, 1.0], abs=1e-5)
        for name in ("semantic_similarity", "bertscore_precision", "bertscore_recall", "bertscore_f1")
    }
    empty = semantic_values(minilm, [""], ["I am listening."])
    assert empty["bertscore_precision"].tolist() == empty["bertscore_f1"].tolist() == [0.0]


def test_near_meanings_are_nearer(minilm):
    found = semantic_values(minilm, REPLIES[:2], REFERENCES[:1] * 2)
    assert found["semantic_similarity"][0] > found["semantic_similarity"][1] + 0.3
    assert found["bertscore_f1"][0] > found["bertscore_f1"][1]


def test_batches_and_order_change_nothing(minilm):
    whole = semantic_values(minilm, REPLIES, REFERENCES, batch_size=8)
    parts = semantic_values(minilm, REPLIES[::-1], REFERENCES[::-1], batch_size=2)
    for name, values in whole.items():
        np.testing.assert_allclose(values, parts[name][::-1], atol=1e-5)
