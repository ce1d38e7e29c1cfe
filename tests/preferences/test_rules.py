"""Each rule keeps what it promises, on dialogues in ESConv's form."""

import dataclasses
from collections import Counter

import pytest

from empathax.config import DataOptions
from empathax.data.records import CompletionRow, Dialogue, Message
from empathax.data.support_corpora import ADVICE
from empathax.preferences.overlap import num_words
from empathax.preferences.rules import distance, farthest, rule_pairs
from empathax.preferences.source import Source, contexts_of, read_source
from tests.preferences.dialogues import write_corpus


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    directory = write_corpus(tmp_path_factory.mktemp("corpus"))
    contexts = read_source(DataOptions(path=str(directory)), ["train"]).contexts["train"]
    failed = read_source(DataOptions(path=str(directory / "failed_esconv.json"), eval_fraction=0.0), ["train"])
    return {context.context_id: context for context in contexts}, failed.contexts["train"]


def made(corpus, name, seed=0):
    contexts, failed = corpus
    return rule_pairs(name, list(contexts.values()), failed, seed)


def test_contexts_are_the_supporters_turns_with_what_was_said_before(corpus):
    contexts, _ = corpus
    assert len(contexts) == 30 * 8
    for context in contexts.values():
        assert len(context.prompt) == 2 * context.turn + 1
        assert context.prompt[-1].content == context.seeker
        assert context.quartile == context.turn * 4 // 8


def test_premature_advice_is_late_advice_on_the_same_problem_against_an_early_reply_that_is_none(corpus):
    contexts, _ = corpus
    pairs = made(corpus, "premature_advice")
    assert len(pairs) > 60
    for pair in pairs:
        other = contexts[pair.rejected.source["context_id"]]
        assert pair.context.quartile < 2 <= other.quartile
        assert not ADVICE & set(pair.context.strategies)
        assert set(other.strategies) <= ADVICE
        assert pair.rejected.text == other.reply != pair.chosen.text == pair.context.reply
        assert other.kinds["problem_type"] == pair.context.kinds["problem_type"]


def test_failed_supporter_draws_from_failed_dialogues_alone_at_the_same_place(corpus):
    _, failed = corpus
    known = {context.context_id: context for context in failed}
    pairs = made(corpus, "failed_supporter")
    assert len(pairs) == 240
    for pair in pairs:
        other = known[pair.rejected.source["context_id"]]
        assert other.reply == pair.rejected.text
        assert other.quartile == pair.context.quartile


def test_opposite_emotion_is_the_farthest_one_on_the_wheel(corpus):
    contexts, _ = corpus
    for pair in made(corpus, "opposite_emotion"):
        own, other = (c.kinds["emotion_type"] for c in (pair.context, contexts[pair.rejected.source["context_id"]]))
        assert {own: other}.items() <= {"anger": "fear", "fear": "anger"}.items() or own == "sadness"
        assert pair.rejected.source["steps"] == distance(own, other) >= 2


def test_position_has_every_reply_as_often_chosen_as_rejected(corpus):
    contexts, _ = corpus
    pairs = made(corpus, "position")
    assert len(pairs) > 100
    assert Counter(pair.chosen.text for pair in pairs) == Counter(pair.rejected.text for pair in pairs)
    for pair in pairs:
        other = contexts[pair.rejected.source["context_id"]]
        assert abs(other.quartile - pair.context.quartile) == 2
        assert other.dialogue_id != pair.context.dialogue_id


@pytest.mark.parametrize("name", ["premature_advice", "failed_supporter", "opposite_emotion", "position"])
def test_lengths_are_near_and_the_seed_decides_the_draw(corpus, name):
    pairs = made(corpus, name)
    ids = [pair.pair_id for pair in pairs]
    assert ids == [pair.pair_id for pair in made(corpus, name)]
    assert ids != [pair.pair_id for pair in made(corpus, name, seed=1)]
    assert len(set(ids)) == len(ids)
    for pair in pairs:
        low, high = sorted(num_words(text) for text in (pair.chosen.text, pair.rejected.text))
        assert high <= 1.5 * low
        assert pair.rejected.source["context_id"].split("/")[0] != pair.context.dialogue_id


def test_the_wheel():
    assert distance("anger", "Fear") == 4
    assert distance("joyful", "sad") == 4
    assert distance("anger", "hunger") is None
    assert farthest("sadness", {"anger", "fear", "shame"}) == {"anger", "fear"}
    assert farthest("sadness", {"shame", "depression"}) == set()


def _prompts(*texts):
    prompts = [(Message("user", "Hello."), Message("assistant", "Hi!"), Message("user", text)) for text in texts]
    return [CompletionRow(prompt, "I hear you.", "one name", f"f:{n}") for n, prompt in enumerate(prompts)]


def test_rows_that_begin_alike_are_contexts_of_their_own_and_equal_ones_are_one():
    found = list(contexts_of(_prompts("I am tired.", "I am sad.", "I am tired.")))
    assert [context.seeker for context in found] == ["I am tired.", "I am sad."]
    assert len({context.context_id for context in found}) == 2
    assert {context.dialogue_id for context in found} == {"one name"}


def test_dialogues_of_one_name_are_contexts_of_their_own():
    turns = [(Message("user", text), Message("assistant", "I hear you.")) for text in ("a", "b", "a")]
    found = list(contexts_of([Dialogue(messages, "one name", f"f:{n}") for n, messages in enumerate(turns)]))
    assert [context.seeker for context in found] == ["a", "b"]
    assert found[0].context_id == "one name/0" != found[1].context_id


def test_a_digest_changes_with_what_rules_go_by(corpus):
    contexts = list(corpus[0].values())
    other = [dataclasses.replace(contexts[0], kinds={"emotion_type": "joy"}), *contexts[1:]]
    source, same, changed = (Source("", {}, "", {"train": part}, {}) for part in (contexts, list(contexts), other))
    assert source.digest() == same.digest() != changed.digest()
    assert source.digest() != source.digest(("train", other))
