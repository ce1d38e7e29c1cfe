"""The contexts that a model writes replies for: by split, clean of words of later splits, evenly spread."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from empathax.config import DataOptions
from empathax.data.sources import load_by_split
from empathax.preferences.contexts import (
    Context,
    counts_in_words,
    data_settings,
    in_splits,
    load_contexts,
)
from empathax.preferences.overlap import HeldOutTexts, held_out_texts


@dataclass(frozen=True)
class Source:
    """Contexts by split, those whose prompts show words of a later split left out, and these words.

    Attributes:
        path, settings: where they come from, and the settings that picked them.
        in_words: how many there are, before any limit.
    """

    path: str
    settings: dict[str, Any]
    in_words: str
    contexts: dict[str, list[Context]]
    held_out: dict[str, HeldOutTexts]
    num_overlapping: int


def read_source(options: DataOptions, splits: Sequence[str], max_contexts: int) -> Source:
    """The contexts to write replies for. Raises a DataError if the source cannot be read or a split has none."""
    rows = load_by_split(options)
    found = in_splits(load_contexts(rows, options), splits, options.path)
    held_out = {split: held_out_texts(rows, split) for split in found}
    clean = {
        split: [one for one in part if not any(held_out[split].shared(turn.content) for turn in one.prompt)]
        for split, part in found.items()
    }
    lost = sum(map(len, found.values())) - sum(map(len, clean.values()))
    picked = {split: _spread(part, max_contexts) for split, part in clean.items()}
    in_words = counts_in_words(options.path, rows, found)
    return Source(options.path, data_settings(options), in_words, picked, held_out, lost)


def _spread(contexts: Sequence[Context], most: int) -> list[Context]:
    """At most `most` contexts (0 = all), evenly over the whole."""
    if not most or most >= len(contexts):
        return list(contexts)
    return [contexts[place] for place in np.linspace(0, len(contexts) - 1, most).round().astype(int).tolist()]
