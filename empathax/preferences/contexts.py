"""Contexts: the places in dialogues where the supporter speaks, by split; pairs are made for these.

What is made: a context with a better and a worse reply, and where everything in it comes from.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from empathax.config import DataOptions
from empathax.data.records import CompletionRow, Dialogue, Message, PreferenceRow, Row
from empathax.errors import DataError
from empathax.evaluation.metrics.levels import quartile

SPLITS = ("train", "valid", "test")
_KINDS = ("problem_type", "emotion_type")  # what makes two dialogues alike


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


def load_contexts(rows: dict[str, list[Row]], options: DataOptions) -> dict[str, list[Context]]:
    """The contexts of each split, as `options.seeker_first_only` and the limits on dialogues say.

    Raises:
        DataError: there is none at all.
    """
    found = {}
    for split, part in rows.items():
        most = options.max_train_dialogues if split == "train" else options.max_eval_dialogues
        found[split] = list(contexts_of(_limited(part, options.seeker_first_only, most)))
    if not any(found.values()):
        raise DataError(f"{options.path}: no row has a turn of the seeker's that a supporter could answer")
    return found


def in_splits(contexts: Mapping[str, list[Context]], names: Sequence[str], path: str) -> dict[str, list[Context]]:
    """The contexts of the splits `names`; of train and valid, where there are any, if none is named.

    Raises:
        DataError: a split that was named has none.
    """
    found = {split: part for split, part in contexts.items() if part}
    for name in names:
        if name not in found:
            counts = ", ".join(f"{split} {len(part):,}" for split, part in found.items())
            raise DataError(f"{path} has nothing in the split {name!r}; contexts that it has: {counts}")
    return {split: part for split, part in found.items() if split in (names or SPLITS[:2])}


def counts_in_words(path: str, rows: Mapping[str, Sequence[Row]], contexts: Mapping[str, Sequence[Context]]) -> str:
    """How many contexts there are, and of how many dialogues, for the terminal."""
    parts, hint = [], ""
    for split, part in contexts.items():
        used, known = (len({one.dialogue_id for one in found}) for found in (part, rows[split]))
        parts.append(f"{split} {len(part):,} in {used:,} of {known:,} dialogues")
        if used < known:
            hint = "; data.seeker_first_only and limits of --config leave out the others"
    return f"contexts of {path}: {', '.join(parts)}{hint}"


def data_settings(options: DataOptions) -> dict[str, Any]:
    """The settings of --config that decide which contexts there are."""
    names = ("seeker_first_only", "max_train_dialogues", "max_eval_dialogues", "eval_path", "eval_fraction")
    return {name: getattr(options, name) for name in names}


def contexts_of(rows: Sequence[Row]) -> Iterator[Context]:
    """Every context of `rows`, in order, each once. What a supporter says before the seeker has spoken is none."""
    known: dict[str, Context] = {}
    for row in rows:
        for context in _of_dialogue(row) if isinstance(row, Dialogue) else _of_prompt(row):
            if context.prompt != known.get(context.context_id, context).prompt:
                context = dataclasses.replace(context, digest=_digest(context.prompt))
            if context.context_id not in known:
                known[context.context_id] = context
                yield context


def digest(splits: Iterable[tuple[str, Sequence[Context]]]) -> str:
    """Sixteen hex digits that change with anything known of the contexts, or their order."""
    return hashlib.sha256(repr([(split, list(part)) for split, part in splits]).encode()).hexdigest()[:16]


def _of_dialogue(dialogue: Dialogue) -> Iterator[Context]:
    turns = tuple(message for message in dialogue.messages if message.role != "system")
    places = [number for number, message in enumerate(turns) if message.role == "assistant"]
    strategies = dialogue.meta.get("strategies", ((),) * len(places))
    for index, place in enumerate(places):
        if place:
            yield Context(
                dialogue_id=dialogue.dialogue_id,
                turn=index,
                num_turns=len(places),
                prompt=turns[:place],
                reply=turns[place].content,
                origin=dialogue.origin,
                strategies=tuple(strategies[index]),
                kinds=_kinds(dialogue.meta),
            )


def _of_prompt(row: CompletionRow | PreferenceRow) -> Iterator[Context]:
    prompt = (Message("user", row.prompt),) if isinstance(row.prompt, str) else row.prompt
    reply = row.completion if isinstance(row, CompletionRow) else row.chosen
    turns = tuple(message for message in prompt if message.role != "system")
    if any(message.role == "user" for message in turns):
        number = sum(message.role == "assistant" for message in turns)
        yield Context(
            row.dialogue_id, number, 0, turns, reply, row.origin, kinds=_kinds(row.meta), digest=_digest(turns)
        )


def _digest(prompt: Sequence[Message]) -> str:
    return hashlib.sha256(repr(prompt).encode()).hexdigest()[:8]


def _kinds(meta: Any) -> dict[str, str]:
    return {name: str(meta[name]).strip().lower() for name in _KINDS if meta.get(name)}


def _limited(rows: Sequence[Row], seeker_first_only: bool, most: int) -> list[Row]:
    kept = [row for row in rows if not (seeker_first_only and _supporter_opens(row))]
    names = set(list(dict.fromkeys(row.dialogue_id for row in kept))[: most or None])
    return [row for row in kept if row.dialogue_id in names]


def _supporter_opens(row: Row) -> bool:
    turns = [message for message in row.messages if message.role != "system"] if isinstance(row, Dialogue) else []
    return bool(turns) and turns[0].role == "assistant"


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
