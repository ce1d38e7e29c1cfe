"""Messages to token ids through a chat template, with the exact tokens of a reply.

The text of a message can never become control tokens. Special-token strings inside a message are replaced by
placeholder characters before rendering; afterwards each placeholder is tokenized as the plain text it stands for.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Int32

from empathax.data.families import CONTROL_TOKENS, TEMPLATES, fallback_name
from empathax.data.records import Message
from empathax.data.sandbox import TemplateProcess
from empathax.errors import DataError

if TYPE_CHECKING:
    from empathax.models.tokenizer import Tokenizer

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
        tokenizer: see models/tokenizer.py.
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
        self.name, self.source = _template_source(tokenizer, choice, family)
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
        turns = [message for message in messages if message.role != "system"]
        if self.accepts_assistant_first or (turns and turns[0].role == "user"):
            return tuple(messages)
        system = tuple(message for message in messages if message.role == "system")
        return (*system, Message("user", opening_user_turn), *turns)

    def encode_prompt(self, messages: Sequence[Message]) -> Int32[np.ndarray, " prompt"]:
        """Token ids up to where the model's reply starts."""
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
        bos = [self.tokenizer.bos_token_id] if self.tokenizer.add_bos else []
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
        escaped = [{"role": message.role, "content": self._escaped(message.content)} for message in messages]
        variables = {
            "messages": escaped,
            "add_generation_prompt": add_generation_prompt,
            "bos_token": self.tokenizer.bos_token or "",
            "eos_token": self.tokenizer.eos_token or "",
            "pad_token": self.tokenizer.pad_token or "",
            "enable_thinking": False,  # Qwen3: an empty think block, as replies here have none
        }
        return self._process.render(variables, sum(len(message["content"]) for message in escaped))

    def _surroundings(self, prompt: Sequence[Message]) -> tuple[str, str, str]:
        """(text of the prompt, what stands between it and the reply, what follows the reply up to its stop token)."""
        prompt_text = self.render(prompt, add_generation_prompt=True)
        before, _, after = self.render([*prompt, Message("assistant", _REPLY)]).partition(_REPLY)
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
        """Control tokens at which this tokenizer may be fed piece by piece with the same result; None if there is none."""
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
        before, _, after = self._render([user, Message("assistant", f" {_REPLY} ")]).partition(_REPLY)
        self._strips = not (before.endswith(" ") and after.startswith(" "))
        before, found, after = self._render([user, Message("assistant", _REPLY)]).partition(_REPLY)
        if not found or _REPLY in after:
            raise DataError(f"{self.name} does not print a reply exactly once; set data.chat_template to another one")
        self._lead = before.removeprefix(os.path.commonprefix([before, asked]))
        stop = self._special_pattern.search(after)
        self._stop_id = self.tokenizer.token_to_id(stop.group()) if stop else None
        asked, answered = [system, user, reply, user], [system, user, reply, user, reply]
        self.accepts_system = self._prints(asked, system) and self._prints(answered, system)
        self.accepts_assistant_first = (
            self._prints([reply, user], reply) and self._prints([reply, user, reply], reply) and self._prints([])
        )

    def _prints(self, messages: Sequence[Message], message: Message | None = None) -> bool:
        """Whether the template takes `messages` and prints `message`."""
        try:
            text = self._render(messages, not messages or messages[-1].role == "user")
        except DataError:
            return False
        return message is None or message.content in text

    def _eos_id(self) -> int:
        if self.tokenizer.eos_token_id is None:
            raise DataError(f"{self.name} writes no token after a reply, and the tokenizer has no EOS token to stop at")
        return self.tokenizer.eos_token_id


def split_prompt(prompt_ids: Sequence[int], full_ids: Sequence[int]) -> EncodedReply:
    """Parts jointly tokenized `full_ids` where they stop agreeing with `prompt_ids` (trl PR#2209)."""
    prompt, full = np.array(prompt_ids, np.int32), np.array(full_ids, np.int32)
    length = min(len(prompt), len(full) - 1)
    different = np.flatnonzero(prompt[:length] != full[:length])
    cut = int(different[0]) if len(different) else length
    return EncodedReply(full[:cut], full[cut:], len(prompt) - cut)


def _template_source(tokenizer: Tokenizer, choice: str, family: str) -> tuple[str, str]:
    """(name for messages, Jinja source) of `data.chat_template`."""
    if choice == "auto" and tokenizer.chat_template:
        return "the tokenizer's own chat template", tokenizer.chat_template
    if choice.endswith(".jinja"):
        try:
            return f"the chat template {choice}", Path(choice).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"data.chat_template = {choice!r} cannot be read: {error}") from None
    name = fallback_name(family, tokenizer.special_tokens) if choice == "auto" else choice
    if name not in TEMPLATES:
        raise DataError(
            f"data.chat_template = {choice!r}: expected auto, one of {', '.join(TEMPLATES)}, or a path ending in .jinja"
        )
    missing = [token for token in CONTROL_TOKENS[name] if token not in tokenizer.special_tokens]
    if missing:
        raise DataError(
            f"data.chat_template = {name!r} writes {', '.join(missing)}, which this tokenizer does not know as control "
            "tokens: choose the template of the model's own family (auto does)"
        )
    return f"the built-in chat template {name!r}", TEMPLATES[name]


def _folded(messages: Sequence[Message]) -> list[Message]:
    """System text at the head of the first user turn."""
    if not messages or messages[0].role != "system":
        return list(messages)
    system, *turns = messages
    if not turns or turns[0].role != "user":
        return [Message("user", system.content), *turns]
    return [Message("user", f"{system.content}\n\n{turns[0].content}"), *turns[1:]]
