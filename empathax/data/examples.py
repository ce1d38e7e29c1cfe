"""Rows to examples: each prompt with its reply or replies as token ids, in units that stay together in a packed row."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Int32

from empathax.config.losses import LABELED_ROWS, MISMATCHED_ROWS, REPLY_ROWS
from empathax.data.chat import EncodedReply
from empathax.data.encoding import Prompt, ReplyEncoder, Unusable
from empathax.data.prefix_tree import ScoredSequence
from empathax.data.records import CompletionRow, Dialogue, PreferenceRow, Row
from empathax.data.row_plan import Group, Unit


@dataclass(frozen=True)
class Example:
    """A prompt and the reply to learn (of a pair, the chosen one), for sampling and for metrics.

    `prompt_ids` are what a model continues; `turn` of `num_turns` is the reply's place among its dialogue's replies.
    """

    prompt: Prompt
    prompt_ids: Int32[np.ndarray, " prompt"]
    reply: str
    sequence_ids: tuple[int, ...]  # (reply,) or (chosen, rejected)
    dialogue_id: str
    origin: str
    turn: int
    num_turns: int
    meta: Mapping[str, Any] = field(default_factory=dict)
    labels: tuple[bool, ...] = ()  # of single replies with a label: whether each of `sequence_ids` is desirable

    @property
    def is_wanted(self) -> bool:
        """Whether `reply` is one to learn from: all but undesirable ones."""
        return self.labels != (False,)


@dataclass(frozen=True)
class EncodedSplit:
    """One split, encoded: units by dialogue, and the examples they came from."""

    groups: tuple[Group, ...]
    examples: tuple[Example, ...]

    @property
    def labels(self) -> tuple[bool, ...]:
        """The labels of replies by sequence id; () where they have none."""
        return tuple(label for example in self.examples for label in example.labels)


def encode_rows(
    rows: Sequence[Row], rows_kind: str, encoder: ReplyEncoder, dropped: Counter[str], counts: Counter[str]
) -> EncodedSplit:
    """Units of one split by dialogue, in the rows' order; `rows_kind` as in `load_splits`.

    Examples that cannot be used are counted in `dropped` by reason; `counts` gets what is worth knowing besides.
    """
    labeled = rows_kind in (LABELED_ROWS, MISMATCHED_ROWS)
    groups: dict[str, list[Unit]] = {}
    examples: list[Example] = []
    num_turns = _num_turns(rows)
    next_id = 0
    for row in rows:
        if rows_kind == REPLY_ROWS and isinstance(row, CompletionRow) and row.label is False:
            counts["undesirable replies, which sft leaves out"] += 1
            continue
        for prompt, replies in replies_of(row, rows_kind):
            try:
                if len(replies) == 2 and replies[0].strip() == replies[1].strip():
                    raise Unusable("chosen equals rejected")
                encoded = encoder.encode(prompt, replies)
            except Unusable as error:
                dropped[error.reason] += 1
                continue
            unit = tuple(to_sequence(reply, next_id + n) for n, reply in enumerate(encoded.replies))
            next_id += len(unit)
            counts["examples with a truncated prompt"] += encoded.truncated
            counts["replies whose first token joins the prompt's end"] += sum(
                reply.num_mismatched > 0 for reply in encoded.replies
            )
            groups.setdefault(row.dialogue_id, []).extend([(reply,) for reply in unit] if labeled else [unit])
            examples.append(
                Example(
                    prompt=encoded.prompt,
                    prompt_ids=encoded.replies[0].prompt_ids,
                    reply=replies[0],
                    sequence_ids=tuple(sequence.sequence_id for sequence in unit),
                    dialogue_id=row.dialogue_id,
                    origin=row.origin,
                    turn=_num_replies(prompt),
                    num_turns=num_turns[row.dialogue_id],
                    meta=row.meta,
                    labels=_labels(row) if labeled else (),
                )
            )
    return EncodedSplit(tuple(groups.values()), tuple(examples))


def replies_of(row: Row, rows_kind: str) -> Iterator[tuple[Prompt, tuple[str, ...]]]:
    """(prompt, replies) of each example a row gives; of a pair, REPLY_ROWS are the chosen reply alone."""
    if isinstance(row, PreferenceRow):
        yield row.prompt, (row.chosen,) if rows_kind == REPLY_ROWS else (row.chosen, row.rejected)
    elif isinstance(row, CompletionRow):
        yield row.prompt, (row.completion,)
    else:
        for index, message in enumerate(row.messages):
            if message.role == "assistant" and index >= row.first_trained:
                yield row.messages[:index], (message.content,)


def _labels(row: Row) -> tuple[bool, ...]:
    """Of a pair's replies, or of a single one."""
    return (bool(row.label),) if isinstance(row, CompletionRow) else (True, False)


def to_sequence(reply: EncodedReply, sequence_id: int) -> ScoredSequence:
    """A reply as it goes into a prefix tree."""
    return ScoredSequence(reply.prompt_ids, reply.reply_ids, sequence_id)


def _num_replies(prompt: Prompt) -> int:
    """Assistant turns already given: the place of the next reply among its dialogue's."""
    return 0 if isinstance(prompt, str) else sum(message.role == "assistant" for message in prompt)


def _num_turns(rows: Sequence[Row]) -> dict[str, int]:
    """Replies of each dialogue, as far as the rows tell."""
    counts: dict[str, int] = {}
    for row in rows:
        num_replies = _num_replies(row.messages) if isinstance(row, Dialogue) else _num_replies(row.prompt) + 1
        counts[row.dialogue_id] = max(counts.get(row.dialogue_id, 0), num_replies)
    return counts
