"""Messages as published: other names, text in parts, turns that are context only, and what is refused."""

import pytest

from empathax.data.files import BadRow
from empathax.data.messages import read_messages
from empathax.data.records import Message

USER = {"role": "user", "content": "Hi"}


def test_sharegpt_and_text_in_parts():
    turns = read_messages(
        [
            {"from": "system", "value": "Be kind"},
            {"from": "human", "value": "Hi"},
            {"from": "gpt", "value": "Hello"},
            {"role": "user", "content": [{"type": "text", "text": "a"}, {"text": "b"}]},
        ],
        "messages",
    )
    assert turns.messages == (
        Message("system", "Be kind"),
        Message("user", "Hi"),
        Message("assistant", "Hello"),
        Message("user", "ab"),
    )
    assert not turns.untrained


@pytest.mark.parametrize("key", ["weight", "train", "loss"])
@pytest.mark.parametrize(
    ("value", "is_trained"),
    [(0, False), (False, False), (0.0, False), (1, True), (True, True), (1.0, True), (None, True)],
)
def test_a_turn_may_say_that_it_is_context_only(key, value, is_trained):
    turns = read_messages([USER, {"role": "assistant", "content": "x", key: value}], "messages")
    assert turns.untrained == (frozenset() if is_trained else {1})


def test_calls_of_tools_and_their_answers():
    call = {"type": "function", "function": {"name": "w", "arguments": {"city": "Bonn"}}}
    turns = read_messages(
        [
            USER,
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "name": "w", "content": "It is sunny"},
            {"role": "assistant", "content": "Sunny!", "tool_calls": None},
        ],
        "messages",
    )
    assert [message.role for message in turns.messages] == ["user", "assistant", "tool", "assistant"]
    assert [message.extra for message in turns.messages] == [{}, {"tool_calls": [call]}, {"name": "w"}, {}]
    assert turns.messages[1].content == ""
    assert turns.untrained == {1}


@pytest.mark.parametrize("value", [0.5, 2, -1, "0", "yes", [0]])
def test_other_weights_are_refused(value):
    with pytest.raises(BadRow, match=r"messages\[0\].weight is .*expected 1 or true, or 0 or false"):
        read_messages([{"role": "assistant", "content": "x", "weight": value}], "messages")


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        ({"role": "user", "content": [{"type": "image", "url": "a.png"}]}, r"content\[0\] is 'image'.*text alone"),
        ({"role": "user", "content": "<image>", "images": ["a.png"]}, r"messages\[0\].images.*text alone"),
        ({"role": "user", "content": [3]}, "text alone"),
        ({"from": "moderator", "value": "x"}, "unknown role 'moderator'"),
        ({"role": ["user"], "content": "x"}, "unknown role"),
    ],
)
def test_what_cannot_be_read_is_refused_by_name(message, reason):
    with pytest.raises(BadRow, match=reason):
        read_messages([message], "messages")
