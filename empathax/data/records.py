"""What a row of a data set is, once read: plain, typed, and able to say where it came from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

ROLES = ("system", "user", "assistant")


@dataclass(frozen=True)
class Message:
    """One turn; role is system, user, assistant or tool.

    `extra` is what the chat template gets beside these: tool_calls of an assistant, name and tool_call_id of a tool.
    """

    role: str
    content: str
    extra: Mapping[str, Any] = field(default_factory=dict, hash=False, repr=False)  # repr: names of dialogues stay


@dataclass(frozen=True)
class Dialogue:
    """A conversation whose assistant turns are replies to learn, except those that are context only.

    `first_trained` is the index of the first message that may be trained, `untrained` those of later ones that may not;
    `origin` is "file:line". `template_variables` is what the row tells the chat template: tools, chat_template_kwargs.
    """

    messages: tuple[Message, ...]
    dialogue_id: str
    origin: str
    first_trained: int = 0
    meta: Mapping[str, Any] = field(default_factory=dict)
    untrained: frozenset[int] = frozenset()
    template_variables: Mapping[str, Any] = field(default_factory=dict)
    label: bool | None = None  # whether its last reply is desirable, if told
    named_by_id: bool = False  # `dialogue_id` is the row's `id`, which may name rows rather than dialogues

    def is_trained(self, index: int) -> bool:
        """Whether message `index` is a reply to learn."""
        return self.messages[index].role == "assistant" and index >= self.first_trained and index not in self.untrained


@dataclass(frozen=True)
class CompletionRow:
    """A prompt and its reply; a prompt is messages, or plain text. `label`: whether the reply is desirable, if told."""

    prompt: tuple[Message, ...] | str
    completion: str
    dialogue_id: str
    origin: str
    meta: Mapping[str, Any] = field(default_factory=dict)
    label: bool | None = None
    template_variables: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class PreferenceRow:
    """A prompt, the better and the worse reply."""

    prompt: tuple[Message, ...] | str
    chosen: str
    rejected: str
    dialogue_id: str
    origin: str
    meta: Mapping[str, Any] = field(default_factory=dict)
    template_variables: Mapping[str, Any] = field(default_factory=dict)


Row = Dialogue | CompletionRow | PreferenceRow


@dataclass
class Tally:
    """What became of a source's rows: `bad` could not be read, `dropped` could not be used, by reason."""

    num_rows: int = 0
    bad: list[str] = field(default_factory=list)  # "file:line: reason"
    dropped: Counter[str] = field(default_factory=Counter)
    counts: Counter[str] = field(default_factory=Counter)  # things worth knowing that lose no row
    unread: Counter[str] = field(default_factory=Counter)  # columns that nothing was made of

    def add_bad(self, origin: str, reason: str) -> None:
        """Counts a row that cannot be read."""
        self.bad.append(f"{origin}: {reason}")
