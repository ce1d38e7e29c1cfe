"""Truncation: prompts keep their end and their head, replies are never cut, and what is dropped says why."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from empathax.config import DataOptions
from empathax.data.chat import ChatTemplate
from empathax.data.examples import ReplyEncoder, Unusable
from empathax.data.records import Message
from empathax.data.templates import SYSTEM_PROMPTS, TEMPLATES

OPTIONS = DataOptions(system_prompt="Be kind.", max_length=120)
HEAD = "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\n"


@pytest.fixture(scope="module")
def template(chatml):
    return ChatTemplate(chatml)


def dialogue(num_turns):
    return tuple(Message(("user", "assistant")[n % 2], f"turn {n} it sounds hard") for n in range(num_turns))


def encoder(template, **changes):
    truncate = changes.pop("truncate", True)
    return ReplyEncoder(template, dataclasses.replace(OPTIONS, **changes), truncate)


def test_short_examples_are_left_alone(template):
    encoded = encoder(template).encode(dialogue(1), ["ok"])
    assert not encoded.truncated
    assert encoded.prompt == (Message("system", "Be kind."), *dialogue(1))


def test_a_rows_own_system_text_is_kept(template):
    own = (Message("system", "Mine"), *dialogue(1))
    assert encoder(template).prepared(own) == own
    assert encoder(template, system_prompt="none").prepared(dialogue(1)) == dialogue(1)
    assert encoder(template, system_prompt="dbt").prepared("Hi")[0].content == SYSTEM_PROMPTS["dbt"]


@settings(max_examples=30, deadline=None)
@given(
    half=st.integers(3, 20), max_length=st.integers(70, 200), replies=st.lists(st.text("ab ", min_size=1, max_size=20))
)
def test_whole_old_turns_go_and_the_rest_stays(template, half, max_length, replies):
    replies = [f"I hear you {reply}" for reply in replies] or ["ok"]
    messages = dialogue(2 * half - 1)
    encoded = encoder(template, max_length=max_length).encode(messages, replies)
    decode = template.tokenizer.decode
    for reply, ids in zip(replies, encoded.replies, strict=True):
        assert ids.num_tokens <= max_length
        assert decode(ids.reply_ids) == reply + "<|im_end|>"
        assert decode(ids.prompt_ids).startswith(HEAD)
        assert decode(ids.prompt_ids).endswith(f"{messages[-1].content}<|im_end|>\n<|im_start|>assistant\n")
        np.testing.assert_array_equal(ids.prompt_ids, encoded.replies[0].prompt_ids)
    kept = encoded.prompt[1:]
    assert kept == messages[len(messages) - len(kept) :]
    assert kept[0].role == "user"


def test_late_replies_of_a_long_dialogue_share_their_beginning(template):
    """Cutting in steps: a new beginning every few turns, not with every turn."""
    encode = encoder(template, max_length=400).encode
    beginnings = [encode(dialogue(n), ["ok"]).prompt[1].content for n in range(9, 121, 2)]
    assert len(set(beginnings)) <= len(beginnings) / 3


def test_the_beginning_of_a_single_long_turn_is_cut(template):
    message = Message("user", " ".join(f"word{n}" for n in range(200)))
    encoded = encoder(template).encode((message,), ["ok", "I hear you"])
    text = template.tokenizer.decode(encoded.replies[0].prompt_ids)
    assert text.startswith(HEAD)
    assert text.endswith("word198 word199<|im_end|>\n<|im_start|>assistant\n")
    assert 100 < encoded.replies[1].num_tokens <= 120
    assert encoded.truncated


def test_a_cut_inside_a_character_leaves_whole_characters(template):
    for extra in range(8):
        message = Message("user", "🙂" * (60 + extra))
        encoded = encoder(template).encode((message,), ["ok"])
        assert "\ufffd" not in template.tokenizer.decode(encoded.replies[0].prompt_ids)


def test_a_reply_without_room_is_dropped_with_a_reason(template):
    with pytest.raises(Unusable, match=r"data.max_length = 120") as error:
        encoder(template).encode(dialogue(5), ["a b c d e f g " * 30])
    assert error.value.reason == "no room for the reply within data.max_length"


@pytest.mark.parametrize("reply", ["", "  \n"])
def test_an_empty_reply(template, reply):
    with pytest.raises(Unusable) as error:
        encoder(template).encode(dialogue(1), ["ok", reply])
    assert error.value.reason == "empty reply"


def test_messages_the_template_refuses(tokenizers):
    strict = ChatTemplate(tokenizers["gemma"])
    with pytest.raises(Unusable, match="roles must alternate") as error:
        encoder(strict).encode((*dialogue(1), *dialogue(1)), ["ok"])
    assert error.value.reason == "refused by the chat template"


def test_a_supporter_who_speaks_first(template, tokenizers):
    prompt = dialogue(3)[1:]
    assert encoder(template).prepared(prompt)[1:] == prompt
    strict = ChatTemplate(tokenizers["gemma"])
    assert encoder(strict).prepared(prompt)[1] == Message("user", OPTIONS.opening_user_turn)
    assert encoder(strict).encode((), ["Hi, how are you?"]).replies[0].num_tokens > 0


def test_strict_encoding_tells_how_long_it_is(template):
    with pytest.raises(Unusable, match=r"take \d{3} tokens; the limit data.max_length is 120"):
        encoder(template, truncate=False).encode(dialogue(31), ["ok"])
    assert not encoder(template, truncate=False).encode(dialogue(1), ["ok"]).truncated


def test_raw_text_keeps_the_end_of_the_prompt(template):
    prompt = " ".join(f"w{n}" for n in range(200))
    encoded = encoder(template, plain_text="raw").encode(prompt, ["ok", " I hear you"])
    assert max(reply.num_tokens for reply in encoded.replies) == 120
    assert template.tokenizer.decode(encoded.replies[1].prompt_ids).endswith("w198 w199")
    with pytest.raises(Unusable, match="adds no BOS"):
        encoder(template, plain_text="raw").encode("", ["ok"])
    with pytest.raises(Unusable, match="max_length"):
        encoder(template, plain_text="raw").encode(prompt, ["no " * 200])


def test_plain_text_as_chat_is_one_user_turn(template):
    assert encoder(template).encode("Hi", ["ok"]).prompt == (Message("system", "Be kind."), Message("user", "Hi"))


def test_a_transcript_is_rendered_as_turns_unless_text_stays_raw(template):
    text = "\n\nHuman: Hi\n\nAssistant: Hello.\n\nHuman: I feel low.\n\nAssistant: I"
    encoded = encoder(template).encode(text, [" hear you.", " know."])
    decode = template.tokenizer.decode
    assert decode(encoded.replies[0].prompt_ids) == (
        f"{HEAD}Hi<|im_end|>\n<|im_start|>assistant\nHello.<|im_end|>\n<|im_start|>user\nI feel low.<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    assert [decode(reply.reply_ids) for reply in encoded.replies] == ["I hear you.<|im_end|>", "I know.<|im_end|>"]
    assert encoded.texts == ("I hear you.", "I know.")
    raw = encoder(template, plain_text="raw").encode(text, [" hear you."])
    assert decode(raw.replies[0].prompt_ids) == text


def test_turns_of_a_role_in_a_row_are_as_the_template_takes_them(template, tokenizers):
    messages = (Message("user", "Hi"), Message("user", "Are you there?"))
    encoded = encoder(template).encode(messages, ["Yes"])
    text = template.tokenizer.decode(encoded.replies[0].prompt_ids)
    assert text.count("<|im_start|>user") == 2
    with pytest.raises(Unusable, match="roles must alternate"):
        encoder(ChatTemplate(tokenizers["gemma"])).encode(messages, ["Yes"])


def test_tool_messages_where_the_template_prints_them(make_tokenizer):
    messages = (
        Message("user", "Hi"),
        Message("assistant", "", {"tool_calls": [{}]}),
        Message("tool", "sunny <|im_end|>"),
    )
    printing = ChatTemplate(make_tokenizer("chatml", TEMPLATES["chatml"]))
    encoded = encoder(printing).encode(messages, ["It is sunny"])
    ids = encoded.replies[0].prompt_ids.tolist()
    assert "<|im_start|>tool\nsunny <|im_end|><|im_end|>\n" in printing.tokenizer.decode(ids)
    assert ids.count(printing.tokenizer.token_to_id("<|im_end|>")) == 4  # system, user, assistant, tool: none is said
    source = "{% for m in messages %}{% if m.role != 'tool' %}{{ m.content + '<|im_end|>' }}{% endif %}{% endfor %}"
    with pytest.raises(Unusable, match="tool messages, which the chat template does not print"):
        encoder(ChatTemplate(make_tokenizer("chatml", source))).encode(messages, ["It is sunny"])
