"""BERTScore against the bert-score package, from texts to scores, with the same encoder (MiniLM, its last layer)."""

from __future__ import annotations

import bert_score
import numpy as np
import pytest

from empathax.evaluation.metrics.semantic import semantic_values
from empathax.models.encoder.files import DEFAULT_ENCODER, load_encoder
from empathax.models.weights.locations import weights_in_package

REPLIES = [
    "It sounds like you miss her very much.",
    "You should join a club and meet new people!",
    "I hear you",
    "What are the nights like for you since she left?",
    "Caf\u00e9 na\u00efve \U0001f614 ok...",
]
REFERENCES = [
    "You must miss her a lot.",
    "It sounds like the silence itself has become hard to bear since she left. " * 4,
    "I hear you",
    "Tell me about the nights.",
    "That is hard.",
]


def test_scores_equal_the_package() -> None:
    directory = str(weights_in_package(DEFAULT_ENCODER.removeprefix("package:")))
    encoder = load_encoder()
    expected = bert_score.score(REPLIES, REFERENCES, model_type=directory, num_layers=6, idf=False, device="cpu")
    for row, (reply, reference) in enumerate(zip(REPLIES, REFERENCES, strict=True)):
        ours = semantic_values(encoder, [reply], [reference], batch_size=1)
        theirs = [float(values[row]) for values in expected]
        print([f"{value:.6f}" for value in theirs])
        names = ("bertscore_precision", "bertscore_recall", "bertscore_f1")
        assert [float(ours[name][0]) for name in names] == pytest.approx(theirs, abs=1e-4)
    whole = semantic_values(encoder, REPLIES, REFERENCES, batch_size=2)
    assert whole["bertscore_f1"].mean() == pytest.approx(float(np.mean(expected[2].numpy())), abs=1e-4)
