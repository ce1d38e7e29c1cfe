"""From settings to packed rows: `build_dataset` reads, encodes and packs, and reports what was kept and lost."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from empathax.config import DataOptions
from empathax.config.losses import MISMATCHED_ROWS
from empathax.data.chat import ChatTemplate
from empathax.data.examples import EncodedSplit, Example, ReplyEncoder, encode_rows
from empathax.data.packing import PackedRows, pack, packing_report
from empathax.data.row_plan import Group
from empathax.data.sources import load_splits
from empathax.errors import ConfigError, DataError

if TYPE_CHECKING:
    from empathax.models.architecture.model_config import ModelConfig
    from empathax.models.tokenizers.tokenizer import Tokenizer


@dataclass(frozen=True)
class Dataset:
    """Rows to train and to evaluate on. Sequence ids count from 0 in each of the two.

    `report` holds figures and counts (nested dicts of plain values), `rejects` every row that could not be read.
    `fingerprint` names what the rows depend on: a resumed run or a cached reference must find it unchanged.
    """

    rows_kind: str  # of config/losses.py
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
    options: DataOptions, rows_kind: str, tokenizer: Tokenizer, model_config: ModelConfig, seed: int = 0
) -> Dataset:
    """Reads, encodes and packs rows of one kind: REPLY_ROWS, PAIRED_ROWS, LABELED_ROWS or MISMATCHED_ROWS.

    Raises:
        DataError: see data/sources.py; also if more examples are lost than `max_dropped_fraction`.
        ConfigError: a token id the model has no embedding for; a row_length too short.
    """
    template = ChatTemplate(
        tokenizer, options.chat_template, model_config.family, options.template_variables, options.template_date
    )
    encoder = ReplyEncoder(template, options)
    splits = load_splits(options, rows_kind, seed)
    dropped, counts = Counter(splits.tally.dropped), Counter(splits.tally.counts)
    train, held_out = (encode_rows(rows, rows_kind, encoder, dropped, counts) for rows in (splits.train, splits.eval))
    num_kept = len(train.examples) + len(held_out.examples)
    _check_dropped(dropped, num_kept, options.max_dropped_fraction)
    for split in (train, held_out):
        check_token_ids(split.groups, tokenizer, model_config)
    train_rows = _packed(train, options, rows_kind, options.max_pairs_per_dialogue)
    eval_rows = _packed(held_out, options, rows_kind, 0)  # evaluation adds up over batches, whatever is in them
    counts["desirable replies to train on"] = train.labels.count(True)
    counts["undesirable replies to train on"] = train.labels.count(False)
    if rows_kind == MISMATCHED_ROWS:
        counts["replies without a mismatched one"] = _count_unmatched(train_rows) + _count_unmatched(eval_rows)
    return Dataset(
        rows_kind=rows_kind,
        train=train_rows,
        eval=eval_rows,
        train_examples=train.examples,
        eval_examples=held_out.examples,
        template=template,
        report={
            "rows_read": splits.tally.num_rows,
            "rows_bad": len(splits.tally.bad),
            "examples": num_kept,
            "dropped": dict(dropped),
            "counts": {name: count for name, count in counts.items() if count},
            "chat_template": template.name,
            "train": packing_report(train_rows, train.groups),
            "eval": packing_report(eval_rows, held_out.groups),
        },
        rejects=tuple(splits.tally.bad),
        fingerprint={
            "rows_kind": rows_kind,
            "tokenizer": tokenizer.fingerprint(),
            "chat_template": template.fingerprint(),
            "system_prompt": hashlib.sha256(options.system_prompt.encode()).hexdigest(),
            "max_length": str(options.max_length),
            "packing": options.packing,
            "max_pairs_per_dialogue": str(options.max_pairs_per_dialogue),
            "row_length": str(train_rows.sizes.tokens),
            "train_rows": train_rows.fingerprint(),
            "eval_rows": eval_rows.fingerprint(),
        },
    )


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


def trained_tokens(rows: PackedRows, row: int, tokenizer: Tokenizer) -> list[list[str]]:
    """The trained tokens of one row, reply by reply, each as its text; tokens of one character share a place."""
    replies: list[list[str]] = []
    for index in rows.tree_indices[row]:
        tree = rows.trees[index]
        ends = np.cumsum(np.bincount(tree.sequence_index, minlength=len(tree.sequence_ids)))
        replies += [_token_texts(ids.tolist(), tokenizer) for ids in np.split(tree.target_id, ends[:-1])]
    return replies


def _token_texts(ids: Sequence[int], tokenizer: Tokenizer) -> list[str]:
    texts: list[str] = []
    done = ""
    for end in range(1, len(ids) + 1):
        text = tokenizer.decode(ids[:end])
        if end < len(ids) and text.endswith("\ufffd"):  # in the middle of a character
            continue
        texts.append(text[len(done) :])
        done = text
    return texts


def _packed(split: EncodedSplit, options: DataOptions, rows_kind: str, max_units: int) -> PackedRows:
    return pack(
        split.groups,
        options.packing,
        options.row_length,
        options.max_length,
        max_units,
        labels=split.labels,
        mismatched=rows_kind == MISMATCHED_ROWS,
    )


def _count_unmatched(rows: PackedRows) -> int:
    """Replies whose row has no other prompt. Raises a DataError if there are only these."""
    num_replies = len(rows.labels)
    unmatched = num_replies - sum(int((tree.sequence_ids >= num_replies).sum()) for tree in rows.trees)
    if num_replies and unmatched == num_replies:
        raise DataError(
            "no packed row holds two prompts, and kto estimates the KL divergence from prompts with each other's "
            "replies: raise data.row_length or data.max_length, or add data"
        )
    return unmatched


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
