"""Transcripts in one text as turns, by hand."""

import pytest

from empathax.data.records import Message
from empathax.data.transcripts import transcript_turns
from empathax.data.trl_format import parse_row

HH = "\n\nHuman: Hi\n\nAssistant: Hello, how are you?\n\nHuman: I feel low.\n\nIt is hard.\n\nAssistant:"


@pytest.mark.parametrize(("rest", "beginning"), [("", ""), (" I", "I"), (" I am\n\nhere", "I am\n\nhere")])
def test_a_transcript_is_turns_and_the_beginning_of_the_reply(rest, beginning):
    turns, found = transcript_turns(HH + rest)
    assert turns == (
        Message("user", "Hi"),
        Message("assistant", "Hello, how are you?"),
        Message("user", "I feel low.\n\nIt is hard."),
    )
    assert found == beginning


@pytest.mark.parametrize(
    "text",
    ["Hi", "", "Human: Hi", "Assistant: Hi\n\nHuman: x", "He said Human: a\n\nAssistant:", "Human: Hi Assistant:"],
)
def test_other_texts_are_none(text):
    assert transcript_turns(text) is None


def test_what_a_pair_has_in_common_belongs_to_the_reply():
    row = parse_row({"chosen": f"{HH} I hear you", "rejected": f"{HH} I do not"}, "f:1")
    turns, beginning = transcript_turns(row.prompt)
    assert turns[-1] == Message("user", "I feel low.\n\nIt is hard.")
    assert (beginning + row.chosen).strip() == "I hear you"
    assert (beginning + row.rejected).strip() == "I do not"
