"""The one door of this package: settings in, packed rows with their examples and a report out."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Int32

from empathax.config import DataOptions
from empathax.data.chat import ChatTemplate, EncodedReply
from empathax.data.encoding import Prompt, ReplyEncoder, Unusable
from empathax.data.packing import PackedRows, pack
from empathax.data.packing_report import packing_report
from empathax.data.prefix_tree import ScoredSequence
from empathax.data.records import CompletionRow, Dialogue, PreferenceRow, Row
from empathax.data.row_plan import Group, Unit
from empathax.data.sources import load_splits
from empathax.errors import ConfigError, DataError

if TYPE_CHECKING:
    from empathax.models.model_config import ModelConfig
    from empathax.models.tokenizer import Tokenizer


@dataclass(frozen=True)
class Example:
    """A prompt and the reply that is to be learned (in pairs, the chosen one), for sampling and for metrics.

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


@dataclass(frozen=True)
class EncodedSplit:
    """One split, encoded: units by dialogue, and the examples they came from."""

    groups: tuple[Group, ...]
    examples: tuple[Example, ...]


@dataclass(frozen=True)
class Dataset:
    """Rows to train and to evaluate on. Sequence ids count from 0 in each of the two.

    `report` holds figures and counts (nested dicts of plain values); `rejects` every row that could not be read;
    `fingerprint` names what the rows depend on: a resumed run or a cached reference must find it unchanged.
    """

    objective: str
    train: PackedRows
    eval: PackedRows
    train_examples: tuple[Example, ...]
    eval_examples: tuple[Example, ...]
    template: ChatTemplate
    report: dict[str, Any]
    rejects: tuple[str, ...]
    fingerprint: dict[str, str]

    @property
    def stop_token_ids(self) -> tuple[int, ...]:
        """Tokens at which generation ends."""
        return self.template.stop_token_ids

    def write_rejects(self, path: Path) -> None:
        """Writes the rows that could not be read, one "file:line: reason" a line."""
        path.write_text("".join(f"{line}\n" for line in self.rejects), encoding="utf-8")


def build_dataset(
    options: DataOptions, objective: str, tokenizer: Tokenizer, model_config: ModelConfig, seed: int = 0
) -> Dataset:
    """Reads, encodes and packs the data of one stage ("sft" or "dpo").

    Raises:
        DataError: see data/sources.py; also if more examples are lost than `max_dropped_fraction`.
        ConfigError: a token id the model has no embedding for; a row_length too short.
    """
    template = ChatTemplate(tokenizer, options.chat_template, model_config.family)
    encoder = ReplyEncoder(template, options)
    splits = load_splits(options, objective, seed)
    dropped: Counter[str] = Counter(splits.tally.dropped)
    counts: Counter[str] = Counter(splits.tally.counts)
    encoded = [encode_rows(rows, objective, encoder, dropped, counts) for rows in (splits.train, splits.eval)]
    num_kept = sum(len(split.examples) for split in encoded)
    _check_dropped(dropped, num_kept, options.max_dropped_fraction)
    for split in encoded:
        check_token_ids(split.groups, tokenizer, model_config)
    limits = (options.max_pairs_per_dialogue, 0)  # evaluation adds up over batches, whatever is in them
    packed = [
        pack(split.groups, options.packing, options.row_length, options.max_length, limit)
        for split, limit in zip(encoded, limits, strict=True)
    ]
    report = {
        "rows_read": splits.tally.num_rows,
        "rows_bad": len(splits.tally.bad),
        "examples": num_kept,
        "dropped": dict(dropped),
        "counts": {name: count for name, count in counts.items() if count},
        "chat_template": template.name,
        "train": packing_report(packed[0], encoded[0].groups),
        "eval": packing_report(packed[1], encoded[1].groups),
    }
    return Dataset(
        objective=objective,
        train=packed[0],
        eval=packed[1],
        train_examples=encoded[0].examples,
        eval_examples=encoded[1].examples,
        template=template,
        report=report,
        rejects=tuple(splits.tally.bad),
        fingerprint={
            "objective": objective,
            "tokenizer": tokenizer.fingerprint(),
            "chat_template": template.fingerprint(),
            "system_prompt": hashlib.sha256(options.system_prompt.encode()).hexdigest(),
            "max_length": str(options.max_length),
            "packing": options.packing,
            "max_pairs_per_dialogue": str(options.max_pairs_per_dialogue),
            "row_length": str(packed[0].sizes.tokens),
            "train_rows": packed[0].fingerprint(),
            "eval_rows": packed[1].fingerprint(),
        },
    )


def encode_rows(
    rows: Sequence[Row], objective: str, encoder: ReplyEncoder, dropped: Counter[str], counts: Counter[str]
) -> EncodedSplit:
    """Units of one split by dialogue, in the rows' order; what cannot be used is counted in `dropped` by reason."""
    groups: dict[str, list[Unit]] = {}
    examples: list[Example] = []
    num_turns = _num_turns(rows)
    next_id = 0
    for row in rows:
        for prompt, replies in replies_of(row, objective):
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
            groups.setdefault(row.dialogue_id, []).append(unit)
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
                )
            )
    return EncodedSplit(tuple(groups.values()), tuple(examples))


def replies_of(row: Row, objective: str) -> Iterator[tuple[Prompt, tuple[str, ...]]]:
    """(prompt, replies) of each example a row gives; sft learns the chosen reply of a pair."""
    if isinstance(row, PreferenceRow):
        yield row.prompt, (row.chosen, row.rejected) if objective == "dpo" else (row.chosen,)
    elif isinstance(row, CompletionRow):
        yield row.prompt, (row.completion,)
    else:
        for index, message in enumerate(row.messages):
            if message.role == "assistant" and index >= row.first_trained:
                yield row.messages[:index], (message.content,)


def to_sequence(reply: EncodedReply, sequence_id: int) -> ScoredSequence:
    """A reply as it goes into a prefix tree."""
    return ScoredSequence(reply.prompt_ids, reply.reply_ids, sequence_id)


def check_token_ids(groups: Sequence[Group], tokenizer: Tokenizer, model_config: ModelConfig) -> None:
    """Raises a ConfigError if a token has no row in the model's embedding."""
    largest = max(
        (int(sequence.token_ids().max()) for group in groups for unit in group for sequence in unit), default=0
    )
    if largest >= model_config.vocab_size:
        raise ConfigError(
            f"the tokenizer gives token id {largest} ({tokenizer.id_to_token(largest)!r}), but the model's embedding "
            f"has {model_config.vocab_size} rows: use the tokenizer that belongs to the model (model.tokenizer_path)"
        )


def trained_texts(rows: PackedRows, row: int, tokenizer: Tokenizer) -> list[str]:
    """The trained tokens of one row as text, by reply: what the loss really sees."""
    texts: list[str] = []
    for index in rows.tree_indices[row]:
        tree = rows.trees[index]
        ends = np.cumsum(np.bincount(tree.sequence_index, minlength=len(tree.sequence_ids)))
        texts += [tokenizer.decode(ids.tolist()) for ids in np.split(tree.target_id, ends[:-1])]
    return texts


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


def _check_dropped(dropped: Counter[str], num_kept: int, max_fraction: float) -> None:
    total = num_kept + sum(dropped.values())
    reasons = ", ".join(f"{reason}: {count}" for reason, count in dropped.most_common())
    if not num_kept:
        raise DataError(f"no example is left of {total} ({reasons or 'the source has none'})")
    if sum(dropped.values()) > max_fraction * total:
        raise DataError(
            f"{sum(dropped.values())} of {total} examples had to be dropped ({reasons}); data.max_dropped_fraction = "
            f"{max_fraction:g} allows {int(max_fraction * total)}. Raise data.max_length, mend the data, or raise the "
            "limit"
        )
