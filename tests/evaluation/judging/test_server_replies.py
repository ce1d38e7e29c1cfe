"""Replies of a server as a row of a comparison."""

import dataclasses

import pytest

from empathax.config import EvalOptions
from empathax.data.records import Message
from empathax.errors import ConfigError, DataError
from empathax.evaluation.judging.server_replies import generate_from_server
from tests.evaluation.judging.loopback_server import client, says, serving

PROMPTS = [
    (Message("system", "Listen."), Message("user", "I lost my job.")),
    (Message("user", "Hello."), Message("assistant", "What is on your mind?"), Message("user", "My sister.")),
]
SAMPLED = EvalOptions(max_new_tokens=9, num_samples=2, temperature=0.7, top_p=0.8, stop_tokens=("\n",))


@pytest.fixture(autouse=True)
def _environment(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


def test_the_options_are_sent_and_samples_stand_side_by_side():
    with serving(lambda body, number: says(f"{body['messages'][-1]['content']} {body['seed']}")) as server:
        row = generate_from_server(client(server), PROMPTS, SAMPLED, seed=40)
    assert row.replies == ("I lost my job. 40", "I lost my job. 41", "My sister. 40", "My sister. 41")
    for body in server.bodies:
        sent = {name: body[name] for name in ("temperature", "top_p", "max_tokens", "stop")}
        assert sent == {"temperature": 0.7, "top_p": 0.8, "max_tokens": 9, "stop": ["\n"]}
    roles = {tuple(message["role"] for message in body["messages"]) for body in server.bodies}
    assert roles == {("system", "user"), ("user", "assistant", "user")}


def test_refused_and_empty_replies_are_told_apart_from_answers():
    def answer(body, number):
        is_first = body["messages"][-1]["content"] == "My sister."
        return says(None, refusal="no") if is_first else says("I am here and", "length")

    with serving(answer) as server:
        row = generate_from_server(client(server), PROMPTS, EvalOptions(), seed=0)
    assert row.replies == ("I am here and", "")
    assert row.in_words() == "1 of 2 prompts answered, 1 refused; 1 replies cut off"


def test_settings_that_the_protocol_does_not_know_are_refused_together():
    options = dataclasses.replace(SAMPLED, top_k=40, min_p=0.1, repetition_penalty=1.2)
    with pytest.raises(ConfigError) as caught:
        generate_from_server(client("http://127.0.0.1:1/v1"), PROMPTS, options, seed=0)
    assert all(name in str(caught.value) for name in ("eval.top_k = 40", "eval.min_p", "eval.repetition_penalty"))


def test_a_conversation_that_the_supporter_begins_is_opened():
    system, greeting = Message("system", "Listen."), Message("assistant", "Hello, what brings you here?")
    prompts = [(), (system,), (system, greeting, Message("user", "My sister."))]
    with serving(lambda body, number: says("ok")) as server:
        generate_from_server(client(server, concurrency=1), prompts, EvalOptions(), seed=0, opening_user_turn="Hi.")
    hi = {"role": "user", "content": "Hi."}
    sent = [body["messages"] for body in server.bodies]
    assert sent[0] == [hi]
    assert sent[1] == [{"role": "system", "content": "Listen."}, hi]
    assert [message["content"] for message in sent[2]] == ["Listen.", "Hi.", greeting.content, "My sister."]


@pytest.mark.parametrize(
    ("prompt", "found"), [((), "is empty"), ((Message("assistant", "Hi"),), "ends with an assistant's turn")]
)
def test_prompts_without_anything_to_reply_to(prompt, found):
    with pytest.raises(DataError, match=f"prompt 3 of 3 {found}"):
        generate_from_server(
            client("http://127.0.0.1:1/v1"), [*PROMPTS, prompt], EvalOptions(), 0, opening_user_turn=""
        )
