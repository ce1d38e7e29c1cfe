"""Turns of dialogues that a model answers and that are scored: what every row of a table is measured on.

They come from held-out examples (`turn_of`, `pick_turns`), or from two files of JSON lines that something else wrote:
replies and their references, row by row (`read_predictions`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from empathax.data.examples import Example
from empathax.data.files import BadRow, read_values
from empathax.data.messages import checked_text
from empathax.data.records import Message, Tally
from empathax.errors import DataError, raise_all
from empathax.evaluation.metrics.levels import quartile


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


Parsed = TypeVar("Parsed")


def read_predictions(predictions: Path, references: Path) -> tuple[list[Turn], list[str]]:
    """(the turns, the replies to them) of two files with a row `{"text": ...}` for each reply.

    A reference may also name its `dialogue`, its `turn` (from 0) of `num_turns` in it, and the `seeker`'s words before
    it: bootstrap intervals go by dialogues, validation_gap needs the places. Without `dialogue` every row is its own.
    Raises one DataError with every row that cannot be used, or if the files are not of one length.
    """
    replies, turns = _rows(predictions, _text), _rows(references, _turn)
    if len(replies) != len(turns):
        raise DataError(
            f"{predictions} has {len(replies)} rows and {references} {len(turns)}: expected a reference for each reply"
        )
    return turns, replies


def _rows(path: Path, parse: Callable[[Any, int], Parsed]) -> list[Parsed]:
    tally, rows = Tally(), list[Parsed]()
    for value, origin in read_values(path, tally):
        try:
            rows.append(parse(value, len(rows)))
        except BadRow as error:
            tally.add_bad(origin, str(error))
    raise_all(DataError, f"{len(tally.bad)} row(s) of {path} cannot be used", tally.bad, limit=5)
    if not rows:
        raise DataError(f'{path}: there is no row in it; expected a line {{"text": ...}} for each reply')
    return rows


def _text(value: Any, number: int) -> str:
    if not isinstance(value, dict) or "text" not in value:
        found = f"the keys {', '.join(map(str, value))}" if isinstance(value, dict) else type(value).__name__
        raise BadRow(f'found {found}; expected {{"text": ...}}')
    return checked_text(value["text"], "text")


def _turn(value: Any, number: int) -> Turn:
    text = _text(value, number)
    seeker = checked_text(value.get("seeker", ""), "seeker")
    prompt = (Message("user", seeker),) if seeker else ()
    return Turn(str(value.get("dialogue", f"row {number}")), prompt, text, _quartile(value))


def _quartile(value: dict[str, Any]) -> int | None:
    given = [value.get(name) for name in ("turn", "num_turns")]
    if given == [None, None]:
        return None
    turn, num_turns = given
    if type(turn) is not int or type(num_turns) is not int or not 0 <= turn < num_turns:
        raise BadRow(
            f"turn = {turn!r} and num_turns = {num_turns!r}: expected whole numbers with 0 <= turn < num_turns"
        )
    return quartile(turn, num_turns)
