"""A model in this process as a chat server: each answer depends on its request alone."""

import dataclasses
import json

import pytest

from empathax import build_preferences
from empathax.config import Config, EvalOptions, ModelOptions
from empathax.data.records import Message
from empathax.errors import DataError
from empathax.evaluation.judging.chat_requests import ChatRequest
from empathax.preferences.backends import LocalBackend
from tests.preferences.dialogues import write_corpus

CONFIG = Config(model=ModelOptions(compute_dtype="float32"), eval=EvalOptions(generation_batch=2))


def ask(number: int, **settings) -> ChatRequest:
    values = {"max_tokens": 6, "temperature": 1.0, "seed": 3, **settings}
    return ChatRequest((Message("system", "Be brief."), Message("user", f"question {number}")), **values)


def backend(place) -> LocalBackend:
    return LocalBackend("random:tiny-llama", CONFIG, place)


def texts(outcomes):
    return [outcome.text for outcome in outcomes]


def test_answers_come_from_the_cache_and_a_run_that_was_cut_goes_on_the_same(tmp_path):
    asked = [ask(0), ask(0, seed=4), ask(1), ask(0, sample=1), ask(0)]
    first = backend(tmp_path / "a")
    whole = first.complete(asked)
    assert texts(whole[:1]) == texts(whole[-1:])
    assert len(set(texts(whole))) == 4  # question, seed and sample all matter
    assert (first.tally.num_shared, first.tally.num_cached) == (1, 0)
    assert whole[0].prompt_tokens > whole[0].completion_tokens > 0
    path = tmp_path / "a" / "responses.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    assert len(lines) == 4
    path.write_text(lines[1])  # a run that was killed after this answer
    again = backend(tmp_path / "a")
    assert texts(again.complete(asked)) == texts(whole)
    assert again.tally.num_cached == 1
    third = backend(tmp_path / "a")
    assert texts(third.complete(asked)) == texts(whole)
    assert third._speaker is None  # nothing was loaded
    assert third.time_of(third.key(asked[0])) == again.time_of(again.key(asked[0]))


def test_the_command_writes_with_a_model_in_this_process(tmp_path):
    source = write_corpus(tmp_path / "corpus", (1, 1, 1))
    command = [f"--source={source}", "--candidates=levels", "--splits=train", "--max-contexts=1"]
    command += ["--model=random:tiny-llama", f"--out={tmp_path / 'set'}", "--max-new-tokens=8", "--max-length-ratio=0"]
    assert build_preferences.main(command) == 0
    summary = json.loads((tmp_path / "set" / "summary.json").read_text())
    assert sum(summary["notes"]["replies_asked_for"].values()) == 4
    before = (tmp_path / "set" / "candidates.jsonl").read_bytes()
    assert build_preferences.main(command) == 0
    assert (tmp_path / "set" / "candidates.jsonl").read_bytes() == before


def test_too_long_a_prompt_is_an_error_with_the_remedy(tmp_path):
    with pytest.raises(DataError, match="shorten it"):
        backend(tmp_path).complete([ChatRequest((Message("user", "word " * 50000),), max_tokens=5)])


@pytest.mark.parametrize(
    "changes",
    [
        {"seed": 7},
        {"eval": {"top_k": 1}},
        {"eval": {"min_p": 0.5}},
        {"eval": {"repetition_penalty": 1.5}},
        {"eval": {"stop_tokens": ("?",)}},
        {"model": {"compute_dtype": "bfloat16"}},
    ],
)
def test_answers_of_other_settings_are_kept_apart(tmp_path, changes):
    parts = {
        name: dataclasses.replace(getattr(CONFIG, name), **value) if isinstance(value, dict) else value
        for name, value in changes.items()
    }
    other = LocalBackend("random:tiny-llama", dataclasses.replace(CONFIG, **parts), tmp_path)
    assert other.key(ask(0)) != backend(tmp_path).key(ask(0))
    assert other.identity != backend(tmp_path).identity


def test_the_configs_own_stop_tokens_end_an_answer(tmp_path):
    asked = ask(0, temperature=0.0, max_tokens=20)
    (whole,) = backend(tmp_path / "a").complete([asked])
    assert (whole.text, whole.finish_reason) == (".", "length")  # the rest are special tokens
    config = dataclasses.replace(CONFIG, eval=dataclasses.replace(CONFIG.eval, stop_tokens=(".",)))
    (cut,) = LocalBackend("random:tiny-llama", config, tmp_path / "b").complete([asked])
    assert cut.finish_reason == "stop"
    assert cut.completion_tokens < whole.completion_tokens == 20
