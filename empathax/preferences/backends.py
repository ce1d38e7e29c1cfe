"""Who writes and judges: any OpenAI-compatible server, or a model in this process (local_backend.py)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from empathax.evaluation.judging.chat_requests import ChatOutcome, ChatRequest, ChatTally
from empathax.evaluation.judging.chat_server import ChatServer


class Backend(Protocol):
    """Answers requests, each once: what it answered before comes out of its cache."""

    @property
    def tally(self) -> ChatTally:
        """What was asked so far."""
        ...

    @property
    def identity(self) -> Mapping[str, str]:
        """Who answers, for provenance and settings."""
        ...

    def key(self, request: ChatRequest) -> str:
        """What the answer to `request` is kept under."""
        ...

    def time_of(self, key: str) -> float | None:
        """When that answer was given, in seconds since 1970; None if it was not, or nobody knows."""
        ...

    def complete(
        self, requests: Sequence[ChatRequest], on_progress: Callable[[int], None] | None = None
    ) -> list[ChatOutcome]:
        """The outcome of every request, in order; errors as `ChatServer.complete`."""
        ...


class ServerBackend:
    """A chat server with its cache."""

    def __init__(self, server: ChatServer) -> None:
        self.server = server

    @property
    def tally(self) -> ChatTally:
        return self.server.tally

    @property
    def identity(self) -> Mapping[str, str]:
        return {"model": self.server.options.model, "server": self.server.options.url}

    def key(self, request: ChatRequest) -> str:
        return request.key(self.server.options.url, self.server.options.model)

    def time_of(self, key: str) -> float | None:
        return self.server.cache.time_of(key) if self.server.cache else None

    def complete(
        self, requests: Sequence[ChatRequest], on_progress: Callable[[int], None] | None = None
    ) -> list[ChatOutcome]:
        return self.server.complete(requests, on_progress)
