"""Replies to many prompts: the prompts' order, batches of any size, limits."""

import dataclasses

import pytest

from empathax.config import Config, EvalOptions
from empathax.data.chat import ChatTemplate
from empathax.data.records import Message
from empathax.errors import ConfigError, DataError
from empathax.evaluation.generation import replies
from empathax.evaluation.generation.replies import check_room, generate_ids, generate_replies
from empathax.models.weights.source import resolve_model


@pytest.fixture(scope="module")
def model():
    source = resolve_model("random:tiny-llama")
    return source.load_params(), source.config, ChatTemplate(source.tokenizer(), "auto", source.config.family)


@pytest.fixture(scope="module")
def prompts(model):
    turns = ["Hi", "I lost my job", "I feel alone", "Hi there", "My cat died yesterday"]
    return [model[2].encode_prompt([Message("user", turn)]).tolist() for turn in turns]


def settings(batch=2, **options):
    return Config(seed=3, eval=EvalOptions(generation_batch=batch, max_new_tokens=6, **options))


EVERYTHING = {"temperature": 1.0, "top_k": 50, "top_p": 0.95, "min_p": 0.01, "repetition_penalty": 1.2}


@pytest.mark.parametrize("options", [{}, EVERYTHING | {"num_samples": 3}])
def test_batch_size_changes_nothing(model, prompts, options):
    params, config, _ = model
    by_batch = [dict(generate_ids(params, config, (), prompts, settings(batch, **options))) for batch in (1, 3, 8)]
    assert by_batch[0] == by_batch[1] == by_batch[2]
    assert sorted(by_batch[0]) == list(range(len(prompts) * options.get("num_samples", 1)))
    assert all(len(ids) == 6 for ids in by_batch[0].values())


def test_samples_stand_together_and_do_not_depend_on_their_number(model, prompts):
    options = {"temperature": 1.0, "min_p": 0.01}
    three = generate_replies(*model, prompts, settings(4, num_samples=3, **options))
    assert all(len(set(three[start : start + 3])) == 3 for start in range(0, 15, 3))
    assert three[::3] == generate_replies(*model, prompts, settings(4, **options))
    two = generate_replies(*model, prompts[:2], settings(1, num_samples=2, **options))
    assert two == [*three[:2], *three[3:5]]


def test_settings_that_cannot_work_are_refused(model, prompts):
    with pytest.raises(ConfigError, match="min_p = 2"):
        generate_replies(*model, prompts, settings(min_p=2.0))
    with pytest.raises(ConfigError, match="'two words' is"):
        generate_replies(*model, prompts, settings(stop_tokens=("two words",)))


def test_stop_tokens_of_the_settings_end_a_reply(model, prompts):
    params, config, template = model
    free = dict(generate_ids(params, config, template.stop_token_ids, prompts, settings()))
    named = {token: row for row, ids in free.items() for token in ids[2:] if template.tokenizer.id_to_token(token)}
    stop, row = next(iter(named.items()))
    replies = generate_replies(*model, prompts, settings(stop_tokens=(template.tokenizer.id_to_token(stop),)))
    cut = free[row][: free[row].index(stop)]
    assert replies[row] == template.tokenizer.decode(cut, skip_special_tokens=True).strip()
    assert len(cut) < len(free[row])


def test_replies_follow_the_prompts_order(model, prompts):
    forward = generate_replies(*model, prompts, settings())
    assert generate_replies(*model, prompts[::-1], settings()) == forward[::-1]


def test_stop_tokens_end_a_reply_and_are_no_part_of_it(model, prompts):
    params, config, _ = model
    free = dict(generate_ids(params, config, (), prompts, settings()))
    stop = free[1][2]
    stopped = dict(generate_ids(params, config, (stop,), prompts, settings()))
    for row, ids in free.items():
        assert stopped[row] == (ids[: ids.index(stop)] if stop in ids else ids)


def test_progress_is_told(model, prompts):
    done = []
    generate_replies(*model, prompts, settings(), on_progress=done.append)
    assert done == [2, 4, 5]
    done.clear()
    generate_replies(*model, prompts, settings(4, num_samples=2, temperature=1.0), on_progress=done.append)
    assert done == [4, 8, 10]


def test_no_prompts_give_no_replies(model):
    assert generate_replies(*model, [], settings()) == []


def test_prompts_without_room_are_refused(model):
    config = dataclasses.replace(model[1], max_positions=10)
    check_room([[1] * 4], config, 6)
    with pytest.raises(DataError, match="prompt 2 of 2 has 5 tokens; with 6 new ones it passes the model's 10"):
        check_room([[1], [1] * 5], config, 6)
    with pytest.raises(DataError, match="prompt 1 of 1 is empty"):
        check_room([[]], config, 6)


@pytest.mark.parametrize("changes", [{"num_samples": 10**9}, {"num_samples": 10**8, "max_new_tokens": 4000}])
def test_replies_that_no_machine_holds_are_refused(model, prompts, changes, monkeypatch):
    monkeypatch.setattr(replies, "machine_memory", lambda: 24 << 30)
    config = settings(temperature=1.0)
    config = dataclasses.replace(config, eval=dataclasses.replace(config.eval, **changes))
    with pytest.raises(ConfigError, match=rf"num_samples = {changes['num_samples']:,}\), .* this machine has 24.0 GiB"):
        generate_replies(*model, prompts, config)
