"""Messages to token ids through a chat template, with the exact tokens of a reply.

The text of a message can never become control tokens. Special-token strings inside a message are replaced by
placeholder characters before rendering; afterwards each placeholder is tokenized as the plain text it stands for.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Int32

from empathax.data.prefix_tree import common_length
from empathax.data.records import Message
from empathax.data.sandbox import TemplateProcess
from empathax.data.templates import template_source
from empathax.errors import DataError

if TYPE_CHECKING:
    from empathax.models.tokenizers.tokenizer import Tokenizer

_ESCAPES = 0x100000  # U+100000 and up (private use): the n-th special-token string inside a message
_REPLY = "\U0010fffd"  # stands for the reply while the template is rendered
_CACHE_ENTRIES = 1 << 16
_PROBES = ("Hello", " Hello", "\nHello", "\n\nHi there", "user\nI feel low.", "  two", "é, ok")


@dataclass(frozen=True)
class EncodedReply:
    """A prompt and the reply's text with its one stop token; `num_mismatched` prompt tokens changed by joining."""

    prompt_ids: Int32[np.ndarray, " prompt"]
    reply_ids: Int32[np.ndarray, " reply"]
    num_mismatched: int = 0

    @property
    def num_tokens(self) -> int:
        """Tokens of prompt and reply."""
        return len(self.prompt_ids) + len(self.reply_ids)


class ChatTemplate:
    """A chat template together with its tokenizer.

    Args:
        tokenizer: see models/tokenizers/tokenizer.py.
        choice: "auto" (the tokenizer's own template, else its family's), a family's name, or a path ending in .jinja.
        family: the model's family, for a tokenizer without template.

    Raises:
        DataError: the template cannot be read, used, or writes tokens this tokenizer does not have.
    """

    def __init__(self, tokenizer: Tokenizer, choice: str = "auto", family: str = "llama") -> None:
        self.tokenizer = tokenizer
        self._special = sorted(tokenizer.special_tokens, key=lambda token: (-len(token), token))
        self._special_pattern = re.compile("|".join(map(re.escape, self._special)) or r"(?!)")
        self._escape_pattern = re.compile(f"([{chr(_ESCAPES)}-{chr(_ESCAPES + max(len(self._special) - 1, 0))}])")
        self.name, self.source = template_source(tokenizer, choice, family)
        self._process = TemplateProcess(self.source, self.name)
        self._splitter = self._split_pattern()
        self._cache: dict[str, list[int]] = {}
        self._last_prompt: tuple[Message, ...] | None = None
        self._last_surroundings = ("", "", "")
        self._probe()

    def render(self, messages: Sequence[Message], add_generation_prompt: bool = False) -> str:
        """The template's text; a system message is put into the first user turn where the template knows none.

        Special-token strings inside the messages are left as placeholders: use `encode_prompt` for token ids.
        """
        if not self.accepts_system:
            messages = _folded(messages)
        return self._render(messages, add_generation_prompt)

    def with_opening(self, messages: Sequence[Message], opening_user_turn: str) -> tuple[Message, ...]:
        """The messages, with `opening_user_turn` before an assistant's first turn if the template insists on one."""
        system = tuple(message for message in messages if message.role == "system")
        turns = tuple(messages[len(system) :])
        if (turns and turns[0].role == "user") or self._assistant_first[bool(system and self.accepts_system)]:
            return tuple(messages)
        return (*system, Message("user", opening_user_turn), *turns)

    def encode_prompt(self, messages: Sequence[Message]) -> Int32[np.ndarray, " prompt"]:
        """Token ids of the prompt, up to where the model's reply starts."""
        return np.array(self._tokenize(self.render(messages, add_generation_prompt=True)), np.int32)

    def encode_example(self, prompt: Sequence[Message], reply: str) -> EncodedReply:
        """Token ids of `prompt` and of `reply` with its stop token, and nothing the template writes after it.

        Prompt and reply are tokenized together, so that both are what the model meets when it reads on; where this
        changes the prompt's last tokens, they count as part of the reply.
        """
        if self._last_prompt != tuple(prompt):  # the replies of a pair share the work
            self._last_prompt, self._last_surroundings = tuple(prompt), self._surroundings(prompt)
        prompt_text, lead, tail = self._last_surroundings
        body = self._escaped(reply.strip() if self._strips else reply)
        prompt_ids = self._tokenize(prompt_text)
        full_ids = self._tokenize(prompt_text + lead + body + tail)
        if not tail:
            full_ids = [*full_ids, self._eos_id()]
        return split_prompt(prompt_ids, full_ids)

    def encode_raw(self, prompt: str, reply: str) -> EncodedReply:
        """Plain text without a template: BOS if the tokenizer adds one, the prompt, the reply, EOS."""
        bos_id = self.tokenizer.bos_token_id
        bos = [bos_id] if self.tokenizer.add_bos and bos_id is not None else []
        prompt_ids = self._tokenize(self._escaped(prompt))
        reply_ids = self._tokenize(self._escaped(prompt + reply))
        return split_prompt([*bos, *prompt_ids], [*bos, *reply_ids, self._eos_id()])

    @property
    def stop_token_ids(self) -> tuple[int, ...]:
        """Tokens that end a reply: the one this template writes, and the tokenizer's own."""
        return tuple(sorted({self._stop_id or self._eos_id(), *self.tokenizer.stop_token_ids}))

    def fingerprint(self) -> str:
        """Digest of the template's source."""
        return hashlib.sha256(self.source.encode()).hexdigest()

    def _render(self, messages: Sequence[Message], add_generation_prompt: bool = False) -> str:
        return self._process.render([self._variables(messages, add_generation_prompt)])[0]

    def _variables(self, messages: Sequence[Message], add_generation_prompt: bool = False) -> dict[str, Any]:
        return {
            "messages": [{"role": message.role, "content": self._escaped(message.content)} for message in messages],
            "add_generation_prompt": add_generation_prompt,
            "bos_token": self.tokenizer.bos_token or "",
            "eos_token": self.tokenizer.eos_token or "",
            "pad_token": self.tokenizer.pad_token or "",
            "enable_thinking": False,  # Qwen3: an empty think block, as replies here have none
        }

    def _surroundings(self, prompt: Sequence[Message]) -> tuple[str, str, str]:
        """(text of the prompt, what stands between it and the reply, what follows the reply up to its stop token)."""
        prompt = list(prompt) if self.accepts_system else _folded(prompt)
        answered = self._variables([*prompt, Message("assistant", _REPLY)])
        prompt_text, text = self._process.render([self._variables(prompt, True), answered])
        before, _, after = text.rpartition(_REPLY)  # a user may write that character too
        if before.startswith(prompt_text):
            lead = before[len(prompt_text) :]
        elif prompt_text.startswith(before):
            lead = ""
        else:  # the template writes a history with a reply otherwise than one without: generation sees the latter
            lead = self._lead
        stop = self._special_pattern.search(after)
        return prompt_text, lead, after[: stop.end()] if stop else ""

    def _escaped(self, text: str) -> str:
        """`text` with each special-token string in it replaced by its placeholder character."""
        return self._special_pattern.sub(lambda match: chr(_ESCAPES + self._special.index(match.group())), text)

    def _tokenize(self, text: str) -> list[int]:
        """Token ids of rendered text; a placeholder becomes the text it stands for, never its control token."""
        pieces = self._escape_pattern.split(text)  # template, placeholder, template, ...
        if len(pieces) == 1:
            return self._tokenize_template(text)
        segments = [
            (self._special[ord(piece) - _ESCAPES], True) if number % 2 else (piece, False)
            for number, piece in enumerate(pieces)
        ]
        return self.tokenizer.encode_segments(segments)

    def _tokenize_template(self, text: str) -> list[int]:
        """`tokenizer.encode(text)`, from remembered pieces where control tokens part them (a dialogue's old turns)."""
        if self._splitter is None:
            return self.tokenizer.encode(text)
        ids: list[int] = []
        for piece in self._splitter.split(text):
            if piece not in self._cache:
                if len(self._cache) >= _CACHE_ENTRIES:
                    self._cache.clear()
                self._cache[piece] = self.tokenizer.encode(piece) if piece else []
            ids += self._cache[piece]
        return ids

    def _split_pattern(self) -> re.Pattern[str] | None:
        """Control tokens at which a text may be cut and tokenized piece by piece with the same result; None if none."""
        encode = self.tokenizer.encode

        def independent(token: str) -> bool:
            return all(encode(f"ok{token}{text}") == encode("ok") + encode(token) + encode(text) for text in _PROBES)

        written = [token for token in self._special if token in self.source and independent(token)]
        return re.compile(f"({'|'.join(map(re.escape, written))})") if written else None

    def _probe(self) -> None:
        """Finds out what the template accepts, and what it does to a reply."""
        user, reply = Message("user", "Good morning"), Message("assistant", "I hear you")
        system = Message("system", "Be kind at all times")
        self.accepts_system = True
        asked = self._render([user], True)
        if user.content not in asked:
            raise DataError(f"{self.name} does not print the user's message; set data.chat_template to another one")
        before, found, after = self._render([user, Message("assistant", _REPLY)]).partition(_REPLY)
        if not found or _REPLY in after:
            raise DataError(f"{self.name} does not print a reply exactly once; set data.chat_template to another one")
        self._strips = self._render([user, Message("assistant", f" {_REPLY} ")]) == before + _REPLY + after
        self._lead = before.removeprefix(asked) if before.startswith(asked) else ""
        stop = self._special_pattern.search(after)
        self._stop_id = self.tokenizer.token_to_id(stop.group()) if stop else None
        history = [system, user, reply, user]
        self.accepts_system = self._prints(history, system) and self._prints([*history, reply], system)
        self._assistant_first = {
            has_system: all(
                self._prints([*head, *turns]) for turns in ([], [reply], [reply, user], [reply, user, reply])
            )
            for has_system, head in ((False, []), (True, [system]))
        }

    def _prints(self, messages: Sequence[Message], message: Message | None = None) -> bool:
        """Whether the template takes `messages` and prints `message` (by default, every reply)."""
        try:
            text = self._render(messages, not messages or messages[-1].role != "assistant")
        except DataError:
            return False
        wanted = [message] if message else [turn for turn in messages if turn.role == "assistant"]
        return all(turn.content in text for turn in wanted)

    def _eos_id(self) -> int:
        if self.tokenizer.eos_token_id is None:
            raise DataError(f"{self.name} writes no token after a reply, and the tokenizer has no EOS token to stop at")
        return self.tokenizer.eos_token_id


def split_prompt(prompt_ids: Sequence[int], full_ids: Sequence[int]) -> EncodedReply:
    """Cuts jointly tokenized `full_ids` where they first differ from `prompt_ids`, as TRL does (trl PR#2209).

    The reply keeps at least one token.
    """
    prompt, full = np.array(prompt_ids, np.int32), np.array(full_ids, np.int32)
    cut = common_length(prompt, full[:-1])
    return EncodedReply(full[:cut], full[cut:], len(prompt) - cut)


def _folded(messages: Sequence[Message]) -> list[Message]:
    """System text at the head of the first user turn."""
    if not messages or messages[0].role != "system":
        return list(messages)
    system, *turns = messages
    if not turns or turns[0].role != "user":
        return [Message("user", system.content), *turns]
    return [Message("user", f"{system.content}\n\n{turns[0].content}"), *turns[1:]]
