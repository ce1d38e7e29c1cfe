"""BLEU-4, ROUGE-L and Distinct of replies, as per-reply statistics: definitions in docs/metrics.md.

The host turns text into ids (words.py) and lays them out as blocks of a few shapes. Under jit a block of pairs becomes
per-reply values (overlap.py). TEXT_METRICS says which values a metric needs, and under which tokenization; a new
column is one entry there, and a field of `overlap.PairValues` if it counts something new.

Axes as in overlap.py; E pairs of the whole set, in the caller's order, and M of a block.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Int

from empathax.evaluation.metrics.overlap import PairRows, pair_values
from empathax.evaluation.metrics.statistics import DISTINCT_ORDERS, BleuCounts, ReplyWords, Statistic, mean_of_known
from empathax.evaluation.metrics.words import TextIds, TokenizedPairs

_MIN_WIDTH = 8
_MAX_ROWS = 1024
_MAX_CELLS = 1 << 22  # rows x width x width: one row where a text is that long


@dataclass(frozen=True)
class Pairs:
    """Replies and references under one tokenization, with the values of each pair by their names in `PairValues`."""

    dialogues: tuple[str, ...]
    replies: TextIds
    references: TextIds
    values: Mapping[str, np.ndarray]  # [E, ...]


@dataclass(frozen=True)
class TextMetric:
    """`statistic` takes the pairs under `tokenization` with their `values`; None if no reply has a value."""

    tokenization: str
    values: tuple[str, ...]
    statistic: Callable[[Pairs], Statistic | None]


def text_statistics(
    ids_of: TokenizedPairs, dialogues: Sequence[str], names: Collection[str] | None = None
) -> dict[str, Statistic]:
    """The statistics of TEXT_METRICS (or of those `names`), by name; what no reply has (a bigram, say) is left out.

    Args:
        ids_of: tokenization -> ids of the replies and of their references: `words.tokenized` of texts (unit "word").
            One that always returns the same ids scores by a model's own tokens (unit "token").
        dialogues: the dialogue of each pair.
    """
    wanted = {name: metric for name, metric in TEXT_METRICS.items() if names is None or name in names}
    started = {}  # the host turns the next tokenization into ids while a device counts the last one's
    for tokenization in dict.fromkeys(metric.tokenization for metric in wanted.values()):
        metrics = [metric for metric in wanted.values() if metric.tokenization == tokenization]
        ids = ids_of(tokenization)
        started[tokenization] = ids, _start(*ids, frozenset(name for metric in metrics for name in metric.values))
    pairs = {
        tokenization: Pairs(tuple(dialogues), *ids, _gathered(blocks, len(dialogues)))
        for tokenization, (ids, blocks) in started.items()
    }
    found = {name: metric.statistic(pairs[metric.tokenization]) for name, metric in wanted.items()}
    return {name: statistic for name, statistic in found.items() if statistic is not None}


def _sentence_bleu(pairs: Pairs) -> Statistic | None:
    mantissas_E = pairs.values["sentence_mantissas_B"].astype(np.float64)
    return _mean(pairs, np.ldexp(mantissas_E, pairs.values["sentence_exponents_B"]))


def _corpus_bleu(pairs: Pairs, smallest_total: int) -> Statistic:
    tables = pairs.values["matches_BN"], np.maximum(pairs.values["totals_BN"], smallest_total)
    matches, totals = (tuple(map(tuple, table.tolist())) for table in tables)
    lengths, reference_lengths = (tuple(ids.lengths_N.tolist()) for ids in (pairs.replies, pairs.references))
    return BleuCounts(pairs.dialogues, matches, totals, lengths, reference_lengths)


def _rouge(pairs: Pairs, name: str) -> Statistic | None:
    return _mean(pairs, pairs.values[name].astype(np.float64))


def _distinct(pairs: Pairs) -> Statistic:
    return ReplyWords(pairs.dialogues, pairs.replies.rows())


def _reply_distinct(pairs: Pairs, n: int) -> Statistic | None:
    """Different over all n-grams of each reply; a reply too short to have any has no value."""
    distinct_E, totals_E = pairs.values["distinct_BN"][:, n - 1], pairs.values["totals_BN"][:, n - 1]
    return _mean(pairs, np.divide(distinct_E, totals_E, out=np.full(len(totals_E), np.nan), where=totals_E > 0))


def _mean(pairs: Pairs, values_E: np.ndarray) -> Statistic | None:
    return mean_of_known(pairs.dialogues, 100.0 * values_E)


_NGRAMS = ("matches_BN", "totals_BN")
TEXT_METRICS: dict[str, TextMetric] = {
    "bleu4_sentence": TextMetric("treebank", ("sentence_mantissas_B", "sentence_exponents_B"), _sentence_bleu),
    # NLTK counts one n-gram for a reply without any
    "bleu4_corpus": TextMetric("treebank", _NGRAMS, functools.partial(_corpus_bleu, smallest_total=1)),
    "rouge_l_coco": TextMetric("treebank", ("rouge_l_coco_B",), functools.partial(_rouge, name="rouge_l_coco_B")),
    "distinct": TextMetric("treebank", (), _distinct),  # gives distinct_1, distinct_2 and distinct_3
    **{
        f"distinct_{n}_reply": TextMetric(
            "treebank", ("distinct_BN", "totals_BN"), functools.partial(_reply_distinct, n=n)
        )
        for n in DISTINCT_ORDERS
    },
    "rouge_l": TextMetric("rouge", ("rouge_l_B",), functools.partial(_rouge, name="rouge_l_B")),
    "bleu4_sacre": TextMetric("mteval", _NGRAMS, functools.partial(_corpus_bleu, smallest_total=0)),
}

_Blocks = list[tuple[Int[np.ndarray, " M"], dict[str, Array]]]


@functools.partial(jax.jit, static_argnames="names")
def _block_values(rows: PairRows, names: frozenset[str]) -> dict[str, Array]:
    return {name: value for name, value in vars(pair_values(rows)).items() if name in names}


def _start(replies: TextIds, references: TextIds, names: frozenset[str]) -> _Blocks:
    """Dispatches the values of all pairs, without waiting for them."""
    return [(members_M, _block_values(rows, names)) for members_M, rows in _blocks(replies, references) if names]


def _gathered(blocks: _Blocks, num_pairs: int) -> dict[str, np.ndarray]:
    """The values of all pairs, in their order."""
    found: dict[str, np.ndarray] = {}
    for members_M, block in blocks:
        for name, values in jax.device_get(block).items():
            column = found.setdefault(name, np.zeros((num_pairs, *values.shape[1:]), values.dtype))
            column[members_M] = values[: len(members_M)]
    return found


def _blocks(replies: TextIds, references: TextIds) -> Iterator[tuple[Int[np.ndarray, " M"], PairRows]]:
    """(which pairs, their block): the block's first M rows are these pairs. Pairs of like length are together.

    Widths are powers of two and each width has one number of rows, so that any set of texts compiles few programs.
    """
    longest_N = np.maximum(replies.lengths_N, references.lengths_N)
    widths_N = np.left_shift(1, np.ceil(np.log2(np.maximum(longest_N, _MIN_WIDTH))).astype(np.int64))
    for width in np.unique(widths_N).tolist():
        rows = min(_MAX_ROWS, max(1, _MAX_CELLS // width**2))
        members = np.flatnonzero(widths_N == width)
        for start in range(0, len(members), rows):
            members_M = members[start : start + rows]
            arrays: Any = (*_padded(replies, members_M, rows, width), *_padded(references, members_M, rows, width))
            yield members_M, PairRows(*arrays)


def _padded(texts: TextIds, members_M: np.ndarray, rows: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """([rows, width] ids, [rows] lengths) of some texts; rows past the last text have length 0."""
    lengths_R, starts_R = np.zeros(rows, np.int32), np.zeros(rows, np.int64)
    lengths_R[: len(members_M)] = texts.lengths_N[members_M]
    starts_R[: len(members_M)] = (np.cumsum(texts.lengths_N) - texts.lengths_N)[members_M]
    ids_K = texts.ids_K if len(texts.ids_K) else np.zeros(1, np.int32)
    # past a row's end stand other texts' ids: nobody reads them
    return ids_K.take(starts_R[:, None] + np.arange(width), mode="clip"), lengths_R
