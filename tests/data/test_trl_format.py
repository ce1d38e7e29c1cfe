"""TRL's row formats, and what a row may be wrong about."""

import pytest

from empathax.data.files import BadRow, NoReply
from empathax.data.records import CompletionRow, Dialogue, Message, PreferenceRow
from empathax.data.trl_format import parse_row


def user(content):
    return {"role": "user", "content": content}


def assistant(content):
    return {"role": "assistant", "content": content}


def system(content):
    return {"role": "system", "content": content}


def test_preference_rows_as_text_and_as_messages():
    plain = parse_row({"prompt": "Hi", "chosen": "a", "rejected": "b"}, "f:1")
    assert isinstance(plain, PreferenceRow)
    assert (plain.prompt, plain.chosen, plain.rejected, plain.origin) == ("Hi", "a", "b", "f:1")
    chat = parse_row({"prompt": [user("Hi")], "chosen": [assistant("a")], "rejected": [assistant("b")]}, "f:1")
    assert chat.prompt == (Message("user", "Hi"),)
    assert (chat.chosen, chat.rejected) == ("a", "b")


def test_the_implicit_prompt_is_the_common_beginning():
    head = [system("Be kind"), user("Hi"), assistant("Hello"), user("I am sad")]
    row = parse_row({"chosen": [*head, assistant("a")], "rejected": [*head, assistant("b")]}, "f:1")
    assert [message.content for message in row.prompt] == ["Be kind", "Hi", "Hello", "I am sad"]
    assert (row.chosen, row.rejected) == ("a", "b")
    text = parse_row({"chosen": "Human: Hi Bot: yes", "rejected": "Human: Hi Bot: no"}, "f:1")
    assert (text.prompt, text.chosen, text.rejected) == ("Human: Hi Bot:", " yes", " no")


def test_completion_rows():
    row = parse_row({"prompt": "Hi", "completion": "Hello"}, "f:1")
    assert isinstance(row, CompletionRow)
    assert (row.prompt, row.completion) == ("Hi", "Hello")
    several = parse_row({"prompt": [user("a")], "completion": [assistant("b"), user("c"), assistant("d")]}, "f:1")
    assert isinstance(several, Dialogue)
    assert several.first_trained == 1


def test_messages_rows_with_a_system_column():
    row = parse_row({"system": "Be kind", "messages": [user("Hi"), assistant("Hello"), user("bye")], "id": 7}, "f:1")
    assert isinstance(row, Dialogue)
    assert row.messages[0] == Message("system", "Be kind")
    assert row.dialogue_id == "7"


def test_rows_of_one_prompt_belong_together():
    rows = [parse_row({"prompt": "Hi", "chosen": "a", "rejected": r}, "f:1") for r in "bc"]
    other = parse_row({"prompt": "Ho", "chosen": "a", "rejected": "b"}, "f:1")
    assert rows[0].dialogue_id == rows[1].dialogue_id != other.dialogue_id
    named = parse_row({"prompt": "Hi", "chosen": "a", "rejected": "b", "dialogue_id": "d1"}, "f:1")
    assert named.dialogue_id == "d1"


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ([1], "the row is a list"),
        ("text", "the row is text"),
        ({}, r"found the keys \(none\)"),
        ({"question": "a", "answer": "b"}, "found the keys question, answer; expected"),
        ({"prompt": "a"}, "found the keys prompt"),
        ({"prompt": "a", "chosen": "b"}, "rejected is missing"),
        ({"prompt": "a", "chosen": 3, "rejected": "b"}, "chosen is a number, expected text or a list"),
        ({"prompt": None, "chosen": "a", "rejected": "b"}, "prompt is null"),
        ({"prompt": "a", "chosen": "b", "rejected": [assistant("c")]}, "both be text or both"),
        ({"messages": "a"}, "messages is text"),
        ({"messages": [{"from": "human", "value": "a"}]}, r"messages\[0\]: found the keys from, value"),
        ({"messages": [user("a"), {"role": "gpt", "content": "b"}]}, r"messages\[1\]: unknown role 'gpt'.*assistant"),
        ({"messages": [user("a"), {"role": "assistant", "content": None}]}, r"messages\[1\].content is null"),
        ({"messages": [user("a"), user("b"), assistant("c")]}, "two user messages in a row"),
        ({"messages": [user("a"), system("b"), assistant("c")]}, "system message may only be the first"),
        ({"messages": [user("a"), assistant("\ud800")]}, "surrogate"),
        ({"prompt": [user("a"), assistant("b")], "completion": "c"}, "prompt ends with an assistant message"),
        ({"prompt": [user("a")], "chosen": [user("b")], "rejected": [assistant("c")]}, "chosen is a user message"),
        ({"chosen": [user("a"), assistant("b")], "rejected": [user("x"), assistant("c")]}, "no common beginning"),
        (
            {
                "chosen": [user("a"), assistant("b"), user("c"), assistant("d")],
                "rejected": [user("a"), assistant("x"), user("c"), assistant("d")],
            },
            "chosen has 3 messages after the common prompt",
        ),
        ({"system": "a", "messages": [system("b"), user("c"), assistant("d")]}, "system column and a system message"),
    ],
)
def test_what_is_wrong_with_a_row(value, reason):
    with pytest.raises(BadRow, match=reason):
        parse_row(value, "f:1")


def test_a_dialogue_without_a_reply_is_well_formed_but_useless():
    with pytest.raises(NoReply):
        parse_row({"messages": [user("a")]}, "f:1")
