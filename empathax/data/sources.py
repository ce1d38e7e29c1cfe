"""From `data.path` to typed rows: what format they have, what is held out, what makes a pair."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import itertools
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

from empathax import json_text
from empathax.config import DataOptions
from empathax.config.losses import LABELED_ROWS, MISMATCHED_ROWS, PAIRED_ROWS, REPLY_ROWS
from empathax.data.files import BadRow, NoReply, Part, Values, open_source
from empathax.data.records import CompletionRow, Dialogue, Row, Tally
from empathax.data.support_corpora import esconv_pairs, parse_empathetic_dialogues, parse_esconv
from empathax.data.trl_format import LABEL_WORDS, group_id, messages_id, parse_row, unread_columns
from empathax.errors import DataError, raise_all
from empathax.shown import shown

SHOWN_REASONS = 5


@dataclass
class Splits:
    """Rows to train on and rows held out, and what was lost while reading them."""

    train: list[Row]
    eval: list[Row]
    tally: Tally


def load_splits(options: DataOptions, rows_kind: str, seed: int = 0) -> Splits:
    """Rows of `rows_kind`: REPLY_ROWS, PAIRED_ROWS, LABELED_ROWS or MISMATCHED_ROWS of config/losses.py.

    All but REPLY_ROWS are read from `preference_path` where that is set. The held-out rows are those of `eval_path`,
    which belongs to `path`; else the source's own split (`eval_split`); else a fraction `eval_fraction` of the rows,
    chosen by a hash of their dialogue, the same for every seed. `seed` draws the rejected replies of pairs that are
    made of dialogues.

    Raises:
        DataError: nothing there, not readable, no row of a known format, or more bad rows than `max_bad_fraction`.
    """
    tally = Tally()
    own = bool(rows_kind != REPLY_ROWS and options.preference_path)
    path = options.preference_path if own else options.path
    if not path:
        raise DataError("data.path is empty: set it to a file, a directory, a hub name or 'samples'")
    opened = open_source(path, rows_kind, options.eval_split, options.train_split)
    parts = {name: _rows(part, options, tally) for name, part in opened.items()}
    parts = _without_repeated_ids(_without_class_labels(parts), tally)
    if options.eval_path and not own:
        parts["eval"] = _held_out_file(options, rows_kind, tally)
        parts["train"] = parts.get("train", parts.pop("all", []))
    _check_split(path, options.eval_split, parts)
    _check_bad_rows(tally, options.max_bad_fraction)
    if not any(parts.values()):
        raise DataError(f"{path}: there is no row in it")
    parts = {name: _seeker_first(rows, options.seeker_first_only, tally) for name, rows in parts.items()}
    if "eval" not in parts:
        parts = _held_out(parts.get("all", parts.get("train", [])), options.eval_fraction)
    train, held = parts.get("train", parts.get("all", [])), parts["eval"]
    if rows_kind == PAIRED_ROWS or (options.unpair and rows_kind != REPLY_ROWS):
        train, held = (_as_pairs(rows, options, seed, path) for rows in (train, held))
    if rows_kind in (LABELED_ROWS, MISMATCHED_ROWS):
        train, held = ([_labeled(row) for row in rows] for rows in (train, held))
        _check_labels([*train, *held], options.unpair, path)
        _check_both_labels(train, path)
    _count_unread(tally)
    return Splits(_limited(train, options.max_train_dialogues), _limited(held, options.max_eval_dialogues), tally)


def load_all(path: str, options: DataOptions) -> tuple[list[Row], Tally]:
    """Every row of one source in its own order, one split after another.

    Raises:
        DataError: as `load_splits`.
    """
    tally = Tally()
    rows = [row for part in open_source(path, REPLY_ROWS).values() for row in _rows(part, options, tally)]
    _check_bad_rows(tally, options.max_bad_fraction)
    if not rows:
        raise DataError(f"{path}: there is no row in it")
    return rows, tally


def load_by_split(options: DataOptions) -> dict[str, list[Row]]:
    """Every row of `path` by split: "train", and "valid" and "test" where there are such rows.

    "valid" are the rows of `eval_path`, then those of the source's own validation split, never its test split. A source
    without splits is "train", with a fraction `eval_fraction` as "valid".

    Raises:
        DataError: as `load_splits`.
    """
    tally = Tally()
    opened = open_source(options.path, REPLY_ROWS, "valid alone", options.train_split)
    test = open_source(options.path, REPLY_ROWS, "test", options.train_split).get("eval")
    train = _rows(opened.get("train") or opened["all"], options, tally)
    valid = _held_out_file(options, REPLY_ROWS, tally) if options.eval_path else []
    valid += _rows(opened["eval"], options, tally) if "eval" in opened else []
    known = {_content(row) for row in valid}  # a held-out file may be one of the source's own
    rest = [row for row in _rows(test, options, tally) if _content(row) not in known] if test else []
    _check_bad_rows(tally, options.max_bad_fraction)
    named = _without_repeated_ids({"train": train, "valid": valid, "rest": rest}, tally)
    train, valid, rest = named["train"], named["valid"], named["rest"]
    if not (valid or rest):
        parts = _held_out(train, options.eval_fraction)
        train, valid = parts["train"], parts["eval"]
    found = {split: rows for split, rows in (("train", train), ("valid", valid), ("test", rest)) if rows}
    if not found:
        raise DataError(f"{options.path}: there is no row in it")
    return found


def _held_out_file(options: DataOptions, rows_kind: str, tally: Tally) -> list[Row]:
    opened = open_source(options.eval_path, rows_kind)
    return _rows(opened.get("eval") or opened.get("all") or opened["train"], options, tally)


def _content(row: Row) -> str:
    return repr(dataclasses.replace(row, origin=""))


def _check_bad_rows(tally: Tally, max_bad_fraction: float) -> None:
    """Raises a DataError with the first reasons if more rows are bad than allowed."""
    if not tally.bad or len(tally.bad) <= max_bad_fraction * tally.num_rows:
        return
    allowed = f"data.max_bad_fraction = {max_bad_fraction:g} allows {int(max_bad_fraction * tally.num_rows)}"
    heading = f"{len(tally.bad)} of {tally.num_rows} rows cannot be used ({allowed})"
    raise_all(DataError, heading, tally.bad, limit=SHOWN_REASONS)


def _check_split(path: str, eval_split: str, parts: Collection[str]) -> None:
    """Raises a DataError if a split is asked for and there is none: nobody would notice other rows instead."""
    if eval_split != "valid" and "eval" not in parts:
        raise DataError(
            f"{path}: found no {eval_split} split, which data.eval_split = {eval_split!r} asks for; name the held-out "
            "file in data.eval_path, or leave data.eval_split at 'valid'"
        )


def _split_key(row: Row) -> str:
    """What the held-out split is decided by: the row's `dialogue_id` if it has one, else how the dialogue begins.

    Rows of one dialogue are then on the same side, whatever kind of rows is read.
    """
    if isinstance(row, Dialogue) and (row.named_by_id or row.dialogue_id == messages_id(row.messages)):
        return group_id(row.messages)  # pairs of the same dialogue know no id of it
    return row.dialogue_id


def _rows(part: Part, options: DataOptions, tally: Tally) -> list[Row]:
    """The typed rows of one split, each file by its own format."""
    return [row for values in part(tally) for row in _parsed(values, options.source, tally)]


def _parsed(values: Values, source: str, tally: Tally) -> Iterator[Row]:
    rest = ((_unwrapped(value), origin) for value, origin in values)
    first = next(rest, None)
    if first is None:
        return
    source = _detected(first[0]) if source == "auto" else source
    for result, origin in _results(itertools.chain([first], rest), source, tally):
        tally.num_rows += 1
        if isinstance(result, NoReply):
            tally.dropped[str(result)] += 1
        elif isinstance(result, BadRow):
            tally.add_bad(origin, str(result))
        else:
            yield result


def _results(values: Values, source: str, tally: Tally) -> Iterator[tuple[Row | BadRow, str]]:
    """Typed rows, or what is wrong with them."""
    if source == "empathetic_dialogues":
        yield from parse_empathetic_dialogues(values)
        return
    parse = parse_esconv if source == "esconv" else parse_row
    for value, origin in values:
        try:
            row = parse(value, origin)
        except BadRow as error:
            yield error, origin
            continue
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            yield BadRow(f"malformed ({type(error).__name__}: {shown(str(error))})"), origin
            continue
        if parse is parse_row:
            tally.unread.update(unread_columns(value, row))
        yield row, origin


def _unwrapped(value: Any) -> Any:
    """The row without columns that are null in it, as parquet has them too.

    A null prompt stays, which a row of a pair must not have. The hub's copy of ESConv (thu-coai/esconv) is lines of
    JSON in a column "text".
    """
    if not isinstance(value, dict):
        return value
    if value.keys() == {"text"} and str(value["text"]).startswith("{"):
        with contextlib.suppress(json_text.JsonError):
            return json_text.parse(value["text"])
    is_pair = value.get("chosen") is not None
    return {key: item for key, item in value.items() if item is not None or (key == "prompt" and is_pair)}


def _detected(value: Any) -> str:
    """The format of a source, from its first row."""
    if isinstance(value, dict) and "dialog" in value:
        return "esconv"
    if isinstance(value, dict) and {"conv_id", "utterance"} <= value.keys():
        return "empathetic_dialogues"
    return "trl"


def _seeker_first(rows: list[Row], only: bool, tally: Tally) -> list[Row]:
    def supporter_opens(row: Row) -> bool:
        turns = [m for m in row.messages if m.role != "system"] if isinstance(row, Dialogue) else []
        return bool(turns) and turns[0].role == "assistant"

    kept = [row for row in rows if not (only and supporter_opens(row))]
    tally.counts["dialogues left out because the supporter opens them"] += len(rows) - len(kept)
    return kept


def _held_out(rows: list[Row], fraction: float) -> dict[str, list[Row]]:
    """Splits off `fraction` by a hash of what rows belong to; at least one on each side where there are two."""
    keys = sorted({_split_key(row) for row in rows}, key=_hash)
    if fraction <= 0.0 or len(keys) < 2:
        return {"train": rows, "eval": []}
    num_held = sum(_hash(key) < fraction * 2**64 for key in keys)
    held = set(keys[: min(max(num_held, 1), len(keys) - 1)])
    return {
        "train": [row for row in rows if _split_key(row) not in held],
        "eval": [row for row in rows if _split_key(row) in held],
    }


def _hash(key: str) -> int:
    return int.from_bytes(hashlib.sha256(f"held out/{key}".encode()).digest()[:8], "big")


def _as_pairs(rows: list[Row], options: DataOptions, seed: int, path: str) -> list[Row]:
    """Preference rows unchanged, and pairs made of dialogues.

    Single replies with a label are kept only with `unpair`, where pairs are split into single replies anyway.
    """
    dialogues, rejected = [row for row in rows if isinstance(row, Dialogue)], options.esconv_rejected
    single = [row for row in rows if isinstance(row, CompletionRow)]
    if not options.unpair and any(row.label is not None for row in single):
        raise DataError(
            f"{path}: the rows are single replies with a label, and dpo.loss compares pairs: set dpo.loss to 'kto' or "
            "'apo_zero_unpaired', or data.preference_path to rows with prompt, chosen and rejected"
        )
    unpaired = bool(single) and not options.unpair
    if unpaired or (rejected == "advice" and any("strategies" not in dialogue.meta for dialogue in dialogues)):
        raise DataError(
            f"{path}: the rows have no rejected reply, which dpo needs: set data.preference_path to rows with prompt, "
            "chosen and rejected" + ("" if unpaired else ", or data.esconv_rejected='random'")
        )
    made = esconv_pairs(dialogues, rejected, seed) if dialogues else []
    return [*(row for row in rows if not isinstance(row, Dialogue)), *made]


def _labeled(row: Row) -> Row:
    """A dialogue with a label as its last reply with this label; any other row as it is."""
    if not isinstance(row, Dialogue) or row.label is None or row.messages[-1].role != "assistant":
        return row
    *prompt, reply = row.messages
    return CompletionRow(
        tuple(prompt), reply.content, row.dialogue_id, row.origin, row.meta, row.label, row.template_variables
    )


def _check_both_labels(rows: list[Row], path: str) -> None:
    """Raises a DataError if all single replies to train on have the same label: there is nothing to tell apart."""
    labels = {row.label for row in rows if isinstance(row, CompletionRow)}
    if len(labels) == 1 and all(isinstance(row, CompletionRow) for row in rows):
        raise DataError(
            f"{path}: all {len(rows)} replies to train on have the label {str(labels.pop()).lower()}, and dpo.loss "
            "learns from desirable and undesirable ones: add the others, or train on desirable ones with the sft stage"
        )


def _without_repeated_ids(parts: dict[str, list[Row]], tally: Tally) -> dict[str, list[Row]]:
    """Dialogues whose `id` another dialogue has too are named by their text: it names something else there."""
    beginnings: dict[str, set[str]] = {}
    named = [row for rows in parts.values() for row in rows if isinstance(row, Dialogue) and row.named_by_id]
    for row in named:
        beginnings.setdefault(row.dialogue_id, set()).add(group_id(row.messages))
    repeated = {name for name, found in beginnings.items() if len(found) > 1}
    tally.counts["dialogues with an id that others have too"] += sum(row.dialogue_id in repeated for row in named)

    def renamed(row: Row) -> Row:
        if not isinstance(row, Dialogue) or not row.named_by_id or row.dialogue_id not in repeated:
            return row
        return dataclasses.replace(row, dialogue_id=messages_id(row.messages), named_by_id=False)

    return {name: [renamed(row) for row in rows] for name, rows in parts.items()} if repeated else parts


def _without_class_labels(parts: dict[str, list[Row]]) -> dict[str, list[Row]]:
    """Dialogues without labels where the column holds others too: it is about something else (an emotion's number)."""
    dialogues = (row for rows in parts.values() for row in rows if isinstance(row, Dialogue))
    if all(row.meta.get("label") in (None, "") or row.label is not None for row in dialogues):
        return parts

    def unlabeled(row: Row) -> Row:
        return dataclasses.replace(row, label=None) if isinstance(row, Dialogue) else row

    return {name: [unlabeled(row) for row in rows] for name, rows in parts.items()}


def _count_unread(tally: Tally) -> None:
    if tally.unread:
        names = ", ".join(sorted(tally.unread))
        tally.counts[f"rows with columns that are not read ({names})"] = max(tally.unread.values())


def _check_labels(rows: list[Row], unpair: bool, path: str) -> None:
    """Raises a DataError unless every row is a reply with a label, or a pair that `unpair` splits."""
    if not unpair and any(not isinstance(row, CompletionRow) for row in rows):
        raise DataError(
            f"{path}: the rows are pairs or dialogues, and dpo.loss takes single replies with a label: set "
            "data.unpair=true to make a desirable and an undesirable reply of each pair, or give rows with prompt, "
            "completion and label"
        )
    unlabeled = [row for row in rows if isinstance(row, CompletionRow) and row.label is None]
    if unlabeled:
        first = unlabeled[0]
        found = f" (label is {first.meta['label']!r})" if first.meta.get("label") is not None else ""
        words = ", ".join(word for word in LABEL_WORDS if "." not in word)
        raise DataError(
            f"{path}: {len(unlabeled)} of {len(rows)} replies have no label, the first at {first.origin}{found}: "
            f'expected "label": true where the reply is desirable, false where it is not; one of {words}'
        )


def _limited(rows: list[Row], num_dialogues: int) -> list[Row]:
    """The rows of the first `num_dialogues` dialogues; 0 = all."""
    if not num_dialogues:
        return rows
    kept = set(itertools.islice(dict.fromkeys(row.dialogue_id for row in rows), num_dialogues))
    return [row for row in rows if row.dialogue_id in kept]
