"""A chat server, and how much patience to have with it."""

from __future__ import annotations

import urllib.parse
from dataclasses import dataclass

from empathax.errors import ConfigError, raise_all


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
