"""One call of an OpenAI-compatible chat server: the answer, or a `Trouble` that says whether asking again may help."""

from __future__ import annotations

import asyncio
import email.utils
import importlib.util
import json
import re
import time
from collections.abc import Mapping
from typing import Any

from empathax.errors import ConfigError
from empathax.evaluation.judging.chat_requests import ANSWERED, EMPTY, REFUSED, ChatOutcome, ChatRequest

_RETRIED = (408, 409, 425, 429)  # and every 5xx
_SURROGATES = re.compile("[\ud800-\udfff]")
_NOT_SENT = "cannot be sent"


class Trouble(Exception):
    """An attempt without a usable answer; the message is the reason.

    Attributes:
        may_pass: asking again may help.
        is_fatal: no request to this server can succeed.
        retry_after: the seconds for which the server asked to be left alone, or None.
    """

    def __init__(
        self, reason: str, *, may_pass: bool = False, is_fatal: bool = False, retry_after: float | None = None
    ) -> None:
        super().__init__(reason)
        self.may_pass, self.is_fatal, self.retry_after = may_pass, is_fatal, retry_after


def require_openai() -> None:
    """Raises a ConfigError if the package `openai` is not installed."""
    if importlib.util.find_spec("openai") is None:
        raise ConfigError("a chat server needs the package openai: pip install 'empathax[prefer]'")


class OpenAIClient:
    """The `openai` package's client for one server and model; use it as an async context manager, in one event loop.

    Reasons never hold the key.
    """

    def __init__(self, url: str, model: str, api_key: str, timeout_seconds: float) -> None:
        import openai  # takes half a second

        self._openai = openai
        # ChatServer decides on retries and counts them; here every attempt is one attempt.
        self._client = openai.AsyncOpenAI(base_url=url, api_key=api_key, timeout=timeout_seconds, max_retries=0)
        self._model, self._api_key, self._timeout_seconds = model, api_key, timeout_seconds
        self._limit_field = "max_tokens"

    async def __aenter__(self) -> OpenAIClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._client.close()

    async def ask(self, request: ChatRequest) -> ChatOutcome:
        """One attempt, ended after `timeout_seconds` in all (a server may also trickle). Raises Trouble."""
        try:
            async with asyncio.timeout(self._timeout_seconds):
                return await self._call(request)
        except TimeoutError:
            raise Trouble(f"no answer within {self._timeout_seconds:g} s", may_pass=True) from None

    async def _call(self, request: ChatRequest) -> ChatOutcome:
        payload = request.payload(self._model)
        payload[self._limit_field] = payload.pop("max_tokens")
        openai = self._openai
        try:
            raw = await self._client.chat.completions.with_raw_response.create(**payload)
        except openai.APIStatusError as error:
            if self._names_other_limit(error):
                return await self._call(request)
            return self._after_status(error)
        except openai.APITimeoutError:
            raise TimeoutError from None
        except openai.APIConnectionError as error:
            raise Trouble(f"no connection ({_cause(error)})", may_pass=True) from None
        except UnicodeEncodeError:
            raise Trouble(f"{_NOT_SENT}: the messages hold half of a surrogate pair, which is not text") from None
        return outcome_of(raw.http_response.text)

    def _names_other_limit(self, error: Any) -> bool:
        """Newer models of OpenAI take the limit under another name only."""
        if self._limit_field != "max_tokens" or error.status_code != 400 or "max_completion_tokens" not in str(error):
            return False
        self._limit_field = "max_completion_tokens"
        return True

    def _after_status(self, error: Any) -> ChatOutcome:
        """The outcome of an HTTP error that is a refusal; raises Trouble for all others."""
        status, code = error.status_code, error.code or ""
        said = self._shortened(_message(error.body) or error.response.text)
        if code in ("content_filter", "content_policy_violation"):
            return ChatOutcome(REFUSED, reason=said or code, finish_reason=code)
        if status in (401, 403):
            raise Trouble(f"HTTP {status}, the key is missing or not accepted: {said}", is_fatal=True)
        if status == 404:
            raise Trouble(f"HTTP 404, no such model or address (most end in /v1): {said}", is_fatal=True)
        if code == "insufficient_quota":
            raise Trouble(f"HTTP {status}, the account is used up: {said}", is_fatal=True)
        may_pass = status in _RETRIED or status >= 500
        retry_after = _retry_after(error.response.headers) if may_pass else None
        raise Trouble(f"HTTP {status}: {said}".rstrip(": "), may_pass=may_pass, retry_after=retry_after)

    def _shortened(self, text: str, limit: int = 200) -> str:
        text = " ".join(text.split())
        if self._api_key:
            text = text.replace(self._api_key, "[key]")
        return text if len(text) <= limit else text[: limit - 1] + "…"


def outcome_of(body: str) -> ChatOutcome:
    """The outcome in the body of an answer. Raises a Trouble that may pass if it is none."""
    try:
        answer = json.loads(body)
    except (ValueError, RecursionError):
        raise Trouble("the answer is not JSON, or cut off", may_pass=True) from None
    try:
        choice = answer["choices"][0]
        message = choice["message"]
        content, refusal = message.get("content"), message.get("refusal")
        finish_reason = str(choice.get("finish_reason") or "")
    except (KeyError, IndexError, TypeError, AttributeError):
        said = _message(answer)
        raise Trouble(f"the answer holds no message{f': {said[:200]}' if said else ''}", may_pass=True) from None
    if content is not None and not isinstance(content, str):
        raise Trouble(f"the answer's content is {type(content).__name__}, expected text", may_pass=True)
    prompt_tokens, completion_tokens = _usage(answer.get("usage"))
    text = _SURROGATES.sub("�", content or "").strip()
    status, reason = ANSWERED, ""
    if refusal or finish_reason == "content_filter":
        status, reason, text = REFUSED, str(refusal or finish_reason), ""
    elif not text:
        status, reason = EMPTY, f"nothing but white space (finish_reason {finish_reason or 'not given'})"
    return ChatOutcome(status, text, reason, finish_reason, prompt_tokens, completion_tokens, attempts=1)


def _usage(value: Any) -> tuple[int | None, int | None]:
    counts = value if isinstance(value, dict) else {}
    found = [counts.get(name) for name in ("prompt_tokens", "completion_tokens")]
    prompt, completion = (count if type(count) is int and count >= 0 else None for count in found)
    return prompt, completion


def _message(body: Any) -> str:
    """What an error's body says, in OpenAI's form or as plain text; "" if nothing."""
    if isinstance(body, dict):
        inner = body.get("error", body)
        body = inner.get("message") or inner.get("detail") if isinstance(inner, dict) else inner
    return body if isinstance(body, str) else ""


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds of Retry-After (RFC 9110, section 10.2.3: seconds, or a date by the server's own clock)."""
    value = headers.get("retry-after", "").strip()
    if re.fullmatch(r"\d+(\.\d+)?", value):
        return float(value)
    until, asked_at = _seconds(value), _seconds(headers.get("date", ""))
    return None if until is None else max(0.0, until - (time.time() if asked_at is None else asked_at))


def _seconds(date: str) -> float | None:
    try:
        return email.utils.parsedate_to_datetime(date).timestamp()
    except (ValueError, TypeError):
        return None


def _cause(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    return str(error) or type(error).__name__
