"""What a model is asked to write for a context: a reply per level of validation, one per style, or several samples.

What was written and how it was ranked, as files: candidates.jsonl, and review.csv where people rank.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.resources
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from empathax.data.records import Message
from empathax.evaluation import output
from empathax.evaluation.judging.chat_requests import ANSWERED, ChatOutcome, ChatRequest
from empathax.evaluation.judging.server_replies import opened
from empathax.evaluation.metrics.levels import LEVELS
from empathax.preferences.backends import Backend
from empathax.preferences.contexts import Candidate, Context
from empathax.preferences.filters import is_leaked, is_refusal
from empathax.preferences.ranking import Ranker, Ranking, Task
from empathax.preferences.review import HumanRanker, write_review

KINDS = ("levels", "styles", "samples")
STYLES = ("supportive", "prescriptive")


@dataclass(frozen=True)
class Variant:
    """One way in which a reply is asked for.

    Attributes:
        name: "listening", ..., "supportive", ..., "sample 0", ...
        system: the system message; None for none.
        prompt: the prompt's name for provenance.
        sample: tells several answers to the same request apart.
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
class Sampling:
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


def candidate_request(context: Context, variant: Variant, sampling: Sampling) -> ChatRequest:
    """The request for one reply: the variant's system message, then the dialogue so far as chat turns."""
    turns = context.prompt[-sampling.history_turns or None :]
    system = (Message("system", variant.system),) if variant.system else ()
    return ChatRequest(
        messages=opened((*system, *turns), sampling.opening_user_turn),
        max_tokens=sampling.max_tokens,
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        seed=sampling.seed + variant.sample,
        sample=variant.sample,
    )


def write_candidates(
    backend: Backend,
    contexts: Sequence[Context],
    asked: Sequence[Variant],
    sampling: Sampling,
    on_progress: Callable[[int], None] | None = None,
) -> list[Written]:
    """For each context what was written for it; `on_progress` is told how many requests are done.

    Raises ConfigError and DataError as `ChatServer.complete`.
    """
    requests = [candidate_request(context, variant, sampling) for context in contexts for variant in asked]
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


CANDIDATES, REVIEW = "candidates.jsonl", "review.csv"


@dataclass(frozen=True)
class Judged:
    """A context with what was written for it, and every ranker's view of the candidates. `is_ranked`: whether all
    rankers have one; people may not have come to it yet."""

    task: Task
    written: Written
    rankings: tuple[Ranking, ...]
    is_ranked: bool

    @property
    def replies(self) -> Iterator[Candidate]:
        """All replies, also those that were left out."""
        yield from self.written.candidates
        for _, reply in self.written.left_out:
            yield reply


def write_files(out: Path, judged: Mapping[str, Sequence[Judged]], rankers: Sequence[Ranker]) -> None:
    """Writes the files of all splits. Raises a ConfigError if `out` has a review.csv with ranks of other replies."""
    if any(isinstance(ranker, HumanRanker) for ranker in rankers):
        write_review(out / REVIEW, [one.task for part in judged.values() for one in part])
    output.write_json_lines(out / CANDIDATES, (_row(split, one) for split, part in judged.items() for one in part))


def _row(split: str, one: Judged) -> dict[str, Any]:
    context = one.task.context
    return {
        "split": split,
        "context_id": context.context_id,
        "prompt": [{"role": turn.role, "content": turn.content} for turn in context.prompt],
        "candidates": [{"text": reply.text, **reply.source} for reply in one.written.candidates],
        "left_out": [{"reason": why, "text": reply.text, **reply.source} for why, reply in one.written.left_out],
        "rankings": [{"ranker": found.ranker, "scores": found.scores, **found.facts} for found in one.rankings],
    }
