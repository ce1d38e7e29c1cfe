"""Dialogues written as one text, `Human: ...` and `Assistant: ...`, as Anthropic's HH sets are."""

from __future__ import annotations

import re

from empathax.data.records import Message

_SPEAKER = re.compile(r"(?:\A\s*|\n\s*\n)(Human|User|Assistant):[ \t]*")
_ROLES = {"Human": "user", "User": "user", "Assistant": "assistant"}


def transcript_turns(prompt: str) -> tuple[tuple[Message, ...], str] | None:
    """The turns of a prompt that is a transcript, and the beginning of the reply that it holds; None for other text.

    A prompt ends with "Assistant:". What pairs have in common, as a text, may go on with the first words of both
    replies: these belong to the reply.
    """
    pieces = _SPEAKER.split(prompt)
    if len(pieces) < 5 or pieces[0].strip() or pieces[1] == "Assistant" or pieces[-2] != "Assistant":
        return None
    turns = [Message(_ROLES[speaker], said.strip()) for speaker, said in zip(pieces[1::2], pieces[2::2], strict=True)]
    return tuple(turns[:-1]), pieces[-1].lstrip()
