"""Messages to token ids through a chat template, with the exact tokens of a reply.

What users, system texts and tools say never becomes control tokens. In a reply an added token of the tokenizer
(`<think>`, `[Question]`) is itself; only the tokens by which the template opens and ends turns stay text there too.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Int32

from empathax.data.control_text import ControlText, pattern_of
from empathax.data.prefix_tree import common_length
from empathax.data.records import Message
from empathax.data.sandbox import DEFAULT_DATE, TemplateProcess
from empathax.data.templates import prepared_source, template_source
from empathax.errors import DataError
from empathax.models.tokenizers.tokenizer import END_OF_TURN

if TYPE_CHECKING:
    from empathax.models.tokenizers.tokenizer import Tokenizer

_REPLY = "\U0010fffd"  # stands for the reply while the template is rendered
_THOUGHTS = re.compile(r"\s*<think>|.*?</think>", re.DOTALL)  # at the head of a reply
_OPENED = re.compile(r"<think>\s*\Z")  # a prompt after which the model thinks
# Written in turns, not around them: some templates print them, empty, before every old reply.
_THOUGHT_MARKS = re.compile(r"[<\[|]+/?(think|thinking|thought|reasoning)[>\]|]+", re.IGNORECASE)


@dataclass(frozen=True)
class EncodedReply:
    """A prompt and the reply's text with its one stop token.

    `num_mismatched` prompt tokens changed by joining; `num_spelled` control tokens of the reply stayed text, because
    they open or end turns. `is_thought`: the template opens thoughts that the reply does not close.
    """

    prompt_ids: Int32[np.ndarray, " prompt"]
    reply_ids: Int32[np.ndarray, " reply"]
    num_mismatched: int = 0
    num_spelled: int = 0
    is_thought: bool = False

    @property
    def num_tokens(self) -> int:
        """Tokens of prompt and reply."""
        return len(self.prompt_ids) + len(self.reply_ids)


@dataclass(frozen=True)
class _Surroundings:
    """What a template writes around a reply: text of the prompt, what comes between, what follows up to the stop."""

    prompt: str
    lead: str
    tail: str


class ChatTemplate:
    """A chat template together with its tokenizer.

    Args:
        tokenizer: see models/tokenizers/tokenizer.py.
        choice: "auto" (the tokenizer's own template, else its family's), a family's name, or a path ending in .jinja.
        family: the model's family, for a tokenizer without template.
        variables: values of variables that the template reads, such as {"enable_thinking": True}.
        date: what the template's `strftime_now` says the day is: "2024-07-26", or "today".

    Raises:
        DataError: the template cannot be read, used, or writes tokens this tokenizer does not have.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        choice: str = "auto",
        family: str = "llama",
        variables: Mapping[str, Any] | None = None,
        date: str = DEFAULT_DATE,
    ) -> None:
        self.tokenizer = tokenizer
        self.name, source = template_source(tokenizer, choice, family)
        self.source = prepared_source(source, self.name, variables or {})
        self._text = ControlText(tokenizer, self.source)
        self._turn_tokens = pattern_of(self._text.controls)  # until `_probe` knows better
        self._process = TemplateProcess(self.source, self.name, date)
        self._last_prompt: Any = None
        self._last_surroundings = _Surroundings("", "", "")
        self._probe()

    def render(
        self,
        messages: Sequence[Message],
        add_generation_prompt: bool = False,
        variables: Mapping[str, Any] | None = None,
    ) -> str:
        """The template's text; a system message is put into the first user turn where the template knows none.

        `variables` are those of a row: its tools, its chat_template_kwargs. Strings of control tokens inside the
        messages are left as placeholders: use `encode_prompt` for token ids.
        """
        if not self.accepts_system:
            messages = _folded(messages)
        return self._process.render([self._variables(messages, add_generation_prompt, variables)])[0]

    def with_opening(self, messages: Sequence[Message], opening_user_turn: str) -> tuple[Message, ...]:
        """The messages, with `opening_user_turn` before an assistant's first turn if the template insists on one."""
        system = tuple(message for message in messages if message.role == "system")
        turns = tuple(messages[len(system) :])
        if (turns and turns[0].role == "user") or self._assistant_first[bool(system and self.accepts_system)]:
            return tuple(messages)
        return (*system, Message("user", opening_user_turn), *turns)

    def encode_prompt(
        self, messages: Sequence[Message], variables: Mapping[str, Any] | None = None
    ) -> Int32[np.ndarray, " prompt"]:
        """Token ids of the prompt, up to where the model's reply starts."""
        return np.array(self._text.token_ids(self.render(messages, True, variables)), np.int32)

    def encode_example(
        self, prompt: Sequence[Message], reply: str, variables: Mapping[str, Any] | None = None
    ) -> EncodedReply:
        """Token ids of `prompt` and of `reply` with its stop token, and nothing the template writes after it.

        Prompt and reply are tokenized together, so that both are what the model meets when it reads on; where this
        changes the prompt's last tokens, they count as part of the reply. A reply with thoughts at its head follows a
        prompt that lets the model think; an opening `<think>` that the prompt holds is not repeated.
        """
        body = self._text.escaped(reply.strip() if self._strips else reply, self._turn_tokens)
        around, answer = self._text_around(prompt, body, variables or {})
        full_ids = self._text.token_ids(around.prompt + answer)
        if not around.tail:
            full_ids = [*full_ids, self._eos_id()]
        return dataclasses.replace(
            split_prompt(self._text.token_ids(around.prompt), full_ids),
            num_spelled=len(self._turn_tokens.findall(reply)),
            is_thought=_opens_thoughts(around.prompt) and "</think>" not in answer,
        )

    def encode_raw(self, prompt: str, reply: str) -> EncodedReply:
        """Plain text without a template: BOS if the tokenizer adds one, the prompt, the reply, EOS."""
        bos_id = self.tokenizer.bos_token_id
        bos = [bos_id] if self.tokenizer.add_bos and bos_id is not None else []
        # a control token that only prompt and reply together would spell is none
        joined = self._text.pattern.finditer(prompt + reply)
        cut = next((found.end() - len(prompt) for found in joined if found.start() < len(prompt) < found.end()), 0)
        spelled = self._text.escaped(prompt + reply[:cut])
        escaped = self._text.escaped(reply[cut:], self._turn_tokens)
        ids = self._text.token_ids(spelled + escaped)
        prompt_ids = self._text.token_ids(self._text.escaped(prompt))
        return dataclasses.replace(
            split_prompt([*bos, *prompt_ids], [*bos, *ids, self._eos_id()]),
            num_spelled=len(self._turn_tokens.findall(reply[cut:])),
        )

    @property
    def stop_token_ids(self) -> tuple[int, ...]:
        """Tokens that end a reply: the one this template writes, and the tokenizer's own."""
        return tuple(sorted({self._stop_id or self._eos_id(), *self.tokenizer.stop_token_ids}))

    @functools.cached_property
    def prints_tool_messages(self) -> bool:
        """Whether what a tool answers is in the prompt."""
        user, answer = (
            Message("user", "Good morning"),
            Message("tool", "It is sunny", {"name": "w", "tool_call_id": "a"}),
        )
        call = {"id": "a", "type": "function", "function": {"name": "w", "arguments": {}}}
        return self._prints([user, Message("assistant", "", {"tool_calls": [call]}), answer], answer)

    def fingerprint(self) -> str:
        """Digest of the template's source."""
        return hashlib.sha256(self.source.encode()).hexdigest()

    def _render(self, messages: Sequence[Message], add_generation_prompt: bool = False) -> str:
        return self._process.render([self._variables(messages, add_generation_prompt)])[0]

    def _variables(
        self,
        messages: Sequence[Message],
        add_generation_prompt: bool = False,
        variables: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        return {
            "tools": None,  # transformers passes both, also where there are none
            "documents": None,
            **self._text.escaped(variables or {}),
            "messages": [self._escaped_message(message) for message in messages],
            "add_generation_prompt": add_generation_prompt,
            "bos_token": self.tokenizer.bos_token or "",
            "eos_token": self.tokenizer.eos_token or "",
            "pad_token": self.tokenizer.pad_token or "",
        }

    def _escaped_message(self, message: Message) -> dict[str, Any]:
        pattern = self._turn_tokens if message.role == "assistant" else None
        extra = self._text.escaped(message.extra, pattern)
        return {**extra, "role": message.role, "content": self._text.escaped(message.content, pattern)}

    def _text_around(
        self, prompt: Sequence[Message], body: str, variables: Mapping[str, Any]
    ) -> tuple[_Surroundings, str]:
        """What the template writes around a reply, and the reply's text up to its stop; `body` is the escaped reply."""
        thinks = _THOUGHTS.match(body) is not None
        if thinks:
            variables = {**variables, "enable_thinking": True}
        prompt = tuple(prompt) if self.accepts_system else tuple(_folded(prompt))
        key = (prompt, variables)
        if self._last_prompt != key:  # the replies of a pair share the work
            self._last_prompt, self._last_surroundings = key, self._surroundings(prompt, variables)
        around = self._last_surroundings
        if not thinks:
            return around, around.lead + body + around.tail
        return around, self._thoughtful(around, prompt, body, variables) or _continued(around, body)

    def _surroundings(self, prompt: Sequence[Message], variables: Mapping[str, Any]) -> _Surroundings:
        answered = self._variables([*prompt, Message("assistant", _REPLY)], variables=variables)
        prompt_text, text = self._process.render([self._variables(prompt, True, variables), answered])
        before, _, after = text.rpartition(_REPLY)  # a user may write that character too
        if before.startswith(prompt_text):
            lead = before[len(prompt_text) :]
        elif prompt_text.startswith(before):
            lead = ""
        else:  # the template writes a history with a reply otherwise than one without: generation sees the latter
            lead = self._lead
        stop = self._text.pattern.search(after)
        return _Surroundings(prompt_text, lead, after[: stop.end()] if stop else "")

    def _thoughtful(
        self, around: _Surroundings, prompt: Sequence[Message], body: str, variables: Mapping[str, Any]
    ) -> str:
        """A reply with thoughts as the template itself writes it after the prompt; "" if it leaves thoughts out."""
        answered = self._variables(prompt, variables=variables)
        answered["messages"].append({"role": "assistant", "content": body})
        text = self._process.render([answered])[0]
        answer = text.removeprefix(around.prompt)
        thoughts = body.partition("</think>")[0].lstrip().removeprefix("<think>").strip()
        stop = self._turn_tokens.search(answer) if around.tail else None
        if answer == text or thoughts not in answer or "</think>" not in answer or (around.tail and not stop):
            return ""
        return answer[: stop.end()] if stop else answer.rstrip("\n")

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
        stop = self._text.pattern.search(after)
        self._stop_id = self.tokenizer.token_to_id(stop.group()) if stop else None
        self.accepts_system = self._prints([system, user, reply, user], system)
        self._turn_tokens = pattern_of(self._written_tokens([system] if self.accepts_system else []))
        self._assistant_first = {
            has_system: all(
                self._prints([*head, *turns]) for turns in ([], [reply], [reply, user], [reply, user, reply])
            )
            for has_system, head in ((False, []), (True, [system]))
        }

    def _written_tokens(self, system: list[Message]) -> set[str]:
        """The control tokens that open or end a turn: roles, stops, and what the template writes around old turns."""
        tokenizer = self.tokenizer
        turns = [Message(("user", "assistant")[number % 2], "Good morning") for number in range(4)]
        written = set(self._text.pattern.findall(self._render([*system, *turns])))
        written |= set(self._text.pattern.findall(self._render([*system, *turns[:3]], True)))
        roles = (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token, tokenizer.unk_token)
        stops = (tokenizer.id_to_token(token_id) for token_id in tokenizer.stop_token_ids)
        named = {*roles, *stops, *END_OF_TURN}
        return {
            token
            for token in self._text.controls
            if token in named or (token in written and not _THOUGHT_MARKS.fullmatch(token))
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


def _opens_thoughts(prompt_text: str) -> bool:
    return _OPENED.search(prompt_text) is not None


def _continued(around: _Surroundings, body: str) -> str:
    """A reply with thoughts as it is, less the opening that the prompt holds and the empty thoughts of a lead."""
    if _opens_thoughts(around.prompt) and body.lstrip().startswith("<think>"):
        body = body.lstrip().removeprefix("<think>").lstrip("\n")
    return ("" if "</think>" in around.lead else around.lead) + body + around.tail


def _folded(messages: Sequence[Message]) -> list[Message]:
    """System text at the head of the first user turn."""
    if not messages or messages[0].role != "system":
        return list(messages)
    system, *turns = messages
    if not turns or turns[0].role != "user":
        return [Message("user", system.content), *turns]
    return [Message("user", f"{system.content}\n\n{turns[0].content}"), *turns[1:]]
