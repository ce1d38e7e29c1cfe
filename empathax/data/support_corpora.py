"""ESConv (Liu et al. 2021) and EmpatheticDialogues (Rashkin et al. 2019) as dialogues, and ESConv as preference pairs.

Consecutive turns of one speaker are merged into one, joined by a space.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any, NamedTuple

from empathax.data.files import BadRow, NoReply
from empathax.data.messages import checked_text
from empathax.data.records import Dialogue, Message, PreferenceRow
from empathax.data.trl_format import messages_id
from empathax.errors import DataError
from empathax.shown import quoted

ADVICE = frozenset({"Providing Suggestions", "Providing Suggestions or Information", "Information"})
_ESCONV_ROLES = {
    **dict.fromkeys(("usr", "seeker", "speaker"), "user"),
    **dict.fromkeys(("sys", "supporter", "listener"), "assistant"),
}


class Utterance(NamedTuple):
    """One utterance of ESConv, before those of one speaker are merged; `strategy` is the supporter's, where marked."""

    role: str  # "user" or "assistant"
    text: str
    strategy: str | None


def esconv_utterances(value: Any) -> list[Utterance]:
    """The utterances of one dialogue that hold text.

    Raises:
        BadRow: a field is missing or of a wrong type.
    """
    if not isinstance(value, dict) or not isinstance(value.get("dialog"), list) or not value["dialog"]:
        raise BadRow('expected an ESConv dialogue: an object with a non-empty list "dialog"')
    utterances = (_esconv_utterance(item, number) for number, item in enumerate(value["dialog"]))
    return [utterance for utterance in utterances if utterance.text]


def parse_esconv(value: Any, origin: str) -> Dialogue:
    """A dialogue of ESConv, upstream's JSON, the reformatted lines, or FailedESConv.

    `meta["strategies"]` has one tuple of strategy names (None where unmarked) for each merged assistant turn.

    Raises:
        BadRow: a field is missing or of a wrong type.
    """
    messages, strategies = [], []
    for role, items in groupby(esconv_utterances(value), key=lambda utterance: utterance.role):
        merged = list(items)
        messages.append(Message(role, " ".join(utterance.text for utterance in merged)))
        if role == "assistant":
            strategies.append(tuple(utterance.strategy for utterance in merged))
    if not strategies:
        raise NoReply("no assistant turn to learn from")
    kept = ("experience_type", "problem_type", "emotion_type", "situation")
    meta = {key: value[key] for key in kept if key in value} | {"strategies": tuple(strategies)}
    return Dialogue(tuple(messages), messages_id(messages), origin, meta=meta)


def parse_empathetic_dialogues(
    rows: Iterable[tuple[Mapping[str, str], str]],
) -> Iterator[tuple[Dialogue | BadRow, str]]:
    """Dialogues of EmpatheticDialogues from its CSV rows; odd utterances are the speaker's (user). `meta` has the
    situation and, where the file has the column `context`, the emotion.

    Yields (dialogue or what is wrong, "file:line").
    """
    by_conversation: dict[str, list[tuple[int, str, str]]] = {}
    metas: dict[str, dict[str, str]] = {}
    for row, origin in rows:
        try:
            name, text, index = row["conv_id"], row["utterance"].strip(), int(row["utterance_idx"])
            texts = {key: (row.get(key) or "").strip() for key in ("prompt", "context")}
            hash(name)
        except (KeyError, ValueError, TypeError, AttributeError):
            yield BadRow("expected the columns conv_id, utterance_idx (a number) and utterance"), origin
            continue
        if not text:
            yield BadRow("the utterance is empty"), origin
            continue
        if name not in metas:
            metas[name] = {"situation": texts["prompt"].replace("_comma_", ",")}
            if emotion := texts["context"]:
                metas[name]["emotion_type"] = emotion
        by_conversation.setdefault(name, []).append((index, text.replace("_comma_", ","), origin))
    for name, turns in by_conversation.items():
        turns.sort(key=lambda turn: turn[0])
        messages = tuple(
            Message(role, " ".join(text for _, text, _ in items))
            for role, items in groupby(turns, key=lambda turn: "user" if turn[0] % 2 else "assistant")
        )
        origin = turns[0][2]
        if any(message.role == "assistant" for message in messages):
            yield Dialogue(messages, messages_id(messages), origin, meta=metas[name]), origin
        else:
            yield NoReply("no assistant turn to learn from"), origin


def esconv_pairs(dialogues: Sequence[Dialogue], rejected: str, seed: int) -> list[PreferenceRow]:
    """One pair for each supporter turn: chosen = the gold reply, rejected = a reply drawn from another dialogue.

    Args:
        dialogues: those of one split; replies are drawn among them.
        rejected: "advice" draws among replies of nothing but suggestions and information, "random" among all.
        seed: with dialogue and turn, decides the draw.

    Raises:
        DataError: there is no reply to draw.
    """
    pool = [
        (message.content, dialogue.dialogue_id)
        for dialogue in dialogues
        for message, strategies in _replies(dialogue)
        if rejected == "random" or (strategies and ADVICE.issuperset(strategies))
    ]
    if len({name for _, name in pool}) < 2:
        kind = "advice replies (strategies Providing Suggestions, Information)" if rejected == "advice" else "replies"
        raise DataError(
            f"found {kind} in fewer than 2 of {len(dialogues)} dialogues, so that no pair can be made: "
            "set data.esconv_rejected='random', data.preference_path, or use more dialogues"
        )
    return [
        PreferenceRow(
            prompt=dialogue.messages[:index],
            chosen=message.content,
            rejected=_draw(pool, f"{seed}/{dialogue.dialogue_id}/{index}", dialogue.dialogue_id, message.content),
            dialogue_id=dialogue.dialogue_id,
            origin=dialogue.origin,
            meta=dialogue.meta,
            template_variables=dialogue.template_variables,
        )
        for dialogue in dialogues
        for index, message in enumerate(dialogue.messages)
        if dialogue.is_trained(index)
    ]


def _esconv_utterance(item: Any, number: int) -> Utterance:
    if not isinstance(item, dict) or "speaker" not in item:
        raise BadRow(f'dialog[{number}]: expected an object with "speaker" and "text" or "content"')
    speaker = item["speaker"]
    if not isinstance(speaker, str) or speaker not in _ESCONV_ROLES:
        raise BadRow(f"dialog[{number}]: unknown speaker {quoted(speaker)}, expected one of {', '.join(_ESCONV_ROLES)}")
    text = checked_text(item.get("text", item.get("content")), f"dialog[{number}]: the text").strip()
    annotation = item.get("annotation")
    strategy = item.get("strategy") or (annotation.get("strategy") if isinstance(annotation, dict) else None)
    if strategy is not None and not isinstance(strategy, str):
        raise BadRow(f"dialog[{number}]: strategy is {quoted(strategy)}, expected text")
    return Utterance(_ESCONV_ROLES[speaker], text, strategy)


def _replies(dialogue: Dialogue) -> Iterator[tuple[Message, Sequence[str | None]]]:
    replies = [message for message in dialogue.messages if message.role == "assistant"]
    return zip(replies, dialogue.meta.get("strategies", [()] * len(replies)), strict=True)


def _draw(pool: Sequence[tuple[str, str]], key: str, dialogue_id: str, chosen: str) -> str:
    """The pool's entry at a hash of `key`, or the next one of another dialogue and with other text."""
    start = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big")
    for step in range(len(pool)):
        text, owner = pool[(start + step) % len(pool)]
        if owner != dialogue_id and text.strip() != chosen.strip():
            return text
    return chosen  # every reply is the same: dropped later as chosen == rejected
