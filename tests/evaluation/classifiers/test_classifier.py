"""The classifier: what it learns, what it reads, its scores by hand, its files; on a tiny encoder of random weights."""

import dataclasses
import json

import numpy as np
import pytest
import safetensors.numpy
from tokenizers import Tokenizer as Backend
from tokenizers import models, pre_tokenizers

from empathax.errors import ConfigError, WeightsError
from empathax.evaluation.classifiers.classifier import (
    NO_LABEL,
    Head,
    LabeledText,
    classify,
    load_classifier,
    new_classifier,
    save_classifier,
)
from empathax.evaluation.classifiers.task import score_table
from empathax.evaluation.classifiers.training import (
    TrainingOptions,
    adjusted_loss,
    class_shares,
    epoch_batches,
    evaluate_classifier,
    head_scores,
    train_classifier,
)
from empathax.models.encoder.files import encoder_config, encoder_tensors
from empathax.models.encoder.text import EncoderRow
from empathax.models.tokenizers.tokenizer import SpecialNames, Tokenizer
from tests.models.encoder.random_encoder import init_encoder

WORDS = ["why", "what", "sounds", "like", "feel", "you", "should", "try", "it", "is", "hard", "walk", "the", "a"]
VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
SETTINGS = {
    "model_type": "bert",
    "vocab_size": len(VOCABULARY),
    "num_hidden_layers": 2,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_attention_heads": 2,
    "max_position_embeddings": 24,
    "type_vocab_size": 2,
    "initializer_range": 0.3,
}
HEADS = (Head("kind", ("asks", "advises")), Head("hard", ("no", "yes")))


@pytest.fixture(scope="module")
def encoder_dir(tmp_path_factory):
    directory = tmp_path_factory.mktemp("encoder")
    config = encoder_config(SETTINGS)
    backend = Backend(models.WordLevel({word: number for number, word in enumerate(VOCABULARY)}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.add_special_tokens(VOCABULARY[:5])
    Tokenizer(backend, SpecialNames(pad="[PAD]", unk="[UNK]")).save(directory)
    safetensors.numpy.save_file(encoder_tensors(init_encoder(config, 0), config), directory / "model.safetensors")
    (directory / "config.json").write_text(json.dumps(SETTINGS))
    return directory


@pytest.fixture(scope="module")
def examples():
    """Questions begin with why or what, advice with you; "hard" is in the text or not, and sometimes not labelled."""
    rng, made = np.random.default_rng(0), []
    for number in range(400):
        words = list(rng.choice(["sounds", "like", "feel", "it", "is", "the", "a"], rng.integers(1, 6)))
        kind, hard = int(rng.random() < 0.3), int(rng.random() < 0.5)
        words = [*(["you", "should", "try"] if kind else [rng.choice(["why", "what"])]), *words, *["hard"] * hard]
        made.append(LabeledText(" ".join(words), "walk the walk", (kind, hard if number % 3 else NO_LABEL)))
    return made


@pytest.fixture(scope="module")
def trained(encoder_dir, examples):
    classifier = new_classifier(str(encoder_dir), HEADS, max_text_tokens=12, max_context_tokens=4)
    options = TrainingOptions(
        epochs=10, batch_size=16, encoder_lr=1e-2, head_lr=1e-2, word_dropout=0.0, frozen_layers=1
    )
    return train_classifier(classifier, examples[:300], examples[300:], options, report=lambda text: None)


def test_it_learns_what_can_be_learned(trained, examples, encoder_dir):
    untrained = new_classifier(str(encoder_dir), HEADS, max_text_tokens=12, max_context_tokens=4)
    before = evaluate_classifier(untrained, examples[300:])
    assert before["kind"].macro_f1 < 0.9
    assert trained.scores["kind"].macro_f1 > 0.97
    assert trained.scores["hard"].macro_f1 > 0.97
    assert trained.scores["hard"].num_examples == sum(e.labels[1] != NO_LABEL for e in examples[300:])
    assert max(trained.epochs) == pytest.approx(np.mean([s.macro_f1 for s in trained.scores.values()]))


def test_embeddings_and_frozen_layers_stay(trained, encoder_dir):
    before = new_classifier(str(encoder_dir), HEADS).params["encoder"]
    after = trained.classifier.params["encoder"]
    np.testing.assert_array_equal(before["embedding"]["word"]["kernel"], after["embedding"]["word"]["kernel"])
    first, second = np.abs(before["layers"]["mlp"]["up"]["kernel"] - after["layers"]["mlp"]["up"]["kernel"])
    assert first.max() == 0.0
    assert second.max() > 1e-3


def test_order_and_batches_change_no_logit(trained, examples):
    texts, contexts = [e.text for e in examples[:21]], [e.context for e in examples[:21]]
    whole = classify(trained.classifier, texts, contexts, batch_size=32)
    parts = classify(trained.classifier, texts[::-1], contexts[::-1], batch_size=4)
    for name, logits in whole.items():
        np.testing.assert_allclose(logits, parts[name][::-1], atol=1e-4)


def test_the_context_is_read_or_not(trained):
    other = dataclasses.replace(trained.classifier.config, max_context_tokens=0)
    blind = dataclasses.replace(trained.classifier, config=other)
    for classifier, same in ((trained.classifier, False), (blind, True)):
        first, second = classify(classifier, ["why it is"] * 2, ["the walk", "you feel hard"])["kind"]
        assert np.allclose(first, second, atol=1e-6) == same


def test_files_round_trip(trained, examples, tmp_path):
    save_classifier(trained.classifier, tmp_path / "out", "# card\n", {"task": "test"})
    again = load_classifier(tmp_path / "out")
    assert again.config == trained.classifier.config
    texts, contexts = [e.text for e in examples[:9]], [e.context for e in examples[:9]]
    for name, logits in classify(trained.classifier, texts, contexts).items():
        np.testing.assert_allclose(logits, classify(again, texts, contexts)[name], atol=1e-6)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]
    assert all(path.stat().st_mode & 0o044 == 0o044 for path in (tmp_path / "out").iterdir())
    with pytest.raises(ConfigError, match="not empty"):
        save_classifier(trained.classifier, tmp_path / "out", "", {})
    settings = json.loads((tmp_path / "out" / "classifier.json").read_text())
    settings["heads"]["kind"].append("listens")
    (tmp_path / "out" / "classifier.json").write_text(json.dumps(settings))
    with pytest.raises(WeightsError, match=r"head.kind.output.kernel: found \[16, 2\], expected \[16, 3\]"):
        load_classifier(tmp_path / "out")
    (tmp_path / "out" / "classifier.json").unlink()
    with pytest.raises(WeightsError, match="train_classifier"):
        load_classifier(tmp_path / "out")


def test_scores_by_hand():
    scores = head_scores(np.array([0, 0, 0, 1, 1, 2]), np.array([0, 0, 1, 1, 0, 0]), ("a", "b", "c"))
    assert scores.confusion_CC.tolist() == [[2, 1, 0], [1, 1, 0], [1, 0, 0]]
    assert scores.accuracy == pytest.approx(3 / 6)
    assert scores.f1.tolist() == [pytest.approx(4 / 7), pytest.approx(2 / 4), 0.0]  # a: precision 2/4, recall 2/3
    assert scores.macro_f1 == pytest.approx((4 / 7 + 1 / 2) / 3)
    assert "| test | x | 6 | 0.500 | 0.357 | a 0.571, b 0.500, c 0.000 |" in score_table({"test": {"x": scores}})


def test_loss_by_hand():
    logits, shares = np.array([[1.0, 0.0], [0.0, 2.0], [5.0, 5.0]], np.float32), np.array([0.8, 0.2])
    labels = np.array([0, 1, NO_LABEL])
    options = TrainingOptions(tau=1.0, label_smoothing=0.0)
    adjusted = logits[:2] + np.log(shares)
    expected = np.mean([np.log(np.exp(row).sum()) - row[label] for row, label in zip(adjusted, [0, 1], strict=True)])
    assert float(adjusted_loss(logits, labels, shares, options)) == pytest.approx(expected, rel=1e-5)
    shares = class_shares(np.array([[0, 1], [0, NO_LABEL], [1, 1], [0, 0]]), HEADS)
    np.testing.assert_allclose(shares["kind"], [3 / 4, 1 / 4])
    np.testing.assert_allclose(shares["hard"], [1 / 3, 2 / 3])


def test_batches_of_an_epoch_are_full_and_hold_no_row_twice():
    rows = [EncoderRow([0] * (1 + number % 9), 1) for number in range(103)]
    batches = epoch_batches(rows, 10, (0, 0))
    seen = np.concatenate(batches)
    assert {len(batch) for batch in batches} == {10}
    assert len(set(seen.tolist())) == len(seen) == 100
    assert not np.array_equal(seen, np.concatenate(epoch_batches(rows, 10, (0, 1))))
