"""TRL's row formats, as they are published: preference (paired or not), prompt-completion and language-modelling rows,
as strings or lists of messages, and the same under the column names of ShareGPT, Alpaca and question/answer sets.

https://huggingface.co/docs/trl/dataset_formats; a "system" column is put before the prompt.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from itertools import takewhile
from typing import Any

from empathax import json_text
from empathax.data.files import BadRow, NoReply
from empathax.data.messages import check_turns, checked_text, kind_of, read_messages, refuse_media
from empathax.data.records import CompletionRow, Dialogue, Message, PreferenceRow, Row
from empathax.shown import shown

FORMATS = (
    '{"prompt", "chosen", "rejected"}, {"prompt", "completion"}, {"prompt", "completion", "label"} or {"messages"}'
)
# Other names of the columns; of an instruction with an input, the prompt is both
_PROMPTS = ("prompt", "question", "instruction", "query", "input", "questionText", "Context")  # the last: counselling
_COMPLETIONS = ("completion", "answer", "output", "response", "answerText", "Response")
_DIALOGUES = ("messages", "conversations", "conversation")
_ALWAYS_READ = ("system", "dialogue_id", "provenance", "tools", "chat_template_kwargs")
LABEL_WORDS = {
    **dict.fromkeys(("true", "yes", "1", "1.0", "+1", "good", "desirable", "chosen"), True),
    **dict.fromkeys(("false", "no", "0", "0.0", "-1", "-1.0", "bad", "undesirable", "rejected"), False),
}

Text = tuple[Message, ...] | str


def parse_row(value: Any, origin: str) -> Row:
    """One row of any of TRL's formats.

    Raises:
        BadRow: a field is missing or of a wrong type, the roles are out of order, or the row has pictures.
    """
    if not isinstance(value, dict):
        raise BadRow(f"the row is {kind_of(value)}, expected an object like {FORMATS}")
    refuse_media(value, "")
    system = _system(value)
    if "chosen" in value or "rejected" in value:
        return _preference(value, system, origin)
    if key := _first(value, _DIALOGUES):
        return _dialogue(value, key, system, origin)
    if _first(value, _PROMPTS) and _first(value, _COMPLETIONS):
        return _completion(value, system, origin)
    raise BadRow(f"found the keys {shown(', '.join(map(str, value))) or '(none)'}; expected {FORMATS}")


def unread_columns(value: Mapping[str, Any], row: Row) -> set[str]:
    """The columns that `parse_row` made nothing of."""
    if isinstance(row, PreferenceRow):
        read = {*_PROMPTS, "chosen", "rejected"}
    elif "chosen" not in value and (key := _first(value, _DIALOGUES)):
        read = {key, "id"}
    else:
        read = {*_PROMPTS, *_COMPLETIONS}
    if not isinstance(row, PreferenceRow) and row.label is not None:
        read.add("label")
    return {key for key, item in value.items() if item is not None} - read - set(_ALWAYS_READ)


def label_of(value: Any) -> bool | None:
    """Whether a reply is desirable, also as CSV and pandas write it; None where `label` says nothing of that."""
    text = str(value).strip().lower() if isinstance(value, bool | int | float | str) else ""
    return LABEL_WORDS.get(text)


def group_id(prompt: Text) -> str:
    """A name for rows that belong together when they do not say so: the same first user message (and system text)."""
    messages = _as_messages(prompt)
    text = repr([m for m in messages if m.role == "system"] + _first_user(messages))
    return hashlib.sha256(text.encode("utf-8")).hexdigest()[:16]


def messages_id(messages: Sequence[Message]) -> str:
    """A name for a whole dialogue: equal dialogues have equal names."""
    return hashlib.sha256(repr(messages).encode("utf-8")).hexdigest()[:16]


def _preference(value: dict[str, Any], system: tuple[Message, ...], origin: str) -> PreferenceRow:
    chosen, rejected = (_reply_text(value, key) for key in ("chosen", "rejected"))
    if isinstance(chosen, str) != isinstance(rejected, str):
        raise BadRow("chosen and rejected must both be text or both be lists of messages")
    prompt, chosen, rejected = _parted(_prompt(value), chosen, rejected)
    prompt = _with_system(prompt, system)
    return PreferenceRow(
        prompt=prompt,
        chosen=_reply(chosen, "chosen", prompt),
        rejected=_reply(rejected, "rejected", prompt),
        dialogue_id=_dialogue_id(value, prompt),
        origin=origin,
        meta={"provenance": value["provenance"]} if "provenance" in value else {},
        template_variables=_template_variables(value),
    )


def _parted(prompt: Text | None, chosen: Text, rejected: Text) -> tuple[Text, Text, Text]:
    """Prompt, chosen and rejected, where the two may be whole conversations that begin with the prompt, as TRL has it.

    Then the prompt is what both begin with, whatever a prompt column says in text.
    """
    if isinstance(chosen, str) or isinstance(rejected, str):
        is_whole = False
    else:
        is_whole = any(turns and turns[0].role != "assistant" for turns in (chosen, rejected))
    if prompt is None or (isinstance(prompt, str) and is_whole):
        length = _implicit_prompt_length(chosen, rejected)
        return chosen[:length], chosen[length:], rejected[length:]
    length = len(prompt)
    if is_whole and chosen[:length] == prompt == rejected[:length]:
        return prompt, chosen[length:], rejected[length:]
    return prompt, chosen, rejected


def _completion(value: dict[str, Any], system: tuple[Message, ...], origin: str) -> Row:
    prompt = _with_system(_prompt(value) or "", system)
    key = _first(value, _COMPLETIONS)
    completion, untrained = _text(value, key)
    label, variables = label_of(value.get("label")), _template_variables(value)
    if untrained and len(untrained) == sum(message.role == "assistant" for message in _as_messages(completion)):
        raise NoReply("no assistant turn to learn from")
    if not isinstance(completion, str) and len(completion) > 1:  # several turns: each assistant turn is trained
        if label is not None:
            raise BadRow(f"{key} has {len(completion)} messages and a label: expected one assistant message")
        head = _as_messages(prompt)
        messages = (*head, *completion)
        check_turns(messages)
        return Dialogue(
            messages,
            _dialogue_id(value, prompt),
            origin,
            first_trained=len(head),
            untrained=frozenset(index + len(head) for index in untrained),
            template_variables=variables,
        )
    return CompletionRow(
        prompt, _reply(completion, key, prompt), _dialogue_id(value, prompt), origin, _meta(value), label, variables
    )


def _dialogue(value: dict[str, Any], key: str, system: tuple[Message, ...], origin: str) -> Dialogue:
    text, untrained = _text(value, key)
    if isinstance(text, str):
        raise BadRow(f"{key} is text, expected a list of messages")
    messages = _as_messages(_with_system(text, system))
    untrained = frozenset(index + len(messages) - len(text) for index in untrained)
    check_turns(messages)
    if not any(message.role == "assistant" and n not in untrained for n, message in enumerate(messages)):
        raise NoReply("no assistant turn to learn from")
    named, given = value.get("dialogue_id"), value.get("id")
    names = [str(name) for name in (named, given) if name not in (None, "")]
    return Dialogue(
        messages,
        names[0] if names else messages_id(messages),
        origin,
        meta=_meta(value),
        untrained=untrained,
        template_variables=_template_variables(value),
        label=label_of(value.get("label")),
        named_by_id=bool(names) and named in (None, ""),
    )


def _first(value: Mapping[str, Any], keys: Sequence[str]) -> str:
    """The first of the columns that the row has; "" if none."""
    return next((key for key in keys if key in value), "")


def _prompt(value: dict[str, Any]) -> Text | None:
    """The row's prompt under any of its names; None if there is none."""
    found = [key for key in _PROMPTS if value.get(key) not in (None, "")]
    if "prompt" in value or not found:
        return _text(value, "prompt")[0] if "prompt" in value else None
    if len(found) > 1 and found != ["instruction", "input"]:
        raise BadRow(f"the prompt may be {' or '.join(found)}: name one of the columns prompt")
    parts = [_text(value, key)[0] for key in found]
    if len(parts) == 1:
        return parts[0]
    return "\n".join(checked_text(value[key], key) for key in found)


def _reply_text(value: dict[str, Any], key: str) -> Text:
    text, untrained = _text(value, key)
    if len(text) - 1 in untrained:
        raise BadRow(f"{key} ends with a reply that is context only, and both replies of a pair are trained")
    return text


def _text(value: dict[str, Any], key: str) -> tuple[Text, frozenset[int]]:
    """A field as text or as messages, and which of these are context only."""
    if key not in value:
        raise BadRow(f"{key} is missing; found {shown(', '.join(map(str, value)))}")
    content = value[key]
    if isinstance(content, list):
        return read_messages(content, key)
    if isinstance(content, str):
        return checked_text(content, key), frozenset()
    raise BadRow(f"{key} is {kind_of(content)}, expected text or a list of messages")


def _template_variables(value: dict[str, Any]) -> dict[str, Any]:
    """What the row says to the chat template beside its messages, as transformers passes it on."""
    variables = _from_json(value, "chat_template_kwargs") or {}
    if not isinstance(variables, dict):
        raise BadRow(f"chat_template_kwargs is {kind_of(variables)}, expected an object")
    tools = _from_json(value, "tools")
    if tools and not (isinstance(tools, list) and all(isinstance(tool, dict) for tool in tools)):
        raise BadRow(f"tools is {kind_of(tools)}, expected a list of objects (JSON schemas of functions)")
    told = {key: item for key, item in variables.items() if item is not None}
    return {**told, "tools": tools} if tools else told


def _from_json(value: dict[str, Any], key: str) -> Any:
    """A column that some sets keep as JSON text."""
    content = value.get(key)
    if not isinstance(content, str):
        return content
    try:
        return json_text.parse(content) if content.strip() else None
    except json_text.JsonError as error:
        raise BadRow(f"{key} is text, but not JSON: {error}") from None


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
    used = (*_DIALOGUES, *_PROMPTS, *_COMPLETIONS, "system", "id", "dialogue_id", "tools", "chat_template_kwargs")
    return {key: item for key, item in value.items() if key not in used}
