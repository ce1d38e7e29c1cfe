"""Who writes and judges: any OpenAI-compatible server, or a model in this process with the same cache of answers."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from empathax.config import Config, EvalOptions
from empathax.evaluation.generation.replies import generate_ids, stop_token_ids
from empathax.evaluation.generation.speaker import Speaker, open_speaker
from empathax.evaluation.judging.chat_requests import ANSWERED, EMPTY, ChatOutcome, ChatRequest, ChatTally
from empathax.evaluation.judging.chat_server import ChatServer
from empathax.evaluation.judging.response_cache import ResponseCache
from empathax.models.weights.source import resolve_model

_URL = "in-process"  # in place of a server's


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


class LocalBackend:
    """The model at `path`, loaded when the first answer is not in the cache.

    An answer depends on its request alone. Requests are answered in batches that are cut the same way whether or not
    some of them were answered before, so that a run that was stopped and goes on says bit for bit the same.
    """

    def __init__(self, path: str, config: Config, cache_dir: Path, chat_template: str = "auto") -> None:
        self._config, self._cache = config, ResponseCache(cache_dir)
        self._load = open_speaker(path, config, chat_template)
        self._speaker: Speaker | None = None
        self._name = f"{path}@{resolve_model(path).fingerprint()[:16]}"
        self._decoding = _decoding(config, chat_template)
        self.tally = ChatTally()

    @property
    def identity(self) -> Mapping[str, str]:
        return {"model": self._name, "server": _URL, "decoding": self._decoding}

    def key(self, request: ChatRequest) -> str:
        return request.key(_URL, f"{self._name} {self._decoding}")

    def time_of(self, key: str) -> float | None:
        return self._cache.time_of(key)

    def complete(
        self, requests: Sequence[ChatRequest], on_progress: Callable[[int], None] | None = None
    ) -> list[ChatOutcome]:
        """See Backend. Raises a DataError for messages that the chat template refuses, or that are too long."""
        unique = {self.key(request): request for request in requests}
        known = {key for key in unique if self._cache.get(key)}
        num_done = len(known)
        if len(known) < len(unique):
            for batch in self._batches(unique):
                num_done += self._answer(batch, unique)
                if on_progress:
                    on_progress(num_done)
        outcomes = {key: self._kept(key) for key in unique}
        for key, outcome in outcomes.items():
            self.tally.add(outcome if key in known else dataclasses.replace(outcome, attempts=1))
        self.tally.num_shared += len(requests) - len(unique)
        return [outcomes[self.key(request)] for request in requests]

    def _kept(self, key: str) -> ChatOutcome:
        outcome = self._cache.get(key)
        assert outcome is not None
        return outcome

    def _batches(self, unique: Mapping[str, ChatRequest]) -> Iterator[list[tuple[str, list[int]]]]:
        """(key, token ids) of requests that are sampled alike, what begins alike side by side."""
        speaker = self._loaded()
        groups: dict[EvalOptions, list[tuple[str, list[int]]]] = {}
        for key, request in unique.items():
            ids = speaker.encode(request.messages, request.max_tokens)
            groups.setdefault(self._options(request), []).append((key, ids))
        size = self._config.eval.generation_batch
        for group in groups.values():
            group.sort(key=lambda item: (item[1], item[0]))
            for start in range(0, len(group), size):
                yield group[start : start + size]

    def _answer(self, batch: list[tuple[str, list[int]]], unique: Mapping[str, ChatRequest]) -> int:
        """Answers a batch unless all of it is known; returns how many answers are new."""
        new = [key for key, _ in batch if not self._cache.get(key)]
        if not new:
            return 0
        speaker, options = self._loaded(), self._options(unique[batch[0][0]])
        stop_ids = stop_token_ids(speaker.template, options.stop_tokens)
        config = dataclasses.replace(self._config, eval=options)
        prompts = [ids for _, ids in batch]
        streams = [int(key[:7], 16) for key, _ in batch]  # 28 bits
        answered = generate_ids(speaker.params, speaker.model_config, stop_ids, prompts, config, stream_ids=streams)
        for index, token_ids in answered:
            key, prompt = batch[index]
            if not self._cache.get(key):
                outcome = self._outcome(token_ids, len(prompt), options.max_new_tokens)
                self._cache.put(key, _URL, self._name, unique[key], outcome)
        return len(new)

    def _outcome(self, token_ids: list[int], num_prompt_tokens: int, most: int) -> ChatOutcome:
        text = self._loaded().template.tokenizer.decode(token_ids, skip_special_tokens=True).strip()
        return ChatOutcome(
            status=ANSWERED if text else EMPTY,
            text=text,
            reason="" if text else "nothing but white space",
            finish_reason="length" if len(token_ids) == most else "stop",
            prompt_tokens=num_prompt_tokens,
            completion_tokens=len(token_ids),
            attempts=1,
        )

    def _options(self, request: ChatRequest) -> EvalOptions:
        return dataclasses.replace(
            self._config.eval,
            max_new_tokens=request.max_tokens,
            temperature=request.temperature,
            top_p=request.top_p,
            stop_tokens=(*self._config.eval.stop_tokens, *request.stop),
            num_samples=1,
        )

    def _loaded(self) -> Speaker:
        if self._speaker is None:
            self._speaker = self._load()
        return self._speaker


def _decoding(config: Config, chat_template: str) -> str:
    """Every setting beside the request's own that an answer depends on."""
    named = {
        "seed": config.seed,
        **{name: getattr(config.eval, name) for name in ("top_k", "min_p", "repetition_penalty", "stop_tokens")},
        **{name: getattr(config.model, name) for name in ("param_dtype", "compute_dtype")},
        "chat_template": chat_template,
        **{name: getattr(config.data, name) for name in ("chat_template_kwargs", "template_date")},
    }
    return " ".join(f"{name}={value!r}" for name, value in named.items())
