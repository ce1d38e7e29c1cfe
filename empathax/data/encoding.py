"""Prompts and replies to token ids within data.max_length.

What is cut when a prompt and its longest reply are too long, in this order:
1. whole turns, oldest first, so that a user turn comes first; system text and BOS stay. Turns go in steps of a quarter
   of max_length: the late replies of a long dialogue then keep one beginning, and still share it in a prefix tree;
2. the beginning of the last user turn;
3. nothing more: a reply is never cut. If it does not fit after MIN_PROMPT_TOKENS of the last user turn, the example
   is dropped, with a reason that the caller counts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from empathax.config import DataOptions
from empathax.data.chat import ChatTemplate, EncodedReply
from empathax.data.records import Message
from empathax.data.sandbox import TemplateRefused
from empathax.data.templates import system_text

MIN_PROMPT_TOKENS = 16

Prompt = tuple[Message, ...] | str


class Unusable(Exception):
    """An example that cannot be used: `reason` is counted, `detail` tells about this one."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(detail or reason)
        self.reason = reason


@dataclass(frozen=True)
class EncodedExample:
    """The replies to one prompt, which all have the same prompt after truncation."""

    prompt: Prompt
    replies: tuple[EncodedReply, ...]
    truncated: bool


class ReplyEncoder:
    """Encodes prompts with one or several replies as `options` say; `truncate=False` refuses what is too long."""

    def __init__(self, template: ChatTemplate, options: DataOptions, truncate: bool = True) -> None:
        self.template = template
        self._max_length = options.max_length
        self._raw = options.plain_text == "raw"
        self._system = system_text(options.system_prompt)
        self._opening_user_turn = options.opening_user_turn
        self._truncate = truncate

    def encode(self, prompt: Prompt, replies: Sequence[str]) -> EncodedExample:
        """Token ids of `prompt` with each of `replies`.

        Raises:
            Unusable: an empty reply, messages the template refuses, or no room for the longest reply.
        """
        if any(not reply.strip() for reply in replies):
            raise Unusable("empty reply")
        if self._raw and isinstance(prompt, str):
            return self._fitted_text(prompt, replies)
        try:
            return self._fitted_messages(self.prepared(prompt), replies)
        except TemplateRefused as error:
            raise Unusable("refused by the chat template", str(error)) from None

    def prepared(self, prompt: Prompt) -> tuple[Message, ...]:
        """A prompt's messages with the configured system text and, where the template needs one, an opening turn."""
        messages = (Message("user", prompt),) if isinstance(prompt, str) else prompt
        if self._system and not (messages and messages[0].role == "system"):
            messages = (Message("system", self._system), *messages)
        return self.template.with_opening(messages, self._opening_user_turn)

    def _encoded(self, messages: Sequence[Message], replies: Sequence[str]) -> tuple[EncodedReply, ...]:
        return tuple(self.template.encode_example(messages, reply) for reply in replies)

    def _fitted_messages(self, messages: tuple[Message, ...], replies: Sequence[str]) -> EncodedExample:
        encoded = self._encoded(messages, replies)
        if _longest(encoded) <= self._max_length:
            return EncodedExample(messages, encoded, truncated=False)
        self._check_strict(encoded)
        shorter = self._without_oldest_turns(messages, replies, _longest(encoded))
        encoded = self._encoded(shorter, replies)
        if _longest(encoded) > self._max_length:
            shorter, encoded = self._without_beginning(shorter, replies, encoded)
        return EncodedExample(shorter, encoded, truncated=True)

    def _without_oldest_turns(
        self, messages: tuple[Message, ...], replies: Sequence[str], num_tokens: int
    ) -> tuple[Message, ...]:
        """The most turns that remain when at least the needed tokens are cut, in steps; at least the last user turn."""
        system = tuple(message for message in messages if message.role == "system")
        turns = messages[len(system) :]
        candidates = [turns[i:] for i, turn in enumerate(turns) if i and turn.role == "user"]
        if not candidates:
            return messages
        step = max(self._max_length // 4, 1)
        needed = -(-(num_tokens - self._max_length) // step) * step
        low, high = 0, len(candidates) - 1
        while low < high:
            middle = (low + high) // 2
            if num_tokens - _longest(self._encoded((*system, *candidates[middle]), replies)) >= needed:
                high = middle
            else:
                low = middle + 1
        return (*system, *candidates[low])

    def _without_beginning(
        self, messages: tuple[Message, ...], replies: Sequence[str], encoded: tuple[EncodedReply, ...]
    ) -> tuple[tuple[Message, ...], tuple[EncodedReply, ...]]:
        """The oldest kept turn without its first tokens."""
        tokenizer = self.template.tokenizer
        system = tuple(message for message in messages if message.role == "system")
        turns = messages[len(system) :]
        ids = tokenizer.encode_plain(turns[0].content) if turns else []
        least = min(MIN_PROMPT_TOKENS, len(ids))
        cut = 0
        while (excess := _longest(encoded) - self._max_length) > 0:
            cut += excess
            if len(turns) != 1 or len(ids) - cut < least:
                raise Unusable(
                    "no room for the reply within data.max_length",
                    "the reply and the least of its prompt take more than "
                    f"data.max_length = {self._max_length} tokens; raise it",
                )
            text = tokenizer.decode(ids[cut:]).lstrip("\ufffd \n")  # a character may have been cut in two
            messages = (*system, Message("user", text))
            encoded = self._encoded(messages, replies)
        return messages, encoded

    def _fitted_text(self, prompt: str, replies: Sequence[str]) -> EncodedExample:
        encoded = tuple(self.template.encode_raw(prompt, reply) for reply in replies)
        if any(not len(reply.prompt_ids) for reply in encoded):
            raise Unusable("empty prompt", "the prompt is empty and the tokenizer adds no BOS token to start from")
        excess = _longest(encoded) - self._max_length
        if excess <= 0:
            return EncodedExample(prompt, encoded, truncated=False)
        self._check_strict(encoded)
        num_bos = int(self.template.tokenizer.add_bos)
        room = min(len(reply.prompt_ids) for reply in encoded) - num_bos
        if room - excess < min(MIN_PROMPT_TOKENS, room):
            raise Unusable(
                "no room for the reply within data.max_length",
                f"the reply alone takes almost all of data.max_length = {self._max_length} tokens; raise it",
            )
        return EncodedExample(prompt, tuple(_cut(reply, num_bos, excess) for reply in encoded), truncated=True)

    def _check_strict(self, encoded: tuple[EncodedReply, ...]) -> None:
        if not self._truncate:
            raise Unusable(
                "longer than data.max_length",
                f"prompt and reply take {_longest(encoded)} tokens; the limit data.max_length is {self._max_length}",
            )


def _longest(encoded: Sequence[EncodedReply]) -> int:
    return max(reply.num_tokens for reply in encoded)


def _cut(reply: EncodedReply, start: int, count: int) -> EncodedReply:
    kept = np.delete(reply.prompt_ids, slice(start, start + count))
    return EncodedReply(kept, reply.reply_ids, reply.num_mismatched)
