"""TRL's row formats: preference (paired or not), prompt-completion and language-modelling rows, as strings or lists of
messages.

https://huggingface.co/docs/trl/dataset_formats; a "system" column is put before the prompt.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from itertools import takewhile
from typing import Any

from empathax.data.files import BadRow, NoReply
from empathax.data.records import ROLES, CompletionRow, Dialogue, Message, PreferenceRow, Row
from empathax.shown import quoted, shown

FORMATS = (
    '{"prompt", "chosen", "rejected"}, {"prompt", "completion"}, {"prompt", "completion", "label"} or {"messages"}'
)

Text = tuple[Message, ...] | str


def parse_row(value: Any, origin: str) -> Row:
    """One row of any of TRL's formats.

    Raises:
        BadRow: a field is missing or of a wrong type, or the roles are out of order.
    """
    if not isinstance(value, dict):
        raise BadRow(f"the row is {_kind(value)}, expected an object like {FORMATS}")
    system = _system(value)
    if "chosen" in value or "rejected" in value:
        return _preference(value, system, origin)
    if "messages" in value:
        return _dialogue(value, system, origin)
    if "prompt" in value and "completion" in value:
        return _completion(value, system, origin)
    raise BadRow(f"found the keys {shown(', '.join(map(str, value))) or '(none)'}; expected {FORMATS}")


def checked_text(value: Any, name: str) -> str:
    """`value` if it is text that can be written as UTF-8."""
    if not isinstance(value, str):
        raise BadRow(f"{name} is {_kind(value)}, expected text")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        raise BadRow(f"{name} holds half of a surrogate pair, which is no character") from None
    return value


def check_turns(messages: Sequence[Message]) -> None:
    """Raises BadRow unless at most one system message leads and user and assistant take turns."""
    turns = messages[1:] if messages and messages[0].role == "system" else messages
    for number, message in enumerate(turns):
        if message.role == "system":
            raise BadRow("wrong role order: a system message may only be the first one")
        if number and message.role == turns[number - 1].role:
            raise BadRow(f"wrong role order: two {message.role} messages in a row; join them into one")


def group_id(prompt: Text) -> str:
    """A name for rows that belong together when they do not say so: the same first user message (and system text)."""
    messages = _as_messages(prompt)
    text = repr([m for m in messages if m.role == "system"] + _first_user(messages))
    return hashlib.sha256(text.encode("utf-8")).hexdigest()[:16]


def messages_id(messages: Sequence[Message]) -> str:
    """A name for a whole dialogue: equal dialogues have equal names."""
    return hashlib.sha256(repr(messages).encode("utf-8")).hexdigest()[:16]


def _preference(value: dict[str, Any], system: tuple[Message, ...], origin: str) -> PreferenceRow:
    chosen, rejected = (_text(value, key) for key in ("chosen", "rejected"))
    if isinstance(chosen, str) != isinstance(rejected, str):
        raise BadRow("chosen and rejected must both be text or both be lists of messages")
    if "prompt" in value:
        prompt = _text(value, "prompt")
    else:
        length = _implicit_prompt_length(chosen, rejected)
        prompt, chosen, rejected = chosen[:length], chosen[length:], rejected[length:]
    prompt = _with_system(prompt, system)
    return PreferenceRow(
        prompt=prompt,
        chosen=_reply(chosen, "chosen", prompt),
        rejected=_reply(rejected, "rejected", prompt),
        dialogue_id=_dialogue_id(value, prompt),
        origin=origin,
        meta={"provenance": value["provenance"]} if "provenance" in value else {},
    )


def _completion(value: dict[str, Any], system: tuple[Message, ...], origin: str) -> Row:
    prompt = _with_system(_text(value, "prompt"), system)
    completion = _text(value, "completion")
    if not isinstance(completion, str) and len(completion) > 1:  # several turns: each assistant turn is trained
        if _label(value.get("label")) is not None:
            raise BadRow(f"completion has {len(completion)} messages and a label: expected one assistant message")
        head = _as_messages(prompt)
        messages = (*head, *completion)
        check_turns(messages)
        return Dialogue(messages, _dialogue_id(value, prompt), origin, first_trained=len(head))
    return CompletionRow(
        prompt,
        _reply(completion, "completion", prompt),
        _dialogue_id(value, prompt),
        origin,
        _meta(value),
        _label(value.get("label")),
    )


def _dialogue(value: dict[str, Any], system: tuple[Message, ...], origin: str) -> Dialogue:
    messages = _text(value, "messages")
    if isinstance(messages, str):
        raise BadRow("messages is text, expected a list of messages")
    messages = _as_messages(_with_system(messages, system))
    check_turns(messages)
    if not any(message.role == "assistant" for message in messages):
        raise NoReply("no assistant turn to learn from")
    dialogue_id = value.get("dialogue_id", value.get("id"))
    name = messages_id(messages) if dialogue_id in (None, "") else str(dialogue_id)
    return Dialogue(messages, name, origin, meta=_meta(value))


def _text(value: dict[str, Any], key: str) -> Text:
    """A field as text or as messages."""
    if key not in value:
        raise BadRow(f"{key} is missing; found {shown(', '.join(map(str, value)))}")
    content = value[key]
    if isinstance(content, list):
        return tuple(_message(item, f"{key}[{number}]") for number, item in enumerate(content))
    if isinstance(content, str):
        return checked_text(content, key)
    raise BadRow(f"{key} is {_kind(content)}, expected text or a list of messages")


def _message(item: Any, name: str) -> Message:
    if not isinstance(item, dict) or not {"role", "content"} <= item.keys():
        found = f"the keys {shown(', '.join(map(str, item)))}" if isinstance(item, dict) else _kind(item)
        raise BadRow(f'{name}: found {found}, expected {{"role", "content"}}')
    if item["role"] not in ROLES:
        raise BadRow(f"{name}: unknown role {quoted(item['role'])}, expected one of {', '.join(ROLES)}")
    return Message(item["role"], checked_text(item["content"], f"{name}.content"))


def _reply(reply: Text, name: str, prompt: Text) -> str:
    """The text of a reply that is one assistant message, after a prompt that ends with a user message."""
    if not isinstance(prompt, str):
        check_turns(prompt)
        if prompt and prompt[-1].role == "assistant":
            raise BadRow("wrong role order: the prompt ends with an assistant message, expected a user message")
    if isinstance(reply, str):
        return reply
    if len(reply) != 1:
        raise BadRow(f"{name} has {len(reply)} messages after the common prompt, expected one assistant message")
    if reply[0].role != "assistant":
        raise BadRow(f"wrong role order: {name} is a {reply[0].role} message, expected an assistant message")
    return reply[0].content


def _implicit_prompt_length(chosen: Text, rejected: Text) -> int:
    """Items (messages or characters) that both conversations begin with; a reply of at least one item is left."""
    length = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(chosen, rejected, strict=False)))
    length = min(length, len(chosen) - 1, len(rejected) - 1)
    if length <= 0:
        raise BadRow("there is no prompt, and chosen and rejected have no common beginning")
    if isinstance(chosen, str) and chosen[length - 1] == " ":
        length -= 1  # as TRL: the space belongs to the reply
    return length


def _system(value: dict[str, Any]) -> tuple[Message, ...]:
    system = value.get("system")
    return (Message("system", checked_text(system, "system")),) if system else ()


def _with_system(text: Text, system: tuple[Message, ...]) -> Text:
    if not system:
        return text
    messages = _as_messages(text)
    if messages and messages[0].role == "system":
        raise BadRow("the row has a system column and a system message; keep one")
    return (*system, *messages)


def _as_messages(text: Text) -> tuple[Message, ...]:
    return (Message("user", text),) if isinstance(text, str) else text


def _first_user(prompt: Sequence[Message]) -> list[Message]:
    return [message for message in prompt if message.role == "user"][:1]


def _dialogue_id(value: dict[str, Any], prompt: Text) -> str:
    given = value.get("dialogue_id")
    return group_id(prompt) if given in (None, "") else str(given)


def _meta(value: dict[str, Any]) -> dict[str, Any]:
    used = ("messages", "prompt", "completion", "system", "id", "dialogue_id")
    return {key: item for key, item in value.items() if key not in used}


def _label(value: Any) -> bool | None:
    """Whether a reply is desirable, also as CSV and pandas write it; None where `label` says nothing of that."""
    text = str(value).strip().lower() if isinstance(value, bool | int | float | str) else ""
    return {"true": True, "1": True, "1.0": True, "false": False, "0": False, "0.0": False}.get(text)


def _kind(value: Any) -> str:
    names = {type(None): "null", bool: "true/false", int: "a number", float: "a number", str: "text", list: "a list"}
    return names.get(type(value), "an object" if isinstance(value, dict) else type(value).__name__)
