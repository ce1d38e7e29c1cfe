"""BLEU-4, ROUGE-L and Distinct of replies: text (unit "word") or a model's own ids (unit "token") in, numbers out.

Definitions: docs/metrics.md. Everything is counted under jit from integer ids, in sums that merge exactly; the host
turns text into ids, and the sums into quotients in float64, once, at the end.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from itertools import chain

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Int

from empathax.errors import ConfigError, DataError
from empathax.evaluation.metrics.id_rows import PairRows, one_row
from empathax.evaluation.metrics.ngrams import NgramTable, ngram_table
from empathax.evaluation.metrics.pair_sums import PairSums, block_sums, count_pairs, merged
from empathax.evaluation.metrics.words import (
    TextIds,
    cased_pieces,
    lower_pieces,
    mteval_piece,
    rouge_piece,
    treebank_piece,
)

DISTINCT_ORDERS = (1, 2, 3)
_BLEU = ("bleu4_sentence", "bleu4_corpus")
_DISTINCT = tuple(f"distinct_{n}" for n in DISTINCT_ORDERS)
REPLY_DISTINCT = tuple(f"distinct_{n}_reply" for n in DISTINCT_ORDERS)
# tokenization -> the metrics that it feeds
METRICS_OF = {
    "treebank": (*_BLEU, "rouge_l_coco", *_DISTINCT, *REPLY_DISTINCT),
    "rouge": ("rouge_l",),
    "mteval": ("bleu4_sacre",),
}
METRICS = tuple(chain.from_iterable(METRICS_OF.values()))


@flax.struct.dataclass
class TextState:
    """What a set of pairs adds to the metrics; states merge in any order, across batches, devices and hosts."""

    pairs: PairSums
    tables: tuple[NgramTable, ...]  # of the replies, one for each of DISTINCT_ORDERS

    def merge(self, other: TextState) -> TextState:
        """The state of both sets. Their ids must mean the same."""
        tables = tuple(mine.merge(theirs) for mine, theirs in zip(self.tables, other.tables, strict=True))
        return TextState(self.pairs.merge(other.pairs), tables)

    def compute(self) -> dict[str, float]:
        """Every metric of METRICS, all from the same ids. On the host."""
        sizes = _table_sizes(self.tables)
        return {**self.pairs.compute(METRICS), **_distinct(dict(zip(_DISTINCT, sizes, strict=True)))}


def score_ids(
    reply_ids_BT: Int[Array, "B T"],
    reply_lengths_B: Int[Array, " B"],
    reference_ids_BU: Int[Array, "B U"],
    reference_lengths_B: Int[Array, " B"],
    counted_B: Bool[Array, " B"] | None = None,
) -> TextState:
    """The state of replies that are ids already (unit "token"): a pure function, to be called under jit.

    Generated ids go in as they are (`Generated.token_ids_BM`; its lengths less the stop token), so that generation and
    scoring can be one compiled function. Rows may be split over a mesh. Ids are from 0 to `ngrams.MAX_ID`; what is past
    a row's length is not read, and rows that are not `counted_B` add nothing.
    """
    counted_B = reply_lengths_B >= 0 if counted_B is None else counted_B
    rows = PairRows(reply_ids_BT, reply_lengths_B, reference_ids_BU, reference_lengths_B, counted_B)
    inside_BT = (jnp.arange(reply_ids_BT.shape[1]) < reply_lengths_B[:, None]) & counted_B[:, None]
    tables = tuple(ngram_table(reply_ids_BT, n, inside_BT) for n in DISTINCT_ORDERS)
    return TextState(count_pairs(rows), tables)


def score_texts(
    replies: Sequence[str],
    references: Sequence[str],
    *,
    metrics: Collection[str] = METRICS,
    unit: str = "word",
    encode: Callable[[str], Sequence[int]] | None = None,
    mesh: Mesh | None = None,
) -> dict[str, float]:
    """The named metrics of `replies`, each against the reference at its place; x100 as docs/metrics.md says.

    Args:
        metrics: names of METRICS; only what they need is computed.
        unit: "word", every metric by the tokenization of its reference implementation, or "token", all of them by the
            ids of `encode`.
        mesh: devices to spread the pairs over; the numbers are the same on any.

    Raises:
        ConfigError: an unknown metric or unit.
        DataError: no replies, or not one reference for each.
    """
    _check(replies, references, metrics, unit, encode)
    texts = [*replies, *references]
    ids_of = _encoded(texts, encode) if encode else _word_ids(texts)
    started = []  # the host turns the next tokenization into ids while a device counts the last one's
    for tokenization, names in _plan(metrics, unit):
        ids = ids_of(tokenization)
        parts = ids[: len(replies)], ids[len(replies) :]
        started.append(_start(*parts, [name for name in names if name in metrics], mesh))
    found: dict[str, float] = {}
    for counts in started:
        found |= counts.compute()
    return {name: found[name] for name in METRICS if name in found}


@dataclass(frozen=True)
class _Counts:
    """What one tokenization's metrics are made of, on its way."""

    sizes: dict[str, tuple[Array, Array]]  # Distinct: different and all n-grams
    blocks: list[PairSums]
    pair_names: list[str]

    def compute(self) -> dict[str, float]:
        found = merged(self.blocks).compute(self.pair_names) if self.blocks else {}
        return found | _distinct(self.sizes)


def _start(replies: TextIds, references: TextIds, names: Sequence[str], mesh: Mesh | None) -> _Counts:
    sizes = {}
    if orders := [n for n, name in zip(DISTINCT_ORDERS, _DISTINCT, strict=True) if name in names]:
        bits = int(replies.ids_K.max(initial=0) + 1).bit_length()
        sizes = _row_sizes(one_row(replies), tuple(orders), 2**bits - 1)
        sizes = jax.device_get(sizes) if mesh else sizes  # see block_sums
    pair_names = [name for name in names if name not in _DISTINCT]
    return _Counts(sizes, block_sums(replies, references, pair_names, mesh) if pair_names else [], pair_names)


@functools.partial(jax.jit, static_argnames=("orders", "num_ids"))
def _row_sizes(row_1K: Int[Array, "1 K"], orders: tuple[int, ...], num_ids: int) -> dict[str, tuple[Array, Array]]:
    return {f"distinct_{n}": _ratio(ngram_table(row_1K, n, num_ids=num_ids)) for n in orders}


@jax.jit
def _table_sizes(tables: Sequence[NgramTable]) -> list[tuple[Array, Array]]:
    return [_ratio(table) for table in tables]


def _ratio(table: NgramTable) -> tuple[Array, Array]:
    sizes = table.sizes()
    return sizes.distinct, sizes.total


def _distinct(sizes: dict[str, tuple[Array, Array]]) -> dict[str, float]:
    """Different n-grams over all n-grams, x100; 0 if there are none."""
    return {name: 100.0 * int(distinct) / max(int(total), 1) for name, (distinct, total) in sizes.items()}


def _plan(metrics: Collection[str], unit: str) -> Iterable[tuple[str, Sequence[str]]]:
    """(tokenization, the metrics it feeds), without those that feed none of `metrics`."""
    plan = METRICS_OF.items() if unit == "word" else [("token", METRICS)]
    return [(tokenization, names) for tokenization, names in plan if set(names) & set(metrics)]


def _word_ids(texts: Sequence[str]) -> Callable[[str], TextIds]:
    lower = functools.cache(lambda: lower_pieces(texts))
    ways = {
        "treebank": lambda: lower().ids(treebank_piece),
        "rouge": lambda: lower().ids(rouge_piece),
        "mteval": lambda: cased_pieces(texts).ids(mteval_piece),
    }
    return lambda tokenization: ways[tokenization]()


def _encoded(texts: Sequence[str], encode: Callable[[str], Sequence[int]]) -> Callable[[str], TextIds]:
    rows = [list(encode(text)) for text in texts]
    ids = TextIds(np.array(list(chain.from_iterable(rows)), np.int32), np.array(list(map(len, rows)), np.int64))
    return lambda _: ids


def _check(
    replies: Sequence[str],
    references: Sequence[str],
    metrics: Collection[str],
    unit: str,
    encode: Callable[[str], Sequence[int]] | None,
) -> None:
    if unknown := sorted(set(metrics) - set(METRICS)):
        raise ConfigError(f"unknown metrics {', '.join(unknown)}: expected some of {', '.join(METRICS)}")
    if unit not in ("word", "token"):
        raise ConfigError(f"unit = {unit!r}: expected 'word' or 'token'")
    if (unit == "token") != (encode is not None):
        raise ConfigError(f"unit = {unit!r}: 'token' needs `encode`, a text's token ids; 'word' takes none")
    if not replies or len(replies) != len(references):
        raise DataError(
            f"found {len(replies)} replies and {len(references)} references: expected one reference for each reply, "
            "and at least one"
        )
