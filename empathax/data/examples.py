"""Rows to examples: each prompt with its reply or replies as token ids, within data.max_length, in units for packing.

What is cut when a prompt and its longest reply are too long, in this order:
1. whole turns, oldest first, so that a user turn comes first; system text and BOS stay. Turns go in steps of a quarter
   of max_length: the late replies of a long dialogue then keep one beginning, and still share it in a prefix tree;
2. the beginning of the last user turn;
3. nothing more: a reply is never cut. If it does not fit after MIN_PROMPT_TOKENS of the last user turn, the example
   is dropped, with a reason that the caller counts.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Int32

from empathax.config import DataOptions
from empathax.config.losses import LABELED_ROWS, MISMATCHED_ROWS, REPLY_ROWS
from empathax.data.chat import ChatTemplate, EncodedReply
from empathax.data.prefix_tree import ScoredSequence
from empathax.data.records import CompletionRow, Dialogue, Message, PreferenceRow, Row
from empathax.data.row_plan import Group, Unit
from empathax.data.sandbox import TemplateRefused
from empathax.data.templates import system_text
from empathax.data.transcripts import transcript_turns

MIN_PROMPT_TOKENS = 16

Prompt = tuple[Message, ...] | str
Encode = Callable[[Sequence[Message]], tuple[EncodedReply, ...]]  # a prompt with each of its replies


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
        if rows_kind == REPLY_ROWS and not isinstance(row, PreferenceRow) and row.label is False:
            counts["undesirable replies, which sft leaves out"] += 1
            continue
        if isinstance(row, Dialogue):
            calls = sum("tool_calls" in message.extra for message in row.messages)
            counts["turns that call tools, which are context only"] += calls
        for prompt, replies in replies_of(row, rows_kind):
            try:
                if len(replies) == 2 and replies[0].strip() == replies[1].strip():
                    raise Unusable("chosen equals rejected")
                encoded = encoder.encode(prompt, replies, row.template_variables)
            except Unusable as error:
                dropped[error.reason] += 1
                continue
            unit = tuple(to_sequence(reply, next_id + n) for n, reply in enumerate(encoded.replies))
            next_id += len(unit)
            counts["examples with a truncated prompt"] += encoded.truncated
            counts["replies whose first token joins the prompt's end"] += sum(
                reply.num_mismatched > 0 for reply in encoded.replies
            )
            counts["tokens of replies that open or end turns, kept as text"] += sum(
                reply.num_spelled for reply in encoded.replies
            )
            counts["replies without thoughts where the template opens them"] += sum(
                reply.is_thought for reply in encoded.replies
            )
            groups.setdefault(row.dialogue_id, []).extend([(reply,) for reply in unit] if labeled else [unit])
            examples.append(
                Example(
                    prompt=encoded.prompt,
                    prompt_ids=encoded.replies[0].prompt_ids,
                    reply=(encoded.texts or replies)[0],
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
            if row.is_trained(index):
                yield row.messages[:index], (message.content,)


def to_sequence(reply: EncodedReply, sequence_id: int) -> ScoredSequence:
    """A reply as it goes into a prefix tree."""
    return ScoredSequence(reply.prompt_ids, reply.reply_ids, sequence_id)


class Unusable(Exception):
    """An example that cannot be used: `reason` is counted, `detail` tells about this one."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(detail or reason)
        self.reason = reason


@dataclass(frozen=True)
class EncodedExample:
    """The replies to one prompt, which all have the same prompt after truncation."""

    prompt: Prompt
    replies: tuple[EncodedReply, ...]
    truncated: bool
    texts: tuple[str, ...] = ()  # of the replies; of a transcript, without what belongs to the prompt


class ReplyEncoder:
    """Encodes prompts with one or several replies as `options` say; `truncate=False` refuses what is too long."""

    def __init__(self, template: ChatTemplate, options: DataOptions, truncate: bool = True) -> None:
        self.template = template
        self._max_length = options.max_length
        self._raw = options.plain_text == "raw"
        self._system = system_text(options.system_prompt)
        self._opening_user_turn = options.opening_user_turn
        self._truncate = truncate

    def encode(
        self, prompt: Prompt, replies: Sequence[str], variables: Mapping[str, Any] | None = None
    ) -> EncodedExample:
        """Token ids of `prompt` with each of `replies`; `variables` are the row's own, for the chat template.

        Raises:
            Unusable: an empty reply, messages the template refuses, or no room for the longest reply.
        """
        if any(not reply.strip() for reply in replies):
            raise Unusable("empty reply")
        if self._raw and isinstance(prompt, str):
            return self._fitted_text(prompt, replies)
        if isinstance(prompt, str) and (transcript := transcript_turns(prompt)):
            prompt, beginning = transcript
            replies = [(beginning + reply).strip() for reply in replies]

        messages = self.prepared(prompt)
        if any(message.role == "tool" for message in messages) and not self.template.prints_tool_messages:
            raise Unusable("tool messages, which the chat template does not print")

        def encode(messages: Sequence[Message]) -> tuple[EncodedReply, ...]:
            return tuple(self.template.encode_example(messages, reply, variables) for reply in replies)

        try:
            return dataclasses.replace(self._fitted_messages(messages, encode), texts=tuple(replies))
        except TemplateRefused as error:
            raise Unusable("refused by the chat template", str(error)) from None

    def prepared(self, prompt: Prompt) -> tuple[Message, ...]:
        """A prompt's messages with the configured system text and, where the template needs one, an opening turn."""
        messages = (Message("user", prompt),) if isinstance(prompt, str) else prompt
        if self._system and not (messages and messages[0].role == "system"):
            messages = (Message("system", self._system), *messages)
        return self.template.with_opening(messages, self._opening_user_turn)

    def _fitted_messages(self, messages: tuple[Message, ...], encode: Encode) -> EncodedExample:
        encoded = encode(messages)
        if _longest(encoded) <= self._max_length:
            return EncodedExample(messages, encoded, truncated=False)
        self._check_strict(encoded)
        shorter = self._without_oldest_turns(messages, encode, _longest(encoded))
        encoded = encode(shorter)
        if _longest(encoded) > self._max_length:
            shorter, encoded = self._without_beginning(shorter, encode, encoded)
        return EncodedExample(shorter, encoded, truncated=True)

    def _without_oldest_turns(
        self, messages: tuple[Message, ...], encode: Encode, num_tokens: int
    ) -> tuple[Message, ...]:
        """The most turns that remain when at least the needed tokens are cut, in steps; at least the last user turn."""
        system = tuple(message for message in messages if message.role == "system")
        turns = messages[len(system) :]
        candidates = [turns[i:] for i, turn in enumerate(turns) if i and turn.role == "user"]
        if not candidates:
            return messages
        step = max(self._max_length // 4, 1)
        needed = -(-(num_tokens - self._max_length) // step) * step
        low, high = 0, len(candidates) - 1
        while low < high:
            middle = (low + high) // 2
            if num_tokens - _longest(encode((*system, *candidates[middle]))) >= needed:
                high = middle
            else:
                low = middle + 1
        return (*system, *candidates[low])

    def _without_beginning(
        self, messages: tuple[Message, ...], encode: Encode, encoded: tuple[EncodedReply, ...]
    ) -> tuple[tuple[Message, ...], tuple[EncodedReply, ...]]:
        """The oldest kept turn without its first tokens."""
        tokenizer = self.template.tokenizer
        system = tuple(message for message in messages if message.role == "system")
        turns = messages[len(system) :]
        ids = tokenizer.encode_plain(turns[0].content) if turns else []
        least = min(MIN_PROMPT_TOKENS, len(ids))
        cut = 0
        while (excess := _longest(encoded) - self._max_length) > 0:
            cut += excess
            if len(turns) != 1 or len(ids) - cut < least:
                raise Unusable(
                    "no room for the reply within data.max_length",
                    "the reply and the least of its prompt take more than "
                    f"data.max_length = {self._max_length} tokens; raise it",
                )
            text = tokenizer.decode(ids[cut:]).lstrip("\ufffd \n")  # a character may have been cut in two
            messages = (*system, Message("user", text))
            encoded = encode(messages)
        return messages, encoded

    def _fitted_text(self, prompt: str, replies: Sequence[str]) -> EncodedExample:
        encoded = tuple(self.template.encode_raw(prompt, reply) for reply in replies)
        if any(not len(reply.prompt_ids) for reply in encoded):
            raise Unusable("empty prompt", "the prompt is empty and the tokenizer adds no BOS token to start from")
        excess = _longest(encoded) - self._max_length
        if excess <= 0:
            return EncodedExample(prompt, encoded, truncated=False)
        self._check_strict(encoded)
        num_bos = int(self.template.tokenizer.add_bos)
        room = min(len(reply.prompt_ids) for reply in encoded) - num_bos
        if room - excess < min(MIN_PROMPT_TOKENS, room):
            raise Unusable(
                "no room for the reply within data.max_length",
                f"the reply alone takes almost all of data.max_length = {self._max_length} tokens; raise it",
            )
        return EncodedExample(prompt, tuple(_cut(reply, num_bos, excess) for reply in encoded), truncated=True)

    def _check_strict(self, encoded: tuple[EncodedReply, ...]) -> None:
        if not self._truncate:
            raise Unusable(
                "longer than data.max_length",
                f"prompt and reply take {_longest(encoded)} tokens; the limit data.max_length is {self._max_length}",
            )


def _labels(row: Row) -> tuple[bool, ...]:
    """Of a pair's replies, or of a single one."""
    return (bool(row.label),) if isinstance(row, CompletionRow) else (True, False)


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


def _longest(encoded: Sequence[EncodedReply]) -> int:
    return max(reply.num_tokens for reply in encoded)


def _cut(reply: EncodedReply, start: int, count: int) -> EncodedReply:
    kept = np.delete(reply.prompt_ids, slice(start, start + count))
    return EncodedReply(kept, reply.reply_ids, reply.num_mismatched)
