"""Any OpenAI-compatible chat server: requests in, outcomes in the same order, each asked for and paid for once."""

from __future__ import annotations

import asyncio
import os
import random
import time
import urllib.parse
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from empathax.errors import ConfigError, DataError, EmpathaxError, raise_all
from empathax.evaluation.judging.chat_requests import FAILED, ChatOutcome, ChatRequest, ChatTally
from empathax.evaluation.judging.limits import Budget, Pace
from empathax.evaluation.judging.openai_client import OpenAIClient, Trouble, require_openai
from empathax.evaluation.judging.response_cache import ResponseCache


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


class BudgetReached(DataError):
    """The next request could cost more than is left."""


@dataclass
class _Call:
    """A call of `complete` under way."""

    pending: list[tuple[str, ChatRequest]]  # the next one last
    outcomes: dict[str, ChatOutcome]
    on_done: Callable[[int], None] | None
    failed_in_a_row: int = 0


class _GaveUp(Exception):
    """Nothing more will be sent; the message says why."""

    def __init__(self, reason: str, is_fatal: bool) -> None:
        super().__init__(reason)
        self.is_fatal = is_fatal


class ChatServer:
    """Sends requests to one server, several at once, with retries, and keeps the answers in `cache_dir` if given.

    Nothing is sent that could cost more than is left of `budget`. `tally` counts over all calls. `sleep`, `clock`
    (seconds, any origin) and `random_share` (in [0, 1)) are for tests.
    """

    def __init__(
        self,
        options: ServerOptions,
        cache_dir: Path | None = None,
        *,
        budget: Budget | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        clock: Callable[[], float] = time.monotonic,
        random_share: Callable[[], float] = random.random,
    ) -> None:
        require_openai()
        self.options = options
        self.tally = ChatTally()
        self.budget = budget
        self.cache = ResponseCache(cache_dir) if cache_dir else None
        self._sleep, self._clock, self._random_share = sleep, clock, random_share
        self._quiet_until = float("-inf")  # the server asked all of us to wait
        self._pace = Pace(options.requests_per_minute, options.tokens_per_minute, clock, sleep)

    def complete(
        self, requests: Sequence[ChatRequest], on_progress: Callable[[int], None] | None = None
    ) -> list[ChatOutcome]:
        """The outcome of every request, in order. Equal requests are sent once, cached ones not at all.

        `on_progress` is told how many different requests are done.

        Raises:
            ConfigError: the server knows no such model, does not accept the key, or `openai` is not installed.
            BudgetReached: the budget does not allow for the rest.
            DataError: the server is down, or more requests failed than `max_failed_share` allows; with counts. All
                answers so far are in the cache: the same call again goes on from there.
        """
        keys = [request.key(self.options.url, self.options.model) for request in requests]
        unique = dict(zip(keys, requests, strict=True))
        outcomes = {key: kept for key in unique if self.cache and (kept := self.cache.get(key))}
        if self.budget:
            for key, kept in outcomes.items():
                self.budget.count(key, unique[key], kept)
        pending = [(key, request) for key, request in unique.items() if key not in outcomes]
        call = _Call(pending[::-1], outcomes, on_progress)
        gave_up: _GaveUp | None = None
        if pending:
            try:
                asyncio.run(self._run(call))
            except _GaveUp as error:
                gave_up = error
        for outcome in outcomes.values():
            self.tally.add(outcome)
        self.tally.num_shared += len(requests) - len(unique)
        self._check(len(unique), outcomes, gave_up)
        return [outcomes[key] for key in keys]

    async def _run(self, call: _Call) -> None:
        options, key = self.options, os.environ.get(self.options.key_variable, "")
        raised: Exception | None = None
        async with OpenAIClient(options.url, options.model, key or "none", options.timeout_seconds) as client:
            try:
                async with asyncio.TaskGroup() as group:
                    for _ in range(min(options.concurrency, len(call.pending))):
                        group.create_task(self._work(client, call))
            except* (_GaveUp, EmpathaxError) as errors:
                raised = errors.exceptions[0]  # the first to be raised; it ended the others
        if raised:
            raise raised

    async def _work(self, client: OpenAIClient, call: _Call) -> None:
        """Takes one pending request after another until there is none, or none that can be paid for."""
        while call.pending:
            key, request = call.pending[-1]
            if self.budget and not self.budget.reserve(request):
                return  # what others have under way may cost less than is set aside for it: they ask again
            call.pending.pop()
            outcome, is_unwell = await self._answer(client, request)
            call.outcomes[key] = outcome
            if self.budget:
                self.budget.settle(key, request, outcome)
            if self.cache:
                self.cache.put(key, self.options.url, self.options.model, request, outcome)
            call.failed_in_a_row = call.failed_in_a_row + 1 if is_unwell else 0
            if call.failed_in_a_row >= self.options.give_up_after and call.pending:
                raise _GaveUp(f"{call.failed_in_a_row} requests failed one after another", is_fatal=False)
            if call.on_done:
                call.on_done(len(call.outcomes))

    async def _answer(self, client: OpenAIClient, request: ChatRequest) -> tuple[ChatOutcome, bool]:
        """The outcome, and whether the server failed (not: turned this one request down)."""
        for attempt in range(1, self.options.max_attempts + 1):
            await self._pace.wait(request)
            while (wait := self._quiet_until - self._clock()) > 0:
                await self._sleep(wait)
            try:
                return replace(await client.ask(request), attempts=attempt), False
            except Trouble as trouble:
                last = trouble
            if last.is_fatal:
                raise _GaveUp(str(last), is_fatal=True)
            asks_too_much = (last.retry_after or 0) > self.options.longest_wait_seconds
            if not last.may_pass or asks_too_much or attempt == self.options.max_attempts:
                break
            self.tally.retries[str(last).partition(":")[0]] += 1
            await self._wait(attempt, last.retry_after)
        asked = f"; it asks to wait {last.retry_after:,.0f} s" if last.retry_after else ""
        return ChatOutcome(FAILED, reason=f"{last}{asked}", attempts=attempt), last.may_pass

    async def _wait(self, attempt: int, retry_after: float | None) -> None:
        options = self.options
        backoff = min(options.longest_wait_seconds, options.first_wait_seconds * 2 ** (attempt - 1))
        seconds = backoff * (1 - self._random_share() / 2)
        if retry_after is not None:
            # Asked of everyone, not of this request alone; the random part keeps all from coming back at once.
            self._quiet_until = max(self._quiet_until, self._clock() + retry_after)
            seconds = retry_after + options.first_wait_seconds * self._random_share() / 2
        await self._sleep(seconds)

    def _check(self, num_asked: int, outcomes: dict[str, ChatOutcome], gave_up: _GaveUp | None) -> None:
        failed = [outcome for outcome in outcomes.values() if outcome.status == FAILED]
        where = f"{self.options.url} (model {self.options.model})"
        if gave_up and gave_up.is_fatal:
            hint = f"check the address, the model's name and the key in ${self.options.key_variable}"
            raise ConfigError(f"{where}: {gave_up}; {hint}. {self._kept(len(outcomes) - len(failed))}")
        if self.budget and not gave_up and len(outcomes) < num_asked:
            raise BudgetReached(
                f"{where}: the budget does not allow for more, {self.budget.in_words()}; of {num_asked} different "
                f"requests {num_asked - len(outcomes)} were not sent. Raise --budget. "
                f"{self._kept(len(outcomes) - len(failed))}"
            )
        if not gave_up and len(failed) <= self.options.max_failed_share * num_asked:
            return
        reasons = Counter(f"{failure.reason} (after {failure.attempts} attempts)" for failure in failed)
        listed = "".join(f"\n  - {number} x {reason}" for reason, number in reasons.most_common(5))
        counts = f"{len(outcomes) - len(failed)} answered, {len(failed)} failed"
        if unsent := num_asked - len(outcomes):
            counts += f", {unsent} given up"
        why = f"{gave_up}; " if gave_up else ""
        turned_down = "" if gave_up else ", or let a share of the requests fail (--max-failed-share)"
        raise DataError(
            f"{where}: {why}of {num_asked} different requests {counts}. See whether the server is well{turned_down}. "
            f"{self._kept(len(outcomes) - len(failed))}{listed}"
        )

    def _kept(self, num_answered: int) -> str:
        if self.cache:
            return f"Run the same again to go on: the {num_answered} answers are kept in {self.cache.path.parent}"
        return f"The {num_answered} answers are lost: without a cache nothing is kept"


def server_of_flags(
    name: str, flags: Mapping[str, Any], budget: Budget | None = None, **options: Any
) -> ChatServer | None:
    """The server of a command's --NAME, --NAME-model, --NAME-key-variable and --response-cache; None without the first
    two. `options` are further ones of ServerOptions. Raises a ConfigError if one of them is missing, or the server
    cannot work."""
    url, model = flags[name], flags[f"{name}_model"]
    if bool(url) != bool(model):
        raise ConfigError(f"--{name}=URL and --{name}-model=NAME belong together: give both")
    if not url:
        return None
    server = ServerOptions(url, model, key_variable=flags[f"{name}_key_variable"], **options)
    return ChatServer(server, flags["response_cache"], budget=budget)
