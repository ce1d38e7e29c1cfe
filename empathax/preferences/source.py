"""Where preference sets start: dialogues, read by split into the contexts that pairs are made for."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from empathax.config import DataOptions
from empathax.data.records import CompletionRow, Dialogue, Message, PreferenceRow, Row
from empathax.data.sources import load_by_split
from empathax.errors import ConfigError, DataError
from empathax.preferences.overlap import HeldOutTexts
from empathax.preferences.pairs import Context, digest

SPLITS = ("train", "valid", "test")
_KINDS = ("problem_type", "emotion_type")  # what makes two dialogues alike
_SETTINGS = ("seeker_first_only", "max_train_dialogues", "max_eval_dialogues", "eval_path", "eval_fraction")


@dataclass(frozen=True)
class Source:
    """Contexts by split, and the words of later splits, which a split's pairs must not show.

    Attributes:
        path, settings: where they come from, and the settings that picked them.
        in_words: how many there are, for the terminal.
        num_overlapping: contexts that `without_overlap` left out.
    """

    path: str
    settings: dict[str, Any]
    in_words: str
    contexts: dict[str, list[Context]]
    held_out: dict[str, HeldOutTexts]
    num_overlapping: int = 0

    def digest(self, *more: tuple[str, Sequence[Context]]) -> str:
        """Sixteen hex digits that change with anything known of the contexts (and `more`, by split), or their order."""
        return digest([(split, list(part)) for split, part in (*self.contexts.items(), *more)], 16)

    def without_overlap(self, max_contexts: int) -> Source:
        """The contexts whose prompts show no words of a later split: of each split at most `max_contexts` (0 = all),
        evenly spread."""
        clean = {
            split: [one for one in part if not any(self.held_out[split].shared(turn.content) for turn in one.prompt)]
            for split, part in self.contexts.items()
        }
        num_lost = sum(map(len, self.contexts.values())) - sum(map(len, clean.values()))
        picked = {split: _spread(part, max_contexts) for split, part in clean.items()}
        return dataclasses.replace(self, contexts=picked, num_overlapping=num_lost)


def read_source(options: DataOptions, splits: Sequence[str]) -> Source:
    """The contexts of the dialogues, prompts or pairs that `options` name: of `splits`, or of train and valid (where
    there are any) if none is named. `options.seeker_first_only` and the limits on dialogues apply.

    Raises:
        DataError: the source cannot be read, has no contexts, or has none in a split that was named.
    """
    rows = load_by_split(options)
    contexts = _in_splits(_contexts(rows, options), splits, options.path)
    held_out = {split: _held_out_texts(rows, split) for split in contexts}
    settings = {name: getattr(options, name) for name in _SETTINGS}
    return Source(options.path, settings, _in_words(options.path, rows, contexts), contexts, held_out)


def check_names(kind: str, names: Sequence[str], known: Sequence[str]) -> None:
    """Raises a ConfigError for the first of `names` that is not `known`, or for none at all."""
    unknown = [name for name in names if name not in known]
    if unknown or not names:
        found = f"{kind} {unknown[0]!r} is unknown" if unknown else f"no {kind} was given"
        raise ConfigError(f"{found}: expected some of {', '.join(known)}")


def contexts_of(rows: Sequence[Row]) -> Iterator[Context]:
    """Every context of `rows`, in order, each once. What a supporter says before the seeker has spoken is none."""
    known: dict[str, Context] = {}
    for row in rows:
        for context in _of_dialogue(row) if isinstance(row, Dialogue) else _of_prompt(row):
            if context.prompt != known.get(context.context_id, context).prompt:
                context = dataclasses.replace(context, digest=digest(context.prompt, 8))
            if context.context_id not in known:
                known[context.context_id] = context
                yield context


def _contexts(rows: dict[str, list[Row]], options: DataOptions) -> dict[str, list[Context]]:
    found = {}
    for split, part in rows.items():
        most = options.max_train_dialogues if split == "train" else options.max_eval_dialogues
        found[split] = list(contexts_of(_limited(part, options.seeker_first_only, most)))
    if not any(found.values()):
        raise DataError(f"{options.path}: no row has a turn of the seeker's that a supporter could answer")
    return found


def _in_splits(contexts: Mapping[str, list[Context]], names: Sequence[str], path: str) -> dict[str, list[Context]]:
    found = {split: part for split, part in contexts.items() if part}
    for name in names:
        if name not in found:
            counts = ", ".join(f"{split} {len(part):,}" for split, part in found.items())
            raise DataError(f"{path} has nothing in the split {name!r}; contexts that it has: {counts}")
    return {split: part for split, part in found.items() if split in (names or SPLITS[:2])}


def _in_words(path: str, rows: Mapping[str, Sequence[Row]], contexts: Mapping[str, Sequence[Context]]) -> str:
    """How many contexts there are, and in how many dialogues."""
    parts, hint = [], ""
    for split, part in contexts.items():
        used, known = (len({one.dialogue_id for one in found}) for found in (part, rows[split]))
        parts.append(f"{split} {len(part):,} in {used:,} of {known:,} dialogues")
        if used < known:
            hint = "; data.seeker_first_only and limits of --config leave out the others"
    return f"contexts of {path}: {', '.join(parts)}{hint}"


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
            row.dialogue_id, number, 0, turns, reply, row.origin, kinds=_kinds(row.meta), digest=digest(turns, 8)
        )


def _kinds(meta: Any) -> dict[str, str]:
    return {name: str(meta[name]).strip().lower() for name in _KINDS if meta.get(name)}


def _limited(rows: Sequence[Row], seeker_first_only: bool, most: int) -> list[Row]:
    kept = [row for row in rows if not (seeker_first_only and _supporter_opens(row))]
    names = set(list(dict.fromkeys(row.dialogue_id for row in kept))[: most or None])
    return [row for row in kept if row.dialogue_id in names]


def _supporter_opens(row: Row) -> bool:
    turns = [message for message in row.messages if message.role != "system"] if isinstance(row, Dialogue) else []
    return bool(turns) and turns[0].role == "assistant"


def _held_out_texts(rows: Mapping[str, Sequence[Row]], split: str) -> HeldOutTexts:
    """The words of the dialogues in the splits after `split`."""
    later = SPLITS[SPLITS.index(split) + 1 :]
    return HeldOutTexts(text for name in later for row in rows.get(name, ()) for text in _texts(row))


def _texts(row: Row) -> list[str]:
    if isinstance(row, Dialogue):
        return [message.content for message in row.messages]
    prompt = [row.prompt] if isinstance(row.prompt, str) else [message.content for message in row.prompt]
    replies = [row.completion] if isinstance(row, CompletionRow) else [row.chosen, row.rejected]
    return prompt + replies


def _spread(contexts: Sequence[Context], most: int) -> list[Context]:
    """At most `most` contexts (0 = all), evenly over the whole."""
    if not most or most >= len(contexts):
        return list(contexts)
    return [contexts[place] for place in np.linspace(0, len(contexts) - 1, most).round().astype(int).tolist()]
