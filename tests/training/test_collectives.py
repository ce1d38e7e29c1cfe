"""What devices tell each other in a step: weights and gradients, never logits, activations only where they must."""

import math
import re

import pytest

from empathax.config import Config, ModelOptions
from empathax.models import transformer
from tests.training.abstract_step import MODEL, ROWS, SIZES, compiled_step

CONFIG = Config(model=ModelOptions(vocab_chunk=256, remat="full"))
COLLECTIVE = re.compile(r"= (.*?) (all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute)(?:-start)?\(")
ARRAY = re.compile(r"(\w+)\[([\d,]*)\]")


def _collectives(text):
    """(kind, dtype, shape) of every array that a collective gives."""
    for line in text.splitlines():
        if found := COLLECTIVE.search(line):
            for dtype, shape in ARRAY.findall(found[1]):
                yield found[2], dtype, tuple(int(size) for size in shape.split(",") if size)


def _with_logits(text):
    """Results that hold something of the vocabulary for every trained token of a row."""
    trained = {SIZES["M"] * rows for rows in range(1, ROWS + 1)}
    for kind, dtype, shape in _collectives(text):
        others = math.prod(size for size in shape if size > MODEL.model_dim and size not in trained)
        if trained & set(shape) and others > 1:
            yield kind, dtype, shape


def _float_activations(text):
    return [(kind, shape) for kind, dtype, shape in _collectives(text) if SIZES["T"] in shape and dtype == "f32"]


@pytest.mark.parametrize("sizes", [(1, 8, 1), (2, 2, 2), (1, 2, 4)])
def test_no_logits_are_passed_around(sizes):
    text = compiled_step(CONFIG, sizes).as_text()
    assert any(_collectives(text))
    assert not list(_with_logits(text))
    if sizes == (1, 8, 1):  # only the embedding's rows change places
        assert {kind for kind, _ in _float_activations(text)} <= {"all-to-all"}


def test_without_rows_held_in_place_they_are(monkeypatch):
    monkeypatch.setattr(transformer, "split_rows", lambda x_BTD, mesh: x_BTD)
    monkeypatch.setattr(transformer, "split_embedded", lambda x_BTD, mesh: x_BTD)
    text = compiled_step(CONFIG, (1, 8, 1)).as_text()
    assert list(_with_logits(text))
    assert "all-reduce" in {kind for kind, _ in _float_activations(text)}
