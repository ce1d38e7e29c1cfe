"""The one door of this package: settings in, packed rows with their examples and a report out."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from empathax.config import DataOptions
from empathax.config.losses import MISMATCHED_ROWS, PAIRED_ROWS
from empathax.data.chat import ChatTemplate
from empathax.data.encoding import ReplyEncoder
from empathax.data.examples import Example, encode_rows
from empathax.data.labeled import count_labels
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
    options: DataOptions,
    objective: str,
    tokenizer: Tokenizer,
    model_config: ModelConfig,
    seed: int = 0,
    rows_kind: str = PAIRED_ROWS,
) -> Dataset:
    """Reads, encodes and packs the data of one stage ("sft" or "dpo"); `rows_kind` is what dpo reads (losses.py).

    Raises:
        DataError: see data/sources.py; also if more examples are lost than `max_dropped_fraction`.
        ConfigError: a token id the model has no embedding for; a row_length too short.
    """
    template = ChatTemplate(tokenizer, options.chat_template, model_config.family)
    encoder = ReplyEncoder(template, options)
    splits = load_splits(options, objective, seed, rows_kind)
    dropped: Counter[str] = Counter(splits.tally.dropped)
    counts: Counter[str] = Counter(splits.tally.counts)
    encoded = [
        encode_rows(rows, objective, encoder, dropped, counts, rows_kind) for rows in (splits.train, splits.eval)
    ]
    num_kept = sum(len(split.examples) for split in encoded)
    _check_dropped(dropped, num_kept, options.max_dropped_fraction)
    for split in encoded:
        check_token_ids(split.groups, tokenizer, model_config)
    mismatched = objective == "dpo" and rows_kind == MISMATCHED_ROWS
    limits = (options.max_pairs_per_dialogue, 0)  # evaluation adds up over batches, whatever is in them
    packed = [
        pack(
            split.groups,
            options.packing,
            options.row_length,
            options.max_length,
            limit,
            labels=split.labels,
            mismatched=mismatched,
        )
        for split, limit in zip(encoded, limits, strict=True)
    ]
    counts.update(count_labels(encoded[0].labels))
    if mismatched:
        counts["replies without a mismatched one"] = sum(map(_count_unmatched, packed))
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
