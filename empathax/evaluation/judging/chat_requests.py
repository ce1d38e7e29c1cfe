"""What is asked of a chat server and what becomes of it: plain values, one outcome for every request."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from empathax.data.records import Message

ANSWERED, REFUSED, EMPTY, FAILED = "answered", "refused", "empty", "failed"
STATUSES = (ANSWERED, REFUSED, EMPTY, FAILED)


@dataclass(frozen=True)
class ChatRequest:
    """Messages to be answered, and how; `sample` numbers several answers to the same request (it is not sent)."""

    messages: tuple[Message, ...]
    max_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    sample: int = 0

    def payload(self, model: str) -> dict[str, Any]:
        """The body of the call. What a server takes for granted anyway is left out: not every server knows every field.

        The temperature is always said: servers differ in what they take where it is missing.
        """
        body: dict[str, Any] = {
            "model": model,
            "messages": [{"role": message.role, "content": message.content} for message in self.messages],
            "max_tokens": self.max_tokens,
            "temperature": self.temperature,
        }
        if self.top_p != 1.0:
            body["top_p"] = self.top_p
        if self.seed is not None:
            body["seed"] = self.seed
        if self.stop:
            body["stop"] = list(self.stop)
        return body

    def key(self, url: str, model: str) -> str:
        """What an answer is kept under: a digest of server, model, everything that is sent, and `sample`."""
        asked = {"url": url, "request": self.payload(model), "sample": self.sample}
        return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class ChatOutcome:
    """What became of a request.

    Attributes:
        status: "answered", "refused" (by a field of the answer or a content filter; a refusal in plain words is an
            answer), "empty" (nothing but white space) or "failed" (no usable answer after all attempts).
        text: the answer; "" unless answered.
        reason: why not, in words; "" if answered.
        finish_reason: as the server said it; "length" is an answer cut off at `max_tokens`.
        prompt_tokens, completion_tokens: as the server counted them; None where it did not.
        attempts: how often the server was asked; 0 for an answer out of the cache.
    """

    status: str
    text: str = ""
    reason: str = ""
    finish_reason: str = ""
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    attempts: int = 0

    @property
    def is_cached(self) -> bool:
        return self.attempts == 0 and self.status != FAILED


class Answerer(Protocol):
    """Whoever answers requests: a chat server, or a model of one's own."""

    def complete(
        self, requests: Sequence[ChatRequest], on_progress: Callable[[int], None] | None = None
    ) -> list[ChatOutcome]:
        """The outcome of every request, in order."""
        ...


@dataclass
class ChatTally:
    """What a server was asked and what that cost, summed over calls. Tokens of cached answers were paid before."""

    statuses: Counter[str] = field(default_factory=Counter)
    num_cached: int = 0
    num_shared: int = 0  # requests equal to another of the same call: asked once
    num_cut: int = 0
    retries: Counter[str] = field(default_factory=Counter)  # attempts in vain, by reason
    prompt_tokens: int = 0
    completion_tokens: int = 0
    num_without_usage: int = 0

    def add(self, outcome: ChatOutcome) -> None:
        """Counts one outcome."""
        self.statuses[outcome.status] += 1
        self.num_cut += outcome.finish_reason == "length"
        if outcome.is_cached:
            self.num_cached += 1
        elif outcome.status != FAILED:
            self.prompt_tokens += outcome.prompt_tokens or 0
            self.completion_tokens += outcome.completion_tokens or 0
            self.num_without_usage += outcome.completion_tokens is None

    def in_words(self) -> str:
        """One line for a log."""
        found = ", ".join(f"{self.statuses[status]:,} {status}" for status in STATUSES if self.statuses[status])
        parts = [f"{self.statuses.total():,} requests: {found or 'none'}"]
        extra = ((self.num_cached, "from the cache"), (self.num_cut, "cut at the token limit"))
        parts += [f"{number:,} {what}" for number, what in extra if number]
        if self.retries:
            parts.append("retried: " + ", ".join(f"{number} x {why}" for why, number in self.retries.most_common(5)))
        parts.append(f"{self.prompt_tokens:,} + {self.completion_tokens:,} new tokens (prompt + answer)")
        if self.num_without_usage:
            parts.append(f"{self.num_without_usage:,} answers without a token count")
        return "; ".join(parts)
