"""Pairs of id sequences laid out as rows of a few fixed shapes, so that any set of texts compiles the same programs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import flax.struct
import numpy as np
from jaxtyping import Array, Bool, Int

from empathax.evaluation.metrics.words import TextIds

_MIN_WIDTH = 8
_MAX_ROWS = 1024
_MAX_CELLS = 1 << 22  # rows x width x width: one row where a text is that long


@flax.struct.dataclass
class PairRows:
    """B replies and their references as ids of equal meaning; what is past a row's length is not read."""

    reply_ids_BT: Int[Array, "B T"]
    reply_lengths_B: Int[Array, " B"]
    reference_ids_BU: Int[Array, "B U"]
    reference_lengths_B: Int[Array, " B"]
    counted_B: Bool[Array, " B"]  # False for rows that fill a block up


def pair_rows(replies: TextIds, references: TextIds, multiple: int = 1) -> Iterator[PairRows]:
    """Blocks of pairs of like length: widths are powers of two, numbers of rows multiples of `multiple`."""
    return (rows for _, rows in numbered_pair_rows(replies, references, multiple))


def numbered_pair_rows(
    replies: TextIds, references: TextIds, multiple: int = 1
) -> Iterator[tuple[Int[np.ndarray, " M"], PairRows]]:
    """(which pairs, their block): the block's first M rows are these pairs, in this order."""
    longest_N = np.maximum(replies.lengths_N, references.lengths_N)
    widths_N = np.left_shift(1, np.ceil(np.log2(np.maximum(longest_N, _MIN_WIDTH))).astype(np.int64))
    for width in np.unique(widths_N).tolist():
        rows = min(_MAX_ROWS, max(1, _MAX_CELLS // width**2))
        rows = -(-rows // multiple) * multiple
        members_M = np.flatnonzero(widths_N == width)
        reply_ids, reply_lengths = _padded(replies, members_M, rows, width)
        reference_ids, reference_lengths = _padded(references, members_M, rows, width)
        counted = np.arange(len(reply_lengths)) < len(members_M)
        arrays: tuple[Any, ...] = (reply_ids, reply_lengths, reference_ids, reference_lengths, counted)
        for start in range(0, len(counted), rows):
            yield members_M[start : start + rows], PairRows(*(array[start : start + rows] for array in arrays))


def _padded(texts: TextIds, members_M: np.ndarray, rows: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """([R, width] ids, [R] lengths) of some texts; R is the next multiple of `rows`."""
    num_rows = -(-len(members_M) // rows) * rows
    lengths_R = np.zeros(num_rows, np.int32)
    lengths_R[: len(members_M)] = texts.lengths_N[members_M]
    starts_R = np.zeros(num_rows, np.int64)
    starts_R[: len(members_M)] = (np.cumsum(texts.lengths_N) - texts.lengths_N)[members_M]
    places_RT = starts_R[:, None] + np.arange(width)
    ids_K = texts.ids_K if len(texts.ids_K) else np.zeros(1, np.int32)
    return ids_K.take(places_RT, mode="clip"), lengths_R  # past a row's end stand other texts' ids: nobody reads them


def one_row(texts: TextIds) -> Int[np.ndarray, "1 K"]:
    """All texts end to end with -1 between them, filled up with -1 to a power of two."""
    num_texts = len(texts.lengths_N)
    size = max(_MIN_WIDTH, len(texts.ids_K) + num_texts)
    row_K = np.full(1 << (size - 1).bit_length(), -1, np.int32)
    row_K[np.arange(len(texts.ids_K)) + np.repeat(np.arange(num_texts), texts.lengths_N)] = texts.ids_K
    return row_K[None]
