"""ESConv pairs as groups, for the comparisons that choose each step's pairs themselves."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from empathax.config import DataOptions
from empathax.config.losses import PAIRED_ROWS
from empathax.data.chat import ChatTemplate
from empathax.data.examples import ReplyEncoder, encode_rows
from empathax.data.row_plan import Group
from empathax.data.sources import load_splits
from empathax.models.weights.source import ModelSource


@dataclass(frozen=True)
class Pairs:
    """Pairs by dialogue. Sequence ids count from 0 in each of the two."""

    train: tuple[Group, ...]
    held_out: tuple[Group, ...]


def esconv_pairs(corpora: Path, source: ModelSource, train: int, held_out: int, max_length: int) -> Pairs:
    """Pairs of the first dialogues of ESConv's train and valid files, under the model's own system line."""
    options = DataOptions(
        path=str(corpora / "esconv"),
        system_prompt="none",
        max_length=max_length,
        max_train_dialogues=train,
        max_eval_dialogues=held_out,
    )
    encoder = ReplyEncoder(ChatTemplate(source.tokenizer(), family=source.config.family), options)
    splits = load_splits(options, PAIRED_ROWS)
    encoded = [encode_rows(rows, PAIRED_ROWS, encoder, Counter(), Counter()) for rows in (splits.train, splits.eval)]
    return Pairs(encoded[0].groups, encoded[1].groups)


def reply_lengths(groups: Sequence[Group]) -> np.ndarray:
    """Tokens of each reply by sequence id, which are 0 to one less than there are replies."""
    by_id = {reply.sequence_id: len(reply.reply_ids) for group in groups for unit in group for reply in unit}
    return np.array([by_id[sequence_id] for sequence_id in range(len(by_id))])
