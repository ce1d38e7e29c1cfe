"""Held-out turns of dialogues, to be answered by a model and scored: what every row of a table is measured on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from empathax.data.examples import Example
from empathax.data.records import Message
from empathax.evaluation.validation import quartile


@dataclass(frozen=True)
class Turn:
    """One supporter turn. `prompt` is what the model reads (empty if only the texts are known), `quartile` (0 to 3) the
    turn's place in its dialogue, None where that is not known."""

    dialogue: str
    prompt: tuple[Message, ...]
    reference: str
    quartile: int | None = None

    @property
    def seeker(self) -> str:
        """The seeker's last words before the turn; "" if there are none."""
        return next((message.content for message in reversed(self.prompt) if message.role == "user"), "")

    @property
    def supporter(self) -> tuple[str, ...]:
        """The supporter's earlier turns."""
        return tuple(message.content for message in self.prompt if message.role == "assistant")


def turn_of(example: Example) -> Turn:
    """The turn of a held-out example; a plain-text prompt counts as one user message."""
    prompt = (Message("user", example.prompt),) if isinstance(example.prompt, str) else tuple(example.prompt)
    return Turn(example.dialogue_id, prompt, example.reply, quartile(example.turn, example.num_turns))


def pick_turns(examples: Sequence[Example], count: int) -> list[Example]:
    """Whole dialogues, evenly spread over the held-out ones, of about `count` turns together; -1 takes all examples.

    Whole ones, since validation_gap is about the course of dialogues, and since their turns share their beginnings.
    """
    if count < 0 or count >= len(examples):
        return list(examples)
    dialogues = by_dialogue(examples)
    wanted = max(1, round(count * len(dialogues) / len(examples))) if count else 0
    places = [int((number + 0.5) * len(dialogues) / wanted) for number in range(wanted)]
    return [example for place in places for example in dialogues[place]]


def by_dialogue(examples: Sequence[Example]) -> list[list[Example]]:
    """The examples of each dialogue, dialogues in the order of their first."""
    found: dict[str, list[Example]] = {}
    for example in examples:
        found.setdefault(example.dialogue_id, []).append(example)
    return list(found.values())
