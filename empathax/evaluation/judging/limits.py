"""What a server may be asked a minute, and what all answers together may cost.

A chat server, and how much patience to have with it.
"""

from __future__ import annotations

import urllib.parse
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from empathax.errors import ConfigError, raise_all
from empathax.evaluation.judging.chat_requests import FAILED, ChatOutcome, ChatRequest

_PER_MILLION = 1e-6
_TOKENS_PER_MESSAGE = 8  # that a template puts around it, at most


class Pace:
    """Starts of requests, spread so that no minute has more of them or of their tokens than allowed (0: no limit)."""

    def __init__(
        self,
        requests_per_minute: float,
        tokens_per_minute: float,
        clock: Callable[[], float],
        sleep: Callable[[float], Awaitable[None]],
    ) -> None:
        self._seconds_a_request = 60.0 / requests_per_minute if requests_per_minute else 0.0
        self._seconds_a_token = 60.0 / tokens_per_minute if tokens_per_minute else 0.0
        self._clock, self._sleep = clock, sleep
        self._free_at = float("-inf")

    async def wait(self, request: ChatRequest) -> None:
        """Returns when `request` may start."""
        now = self._clock()
        start = max(now, self._free_at)
        most = sum(estimated_tokens(request))
        self._free_at = start + max(self._seconds_a_request, self._seconds_a_token * most)
        if start > now:
            await self._sleep(start - now)


@dataclass(frozen=True)
class Prices:
    """Of a million tokens, in any currency; without prices a budget is one of tokens."""

    prompt: float = 0.0
    answer: float = 0.0

    @property
    def unit(self) -> str:
        return "" if self.prompt or self.answer else " tokens"

    def cost(self, prompt_tokens: float, answer_tokens: float) -> float:
        """What so many tokens cost, or how many there are."""
        if self.unit:
            return prompt_tokens + answer_tokens
        return _PER_MILLION * (self.prompt * prompt_tokens + self.answer * answer_tokens)

    def in_words(self, cost: float) -> str:
        """A cost for people."""
        return f"{cost:,.0f} tokens" if self.unit else f"{cost:,.4f}"


class Budget:
    """What may be spent, and was. An answer counts once, also where it comes from a cache: it was paid for before, so
    that running a command again does not start a new budget. `most` = 0: no limit, only accounts."""

    def __init__(self, prices: Prices, most: float = 0.0) -> None:
        self.prices, self.most = prices, most
        self.spent = 0.0
        self.prompt_tokens = self.answer_tokens = 0
        self.reserved = 0.0
        self._counted: set[str] = set()

    def reserve(self, request: ChatRequest) -> bool:
        """Sets aside the most that `request` can cost; False, and nothing is, if that could pass the limit."""
        bound = self._bound(request)
        if self.most and self.spent + self.reserved + bound > self.most:
            return False
        self.reserved += bound
        return True

    def settle(self, key: str, request: ChatRequest, outcome: ChatOutcome) -> None:
        """Counts the outcome of a request that was reserved for."""
        self.reserved -= self._bound(request)
        self.count(key, request, outcome)

    def count(self, key: str, request: ChatRequest, outcome: ChatOutcome) -> None:
        """Counts an outcome; what a server does not state counts as the most it can be."""
        if key in self._counted or outcome.status == FAILED:
            return
        self._counted.add(key)
        prompt, answer = most_tokens(request)
        prompt = prompt if outcome.prompt_tokens is None else outcome.prompt_tokens
        answer = answer if outcome.completion_tokens is None else outcome.completion_tokens
        self.prompt_tokens += prompt
        self.answer_tokens += answer
        self.spent += self.prices.cost(prompt, answer)

    def facts(self) -> dict[str, float]:
        """The sums, as plain values; empty if nothing was asked of a server."""
        if not self._counted:
            return {}
        tokens = {"prompt_tokens": self.prompt_tokens, "answer_tokens": self.answer_tokens}
        return {"requests": len(self._counted), **tokens, "cost": round(self.spent, 6)}

    def in_words(self) -> str:
        """What was spent, and of how much."""
        of = f" of {self.prices.in_words(self.most)}" if self.most else ""
        return f"{self.prices.in_words(self.spent)}{of} spent"

    def _bound(self, request: ChatRequest) -> float:
        return self.prices.cost(*most_tokens(request))


def most_tokens(request: ChatRequest) -> tuple[int, int]:
    """Tokens of prompt and answer that no tokenizer of bytes or larger pieces goes beyond."""
    prompt = sum(len(message.content.encode("utf-8", "replace")) + _TOKENS_PER_MESSAGE for message in request.messages)
    return prompt, request.max_tokens


def estimated_tokens(request: ChatRequest) -> tuple[int, int]:
    """About the tokens of the prompt (four bytes of English each), and the most of the answer."""
    prompt, answer = most_tokens(request)
    extra = _TOKENS_PER_MESSAGE * len(request.messages)
    return (prompt - extra) // 4 + extra, answer


@dataclass(frozen=True)
class ServerOptions:
    """A server, and how much patience to have with it. Raises a ConfigError with everything that cannot work.

    Attributes:
        url: up to and with /v1, such as http://127.0.0.1:8000/v1.
        model: the name by which the server knows the model.
        key_variable: the environment variable with the API key; servers of one's own often need none.
        concurrency: requests under way at once.
        timeout_seconds: of one attempt, from the first byte sent to the last received.
        max_attempts: of one request.
        first_wait_seconds, longest_wait_seconds: between attempts. The wait doubles from one to the next, less a
            random part of up to half; what a server asks for with Retry-After is kept to, unless it is more than the
            longest wait, which ends the request.
        give_up_after: requests in a row that the server failed at before nothing more is sent. One that it turned down
            (HTTP 400) is not among them.
        max_failed_share: of the requests of a call, that may fail without an error.
        requests_per_minute, tokens_per_minute: what the server allows, attempts counted one by one and tokens as the
            prompt's estimate and the answer's limit; 0 = no limit.
    """

    url: str
    model: str
    key_variable: str = "OPENAI_API_KEY"
    concurrency: int = 8
    timeout_seconds: float = 120.0
    max_attempts: int = 6
    first_wait_seconds: float = 1.0
    longest_wait_seconds: float = 60.0
    give_up_after: int = 5
    max_failed_share: float = 0.0
    requests_per_minute: float = 0.0
    tokens_per_minute: float = 0.0

    def __post_init__(self) -> None:
        parts = urllib.parse.urlsplit(self.url)
        problems = []
        if parts.scheme not in ("http", "https") or not parts.hostname:
            problems.append(f"url = {self.url!r}: expected http:// or https:// and a host, up to and with /v1")
        elif parts.username or parts.password:
            problems.append(f"url: holds a user name or password; put a key into ${self.key_variable} instead")
        problems += ["model: no name given"] if not self.model.strip() else []
        for name in ("concurrency", "timeout_seconds", "max_attempts", "give_up_after"):
            value = getattr(self, name)
            problems += [f"{name} = {value}: expected more than 0"] if value <= 0 else []
        for name in ("requests_per_minute", "tokens_per_minute"):
            value = getattr(self, name)
            problems += [f"{name} = {value}: expected 0 (no limit) or more"] if value < 0 else []
        raise_all(ConfigError, "the chat server cannot be used", problems)
