"""What a preference set is made of: contexts (a supporter's turns), candidates (replies) and pairs of these."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from empathax.data.records import Message
from empathax.evaluation.metrics.levels import quartile


@dataclass(frozen=True)
class Context:
    """A supporter's turn that is to be spoken.

    Attributes:
        dialogue_id, turn: its dialogue, and its number there among the supporter's turns, from 0.
        num_turns: the dialogue's supporter turns; 0 where the place in a dialogue is not known.
        prompt: what was said before it, without a system message; at least one turn of the seeker's.
        reply: what was said there; "" where nothing was.
        strategies: ESConv's, of `reply`; empty where unmarked.
        kinds: problem_type and emotion_type of the dialogue, lower case, where known.
        origin: "file:line".
        digest: of the prompt, for rows that are no dialogues: the same words begin many of them.
    """

    dialogue_id: str
    turn: int
    num_turns: int
    prompt: tuple[Message, ...]
    reply: str
    origin: str
    strategies: tuple[str | None, ...] = ()
    kinds: dict[str, str] = field(default_factory=dict)
    digest: str = ""

    @property
    def context_id(self) -> str:
        """The dialogue and the turn; and a digest of the prompt where these two name several."""
        return f"{self.dialogue_id}/{self.turn}{self.digest and '-'}{self.digest}"

    @property
    def quartile(self) -> int | None:
        """0 to 3; None where the place in a dialogue is not known."""
        return quartile(self.turn, self.num_turns) if self.num_turns else None

    @property
    def seeker(self) -> str:
        """The seeker's last words."""
        return next(message.content for message in reversed(self.prompt) if message.role == "user")


@dataclass(frozen=True)
class Candidate:
    """A reply and where it comes from: {"by": "gold", "rule" or "model", ...}, plain values."""

    text: str
    source: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Pair:
    """A row to be.

    Attributes:
        method: a rule's name, or how candidates were made ("levels", "styles", "samples").
        scores: by ranker, (chosen, rejected); empty for rules.
        margin: how much better the chosen reply was found, 0 to 1; None for rules.
        link: pairs with the same link are kept or dropped as one; "" for none.
    """

    context: Context
    chosen: Candidate
    rejected: Candidate
    method: str
    scores: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    margin: float | None = None
    link: str = ""

    @property
    def pair_id(self) -> str:
        """Sixteen hex digits of context and replies: equal pairs have equal ones."""
        return digest((self.context.context_id, self.chosen.text, self.rejected.text), 16)

    def row(self, time: float) -> dict[str, Any]:
        """The pair as a row of a TRL preference data set, with its provenance; `time` (seconds since 1970) is when the
        pair was made, if its replies do not say."""
        context = self.context
        times = [source["time"] for source in (self.chosen.source, self.rejected.source) if source.get("time")]
        return {
            "prompt": [{"role": message.role, "content": message.content} for message in context.prompt],
            "chosen": [{"role": "assistant", "content": self.chosen.text}],
            "rejected": [{"role": "assistant", "content": self.rejected.text}],
            "dialogue_id": context.dialogue_id,
            "provenance": {
                "pair_id": self.pair_id,
                "method": self.method,
                "source": context.origin,
                "context_id": context.context_id,
                "turn": context.turn,
                "num_turns": context.num_turns,
                "quartile": context.quartile,
                "chosen": dict(self.chosen.source),
                "rejected": dict(self.rejected.source),
                "scores": {name: list(values) for name, values in self.scores.items()},
                "margin": self.margin,
                "time": max(times, default=time),
            },
        }


def digest(value: Any, num_digits: int) -> str:
    """The first hex digits of the SHA-256 of `value` as Python prints it."""
    return hashlib.sha256(repr(value).encode()).hexdigest()[:num_digits]
