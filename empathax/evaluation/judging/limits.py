"""What a server may be asked a minute, and what all answers together may cost."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

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
