"""What a model is asked to write for a context: a reply per level of validation, one per style, or several samples."""

from __future__ import annotations

import functools
import hashlib
import importlib.resources
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from empathax.data.records import Message
from empathax.evaluation.judging.chat_requests import ANSWERED, ChatOutcome, ChatRequest
from empathax.evaluation.judging.server_replies import opened
from empathax.evaluation.metrics.levels import LEVELS
from empathax.preferences.backends import Backend
from empathax.preferences.filters import is_leaked, is_refusal
from empathax.preferences.pairs import Candidate, Context

STYLES = ("supportive", "prescriptive")


@dataclass(frozen=True)
class Variant:
    """One way in which a reply is asked for.

    Attributes:
        name: "listening", ..., "supportive", ..., "sample 0", ...
        system: the system message; None for none.
        prompt: the prompt's name for provenance.
        sample: the number of the answer, where the same request is made several times.
    """

    name: str
    system: str | None
    prompt: str
    sample: int = 0

    @property
    def version(self) -> str:
        """Twelve hex digits that change with the system message."""
        return hashlib.sha256((self.system or "").encode()).hexdigest()[:12]


@dataclass(frozen=True)
class ReplyOptions:
    """How replies are asked for. `history_turns`: turns of the dialogue that are shown, the last ones; 0 = all."""

    seed: int = 0
    temperature: float = 0.7
    top_p: float = 1.0
    max_tokens: int = 256
    history_turns: int = 0
    opening_user_turn: str = "Hello."


@dataclass(frozen=True)
class Written:
    """What a model wrote for one context.

    Attributes:
        candidates: replies that can be ranked, in the order they were asked for.
        left_out: (why, reply) for those that decline in plain words ("refusal") or show a prompt ("template").
        statuses: of every request: answered, refused, empty or failed.
    """

    candidates: tuple[Candidate, ...]
    left_out: tuple[tuple[str, Candidate], ...]
    statuses: tuple[str, ...]

    @property
    def replies(self) -> Iterator[Candidate]:
        """All replies, also those that were left out."""
        yield from self.candidates
        for _, reply in self.left_out:
            yield reply


def variants(kind: str, num_samples: int = 4, system: str | None = None) -> list[Variant]:
    """The replies that are asked for in each context; `num_samples` and `system` are those of "samples"."""
    if kind == "levels":
        return [
            Variant(level, f"{prompt_text('supporter')}\n\n{prompt_text(f'level_{level}')}", f"level_{level}")
            for level in LEVELS
        ]
    if kind == "styles":
        return [Variant(style, prompt_text(f"style_{style}"), f"style_{style}") for style in STYLES]
    return [Variant(f"sample {number}", system, "system_prompt", number) for number in range(num_samples)]


@functools.cache
def prompt_text(name: str) -> str:
    """The text of prompts/NAME.md."""
    place = importlib.resources.files("empathax.preferences") / "prompts" / f"{name}.md"
    return " ".join(place.read_text(encoding="utf-8").replace("\n\n", "\0").split()).replace("\0", "\n\n")


def candidate_request(context: Context, variant: Variant, options: ReplyOptions) -> ChatRequest:
    """The request for one reply: the variant's system message, then the dialogue so far as chat turns."""
    turns = context.prompt[-options.history_turns or None :]
    system = (Message("system", variant.system),) if variant.system else ()
    return ChatRequest(
        messages=opened((*system, *turns), options.opening_user_turn),
        max_tokens=options.max_tokens,
        temperature=options.temperature,
        top_p=options.top_p,
        seed=options.seed + variant.sample,
        sample=variant.sample,
    )


def write_candidates(
    backend: Backend,
    contexts: Sequence[Context],
    asked: Sequence[Variant],
    options: ReplyOptions,
    on_progress: Callable[[int], None] | None = None,
) -> list[Written]:
    """For each context what was written for it; `on_progress` gets the number of requests done.

    Raises ConfigError and DataError as `ChatServer.complete`.
    """
    requests = [candidate_request(context, variant, options) for context in contexts for variant in asked]
    outcomes = backend.complete(requests, on_progress)
    found = []
    for number in range(len(contexts)):
        part = slice(number * len(asked), (number + 1) * len(asked))
        replies = [
            Candidate(outcome.text, _source(backend, variant, request, outcome))
            for variant, request, outcome in zip(asked, requests[part], outcomes[part], strict=True)
            if outcome.status == ANSWERED
        ]
        judged = [(_why_left_out(reply.text), reply) for reply in replies]
        found.append(
            Written(
                candidates=tuple(reply for why, reply in judged if not why),
                left_out=tuple((why, reply) for why, reply in judged if why),
                statuses=tuple(outcome.status for outcome in outcomes[part]),
            )
        )
    return found


def _why_left_out(text: str) -> str:
    if is_refusal(text):
        return "refusal"
    return "template" if is_leaked(text) else ""


def _source(backend: Backend, variant: Variant, request: ChatRequest, outcome: ChatOutcome) -> Mapping[str, Any]:
    key = backend.key(request)
    return {
        "by": "model",
        **backend.identity,
        "variant": variant.name,
        "prompt": variant.prompt,
        "prompt_version": variant.version,
        "seed": request.seed,
        "temperature": request.temperature,
        "top_p": request.top_p,
        "finish_reason": outcome.finish_reason,
        "prompt_tokens": outcome.prompt_tokens,
        "completion_tokens": outcome.completion_tokens,
        "response": key,
        "time": backend.time_of(key),
    }
