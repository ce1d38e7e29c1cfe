"""Replies of a model behind an OpenAI-compatible server: a comparison row, as papers have of commercial systems."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from empathax.config import DataOptions, EvalOptions
from empathax.data.records import Message
from empathax.errors import ConfigError, DataError, raise_all
from empathax.evaluation.generation.sampling import sampling_from
from empathax.evaluation.judging.chat_requests import ANSWERED, ChatOutcome, ChatRequest
from empathax.evaluation.judging.chat_server import ChatServer

_LOCAL_ONLY = {"top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0}


@dataclass(frozen=True)
class ServerReplies:
    """The replies, and what became of each request; a reply is "" where the server refused or said nothing."""

    replies: tuple[str, ...]
    outcomes: tuple[ChatOutcome, ...]

    @property
    def num_answered(self) -> int:
        return sum(outcome.status == ANSWERED for outcome in self.outcomes)

    @property
    def num_cut(self) -> int:
        """Replies that `max_new_tokens` cut off."""
        return sum(outcome.finish_reason == "length" for outcome in self.outcomes)

    def in_words(self) -> str:
        """One line: how many replies there are, and why the others are missing."""
        statuses = Counter(outcome.status for outcome in self.outcomes)
        missing = "".join(f", {number} {status}" for status, number in statuses.items() if status != ANSWERED)
        return f"{self.num_answered} of {len(self.outcomes)} prompts answered{missing}; {self.num_cut} replies cut off"


def generate_from_server(
    server: ChatServer,
    prompts: Sequence[Sequence[Message]],
    options: EvalOptions,
    seed: int,
    *,
    opening_user_turn: str = DataOptions.opening_user_turn,
    on_progress: Callable[[int], None] | None = None,
) -> ServerReplies:
    """`options.num_samples` replies to each prompt, sample j of prompt i at i * num_samples + j as `generate_replies`.

    Sent are temperature, top_p, max_new_tokens (in tokens of that model), stop_tokens (as stop strings) and the seed
    plus j, which many servers do not honour. Prompts, with their system message, are what our own models see;
    `opening_user_turn` ("" for none) goes before a conversation that the assistant begins, or the reply does: most chat
    templates insist on it, and what the server's one does is unknown.

    Raises:
        ConfigError: settings that the protocol does not know (top_k, min_p, repetition_penalty), or as `complete`.
        DataError: a prompt is empty or ends with a reply already, or as `complete`.
    """
    check_options(options)
    conversations = [opened(prompt, opening_user_turn) for prompt in prompts]
    for number, prompt in enumerate(conversations, start=1):
        if not prompt or prompt[-1].role == "assistant":
            found = "ends with an assistant's turn" if prompt else "is empty"
            raise DataError(f"prompt {number} of {len(prompts)} {found}: expected something to reply to")
    requests = [
        ChatRequest(
            messages=prompt,
            max_tokens=options.max_new_tokens,
            temperature=options.temperature,
            top_p=options.top_p,
            seed=seed + sample,
            stop=options.stop_tokens,
            sample=sample,
        )
        for prompt in conversations
        for sample in range(options.num_samples)
    ]
    outcomes = server.complete(requests, on_progress)
    return ServerReplies(tuple(outcome.text for outcome in outcomes), tuple(outcomes))


def opened(prompt: Sequence[Message], opening_user_turn: str) -> tuple[Message, ...]:
    """`prompt` with `opening_user_turn` ("" for none) before a conversation that the assistant begins."""
    system = tuple(message for message in prompt if message.role == "system")
    turns = tuple(message for message in prompt if message.role != "system")
    is_open = bool(turns) and turns[0].role == "user"
    return tuple(prompt) if is_open or not opening_user_turn else (*system, Message("user", opening_user_turn), *turns)


def check_options(options: EvalOptions) -> None:
    """Raises a ConfigError with every setting that cannot be asked of a server, or cannot work at all."""
    sampling_from(options)
    problems = [
        f"eval.{name} = {getattr(options, name)}: OpenAI's protocol has no such setting; leave it at {neutral}"
        for name, neutral in _LOCAL_ONLY.items()
        if getattr(options, name) != neutral
    ]
    raise_all(ConfigError, "replies cannot be asked of a server like that", problems)
