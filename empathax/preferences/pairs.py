"""What is made: a context with a better and a worse reply, and where everything in it comes from."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from empathax.preferences.contexts import Context


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
        link: pairs with the same link belong together and are kept or dropped together; "" for none.
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
        """Sixteen hex digits out of context and replies: equal pairs have equal ones."""
        parts = (self.context.context_id, self.chosen.text, self.rejected.text)
        return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]

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
