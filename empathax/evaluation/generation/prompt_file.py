"""Prompts of a file: JSON lines with a prompt or messages, or plain text with a prompt a line."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from empathax.data.files import BadRow, check_ordinary, read_values
from empathax.data.messages import check_turns, checked_text
from empathax.data.records import ROLES, Message, Tally
from empathax.errors import DataError, raise_all
from empathax.shown import quoted, shown

_JSON_SUFFIXES = (".jsonl", ".json", ".ndjson", ".parquet", ".csv")


@dataclass(frozen=True)
class PromptRow:
    """One prompt: `given` is the row's own value, for the output; `messages` end with a user turn."""

    given: Any
    messages: tuple[Message, ...]


def read_prompts(path: Path, system: str | None = None) -> list[PromptRow]:
    """The prompts of a file in its order, led by `system` where they bring no system message of their own.

    JSON rows are {"prompt": text or messages} or {"messages": ...} (a last assistant turn, the reply, is left out);
    files with another name ending are plain text, empty lines skipped, unless they begin with "{". Raises one DataError
    with every row that cannot be used.
    """
    tally = Tally()
    rows: list[PromptRow] = []
    for value, origin in _values(path, tally):
        try:
            rows.append(_with_system(_prompt_row(value), system))
        except BadRow as error:
            tally.add_bad(origin, str(error))
    raise_all(DataError, f"{len(tally.bad)} row(s) of {path} cannot be used", tally.bad, limit=5)
    if not rows:
        raise DataError(f"{path}: there is no prompt in it")
    return rows


def _values(path: Path, tally: Tally) -> Iterator[tuple[Any, str]]:
    if path.suffix.lower() in _JSON_SUFFIXES or _begins_with_brace(path):
        yield from read_values(path, tally)
        return
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")  # whatever the file ends its lines with
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 at byte {error.start}; save it as UTF-8") from None
    for number, line in enumerate(lines, start=1):
        if line.strip():
            yield {"prompt": line.strip()}, f"{path}:{number}"


def _begins_with_brace(path: Path) -> bool:
    try:
        check_ordinary(path)
        with path.open("rb") as file:
            return file.read(4096).removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"{")
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}; expected a file of prompts") from None


def _with_system(row: PromptRow, system: str | None) -> PromptRow:
    if not system or row.messages[0].role == "system":
        return row
    return PromptRow(row.given, (Message("system", system), *row.messages))


def _prompt_row(value: Any) -> PromptRow:
    if not isinstance(value, dict) or not ({"prompt", "messages"} & value.keys()):
        found = f"the keys {shown(', '.join(map(str, value)))}" if isinstance(value, dict) else type(value).__name__
        raise BadRow(f'found {found}; expected {{"prompt": text or messages}} or {{"messages": ...}}')
    given = value["prompt"] if "prompt" in value else value["messages"]
    if isinstance(given, list):
        return PromptRow(given, _prompt_messages(given))
    text = checked_text(given, "prompt")
    if not text.strip():
        raise BadRow("the prompt is empty")
    return PromptRow(given, (Message("user", text),))


def _prompt_messages(given: list[Any]) -> tuple[Message, ...]:
    messages = tuple(_message(item, number) for number, item in enumerate(given))
    check_turns(messages)
    if messages and messages[-1].role == "assistant":
        messages = messages[:-1]
    if not messages or messages[-1].role != "user":
        raise BadRow("wrong role order: a prompt must end with a user message")
    return messages


def _message(item: Any, number: int) -> Message:
    if not isinstance(item, dict) or not {"role", "content"} <= item.keys():
        raise BadRow(f'message {number} is no {{"role", "content"}}')
    if item["role"] not in ROLES:
        raise BadRow(f"message {number}: unknown role {quoted(item['role'])}, expected one of {', '.join(ROLES)}")
    return Message(item["role"], checked_text(item["content"], f"message {number}"))
