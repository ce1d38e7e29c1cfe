"""TRL's row formats, and what a row may be wrong about."""

import json

import pytest

from empathax.data.files import BadRow, NoReply
from empathax.data.records import CompletionRow, Dialogue, Message, PreferenceRow
from empathax.data.trl_format import parse_row, unread_columns


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
        ({"title": "a", "body": "b"}, "found the keys title, body; expected"),
        ({"prompt": "a"}, "found the keys prompt"),
        ({"prompt": "a", "chosen": "b"}, "rejected is missing"),
        ({"prompt": "a", "chosen": 3, "rejected": "b"}, "chosen is a number, expected text or a list"),
        ({"prompt": None, "chosen": "a", "rejected": "b"}, "prompt is null"),
        ({"prompt": "a", "chosen": "b", "rejected": [assistant("c")]}, "both be text or both"),
        ({"messages": "a"}, "messages is text"),
        ({"messages": [{"speaker": "x", "value": "a"}]}, r"messages\[0\]: found the keys speaker, value"),
        ({"messages": [user("a"), {"role": "y", "content": "b"}]}, r"messages\[1\]: unknown role 'y'.*assistant"),
        ({"messages": [user("a"), {"role": "assistant", "content": None}]}, r"messages\[1\].content is null"),
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


LONELY, CITY = "I feel so alone since I moved to this city.", "That sounds really hard."


@pytest.mark.parametrize(
    "extra",
    [{"prompt": LONELY}, {}, {"prompt": [user(LONELY)]}, {"instruction": "something else"}],
    ids=["prompt as text", "no prompt", "prompt as messages", "another column"],
)
def test_whole_conversations_in_chosen_and_rejected(extra):
    """As UltraFeedback has them: the prompt is what both begin with."""
    value = {"chosen": [user(LONELY), assistant(CITY)], "rejected": [user(LONELY), assistant("Don't worry.")], **extra}
    row = parse_row(value, "f:1")
    assert (row.prompt, row.chosen, row.rejected) == ((Message("user", LONELY),), CITY, "Don't worry.")


def test_a_prompt_in_text_before_replies_as_messages_stays():
    row = parse_row({"prompt": LONELY, "chosen": [assistant("a")], "rejected": [assistant("b")]}, "f:1")
    assert (row.prompt, row.chosen, row.rejected) == (LONELY, "a", "b")


@pytest.mark.parametrize(
    ("columns", "prompt"),
    [
        ({"question": LONELY}, LONELY),
        ({"instruction": LONELY}, LONELY),
        ({"instruction": LONELY, "input": ""}, LONELY),
        ({"instruction": "Answer this", "input": LONELY}, f"Answer this\n{LONELY}"),
        ({"input": LONELY}, LONELY),
        ({"query": LONELY}, LONELY),
        ({"prompt": LONELY, "question": "other"}, LONELY),
    ],
)
def test_the_prompt_under_its_other_names(columns, prompt):
    pair = parse_row({**columns, "chosen": "I'm sorry to hear that.", "rejected": "I'm busy."}, "f:1")
    assert (pair.prompt, pair.chosen, pair.rejected) == (prompt, "I'm sorry to hear that.", "I'm busy.")
    for name in ("completion", "answer", "output", "response"):
        row = parse_row({**columns, name: CITY}, "f:1")
        assert (row.prompt, row.completion) == (prompt, CITY)


def test_two_columns_that_may_be_the_prompt():
    with pytest.raises(BadRow, match="the prompt may be question or instruction: name one of the columns prompt"):
        parse_row({"question": "a", "instruction": "b", "chosen": "c", "rejected": "d"}, "f:1")


@pytest.mark.parametrize("told", [{"weight": 0}, {"train": False}, {"loss": False}])
def test_turns_that_are_context_only(told):
    turns = [user(LONELY), {**assistant("Don't worry."), **told}, user("hm"), assistant(CITY)]
    row = parse_row({"messages": turns}, "f:1")
    assert [row.is_trained(n) for n in range(4)] == [False, False, False, True]
    row = parse_row({"messages": turns, "system": "Be kind"}, "f:1")
    assert [row.is_trained(n) for n in range(5)] == [False, False, False, False, True]
    row = parse_row({"prompt": turns[:1], "completion": turns[1:]}, "f:1")
    assert [row.is_trained(n) for n in range(4)] == [False, False, False, True]
    with pytest.raises(NoReply):
        parse_row({"messages": turns[:2]}, "f:1")
    with pytest.raises(NoReply):
        parse_row({"prompt": turns[:1], "completion": turns[1:2]}, "f:1")
    with pytest.raises(BadRow, match="chosen ends with a reply that is context only"):
        parse_row({"chosen": turns[:2], "rejected": [turns[0], assistant(CITY)]}, "f:1")


TOOLS = [{"type": "function", "function": {"name": "w"}}]


@pytest.mark.parametrize(
    ("columns", "variables"),
    [
        ({"tools": TOOLS}, {"tools": TOOLS}),
        ({"tools": json.dumps(TOOLS)}, {"tools": TOOLS}),
        ({"tools": []}, {}),
        ({"tools": None, "chat_template_kwargs": None}, {}),
        ({"chat_template_kwargs": {"enable_thinking": True, "depth": None}}, {"enable_thinking": True}),
        (
            {"chat_template_kwargs": '{"enable_thinking": true}', "tools": TOOLS},
            {"enable_thinking": True, "tools": TOOLS},
        ),
    ],
)
@pytest.mark.parametrize(
    "row",
    [
        {"messages": [user("a"), assistant("b")]},
        {"prompt": "a", "completion": "b"},
        {"prompt": [user("a")], "completion": [assistant("b"), user("c"), assistant("d")]},
        {"prompt": "a", "chosen": "b", "rejected": "c"},
    ],
    ids=["messages", "completion", "several turns", "pair"],
)
def test_what_a_row_says_to_the_template(row, columns, variables):
    assert parse_row({**row, **columns}, "f:1").template_variables == variables


@pytest.mark.parametrize(
    ("columns", "reason"),
    [
        ({"images": ["a.png"]}, "images: the model reads text alone"),
        ({"video": "a.mp4"}, "video: the model reads text alone"),
        ({"tools": "a tool"}, "tools is text, but not JSON"),
        ({"tools": ["w"]}, "tools is a list, expected a list of objects"),
        ({"chat_template_kwargs": [1]}, "chat_template_kwargs is a list, expected an object"),
    ],
)
def test_columns_that_cannot_be_honoured(columns, reason):
    with pytest.raises(BadRow, match=reason):
        parse_row({"messages": [user("a"), assistant("b")], **columns}, "f:1")


@pytest.mark.parametrize(
    ("value", "unread"),
    [
        ({"prompt": "a", "chosen": "b", "rejected": "c", "score": 1, "messages": []}, {"score", "messages"}),
        ({"messages": [user("a"), assistant("b")], "id": 1, "source": "x", "empty": None, "label": "joy"},
         {"source", "label"}),
        ({"prompt": "a", "completion": "b", "label": "yes", "id": 3}, {"id"}),
        ({"question": "a", "answer": "b", "tools": TOOLS, "system": "c"}, set()),
    ],
)  # fmt: skip
def test_the_columns_that_nothing_was_made_of(value, unread):
    assert unread_columns(value, parse_row(value, "f:1")) == unread


@pytest.mark.parametrize(
    ("value", "label"),
    [
        *((value, True) for value in (True, 1, 1.0, "true", "True", "yes", "1", "good")),
        *((value, False) for value in (False, 0, 0.0, -1, -1.0, "false", "No", "-1", "bad")),
        *((value, None) for value in (None, "", 2, 0.5, "joy", [1])),
    ],
)
def test_the_words_of_labels(value, label):
    assert parse_row({"prompt": "a", "completion": "b", "label": value}, "f:1").label is label
    assert parse_row({"messages": [user("a"), assistant("b")], "label": value}, "f:1").label is label


def test_sharegpt_rows():
    row = parse_row({"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}, "f:1")
    assert row.messages == (Message("user", "a"), Message("assistant", "b"))


@pytest.mark.parametrize(
    "row",
    [
        {"questionID": 1, "questionTitle": "t", "questionText": LONELY, "answerText": CITY, "upvotes": 3},
        {"Context": LONELY, "Response": CITY},
        {"instruction": LONELY, "input": "", "output": CITY, "text": "both"},
    ],
    ids=["CounselChat", "counselling conversations", "Alpaca"],
)
def test_questions_and_answers_as_published(row):
    found = parse_row(row, "f:1")
    assert (found.prompt, found.completion) == (LONELY, CITY)
