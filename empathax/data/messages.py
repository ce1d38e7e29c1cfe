"""Messages as published, read into `Message`s: role and content, or ShareGPT's from and value.

A message may say that it is context only (`weight: 0`, `train: false`, `loss: false`). So are turns that call tools.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from empathax.data.files import BadRow
from empathax.data.records import ROLES, Message

# Role names of ShareGPT and its relatives
_ROLES = {
    **{role: role for role in (*ROLES, "tool")},
    **dict.fromkeys(("human", "Human", "prompter"), "user"),
    **dict.fromkeys(("gpt", "chatgpt", "bot", "bard", "model", "Assistant"), "assistant"),
}
_EXTRA = ("tool_calls", "tool_call_id", "name")
_TRAINED = ("weight", "train", "loss")  # whether a reply is learned: OpenAI's files, axolotl, others
_YES, _NO = (True, 1), (False, 0)
_MEDIA = ("image", "images", "image_url", "video", "videos", "audio", "audios")


class Turns(NamedTuple):
    """A list of messages, and the indices of those that are context only."""

    messages: tuple[Message, ...]
    untrained: frozenset[int]


def read_messages(items: Sequence[Any], name: str) -> Turns:
    """The messages of a list that stands in column `name`.

    Raises:
        BadRow: a message is of another form, of an unknown role, not text, or has a weight of another kind.
    """
    messages = tuple(_message(item, f"{name}[{number}]") for number, item in enumerate(items))
    untrained = (number for number, item in enumerate(items) if not _is_trained(item, f"{name}[{number}]"))
    return Turns(messages, frozenset(untrained))


def checked_text(value: Any, name: str) -> str:
    """`value` if it is text that can be written as UTF-8."""
    if not isinstance(value, str):
        raise BadRow(f"{name} is {kind_of(value)}, expected text")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        raise BadRow(f"{name} holds half of a surrogate pair, which is no character") from None
    return value


def check_turns(messages: Sequence[Message]) -> None:
    """Raises BadRow unless at most one system message leads. Whether a role may come twice the chat template says."""
    if any(message.role == "system" for message in messages[1:]):
        raise BadRow("wrong role order: a system message may only be the first one")


def refuse_media(value: dict[str, Any], place: str) -> None:
    """Raises BadRow if a row or a message brings pictures, sound or video along."""
    for key in _MEDIA:
        if value.get(key):
            raise BadRow(
                f"{place}{key}: the model reads text alone; leave rows with {key} out, or take the column away"
            )


def kind_of(value: Any) -> str:
    """What a JSON value is, in words."""
    names = {type(None): "null", bool: "true/false", int: "a number", float: "a number", str: "text", list: "a list"}
    return names.get(type(value), "an object" if isinstance(value, dict) else type(value).__name__)


def _message(item: Any, name: str) -> Message:
    if isinstance(item, dict) and item.get("tool_calls"):
        item = {"content": None, **item}
    is_sharegpt = isinstance(item, dict) and {"from", "value"} <= item.keys()
    if not is_sharegpt and (not isinstance(item, dict) or not {"role", "content"} <= item.keys()):
        found = f"the keys {', '.join(map(str, item))}" if isinstance(item, dict) else kind_of(item)
        raise BadRow(f'{name}: found {found}, expected {{"role", "content"}} or {{"from", "value"}}')
    refuse_media(item, f"{name}.")
    said, key = (item["from"], "value") if is_sharegpt else (item["role"], "content")
    role = _ROLES.get(said) if isinstance(said, str) else None
    if role is None:
        raise BadRow(f"{name}: unknown role {said!r}, expected one of {', '.join(ROLES)}")
    extra = {key: item[key] for key in _EXTRA if item.get(key)} if role in ("assistant", "tool") else {}
    content = "" if item[key] is None and "tool_calls" in extra else _content(item[key], f"{name}.{key}")
    return Message(role, content, extra)


def _content(value: Any, name: str) -> str:
    """Text, also as a list of text parts, which are joined."""
    if not isinstance(value, list):
        return checked_text(value, name)
    texts = []
    for number, part in enumerate(value):
        if not isinstance(part, dict) or part.get("type", "text") != "text":
            found = part.get("type") if isinstance(part, dict) else kind_of(part)
            raise BadRow(f"{name}[{number}] is {found!r}: the model reads text alone, expected parts of type text")
        texts.append(checked_text(part.get("text"), f"{name}[{number}].text"))
    return "".join(texts)


def _is_trained(item: dict[str, Any], name: str) -> bool:
    if item.get("tool_calls"):  # what is learned is text
        return False
    told = {key: item[key] for key in _TRAINED if item.get(key) is not None}
    for key, value in told.items():
        if value not in (*_YES, *_NO):
            raise BadRow(
                f"{name}.{key} is {value!r}: expected 1 or true, or 0 or false for a turn that is context only"
            )
    return all(value in _YES for value in told.values())
