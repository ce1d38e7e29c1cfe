"""Any OpenAI-compatible chat server: requests in, outcomes in the same order, each asked for and paid for once."""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from empathax.errors import ConfigError, DataError, EmpathaxError
from empathax.evaluation.judging.chat_requests import FAILED, ChatOutcome, ChatRequest, ChatTally
from empathax.evaluation.judging.limits import Budget, Pace, ServerOptions
from empathax.evaluation.judging.openai_client import OpenAIClient, Trouble, require_openai
from empathax.evaluation.judging.response_cache import ResponseCache


@dataclass
class _Progress:
    """A call under way."""

    pending: list[tuple[str, ChatRequest]]  # the next one last
    outcomes: dict[str, ChatOutcome]
    on_done: Callable[[int], None] | None
    failed_in_a_row: int = 0


class _GaveUp(Exception):
    """Nothing more will be sent; the message says why."""

    def __init__(self, reason: str, is_fatal: bool) -> None:
        super().__init__(reason)
        self.is_fatal = is_fatal


class BudgetReached(DataError):
    """The next request could cost more than is left."""


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
        progress = _Progress(pending[::-1], outcomes, on_progress)
        gave_up: _GaveUp | None = None
        if pending:
            try:
                asyncio.run(self._run(progress))
            except _GaveUp as error:
                gave_up = error
        for outcome in outcomes.values():
            self.tally.add(outcome)
        self.tally.num_shared += len(requests) - len(unique)
        self._check(len(unique), outcomes, gave_up)
        return [outcomes[key] for key in keys]

    async def _run(self, progress: _Progress) -> None:
        options, key = self.options, os.environ.get(self.options.key_variable, "")
        raised: Exception | None = None
        async with OpenAIClient(options.url, options.model, key or "none", options.timeout_seconds) as client:
            try:
                async with asyncio.TaskGroup() as group:
                    for _ in range(min(options.concurrency, len(progress.pending))):
                        group.create_task(self._work(client, progress))
            except* (_GaveUp, EmpathaxError) as errors:
                raised = errors.exceptions[0]  # the first to be raised; it ended the others
        if raised:
            raise raised

    async def _work(self, client: OpenAIClient, progress: _Progress) -> None:
        """Takes one pending request after another until there is none, or none that can be paid for."""
        while progress.pending:
            key, request = progress.pending[-1]
            if self.budget and not self.budget.reserve(request):
                return  # what others have under way may cost less than is set aside for it: they ask again
            progress.pending.pop()
            outcome, is_unwell = await self._answer(client, request)
            progress.outcomes[key] = outcome
            if self.budget:
                self.budget.settle(key, request, outcome)
            if self.cache:
                self.cache.put(key, self.options.url, self.options.model, request, outcome)
            progress.failed_in_a_row = progress.failed_in_a_row + 1 if is_unwell else 0
            if progress.failed_in_a_row >= self.options.give_up_after and progress.pending:
                raise _GaveUp(f"{progress.failed_in_a_row} requests failed one after another", is_fatal=False)
            if progress.on_done:
                progress.on_done(len(progress.outcomes))

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
