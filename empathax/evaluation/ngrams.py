"""N-grams in the graph: clipped matches for BLEU, repeats inside a reply, and the table that Distinct counts.

N-grams are compared id by id: there are no hashes, hence no collisions.
"""

from __future__ import annotations

from collections.abc import Sequence

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, UInt32

from empathax.evaluation.match_masks import before_itself, match_masks, next_ngrams, num_bits

MAX_ORDER = 4  # of BLEU
_NO_ID = jnp.iinfo(jnp.int32).max


@flax.struct.dataclass
class NgramCounts:
    """Of B pairs, by order n = 1 .. 4 (axis N)."""

    matches_NB: Int[Array, "N B"]  # n-grams of the reply that are in the reference, each at most as often as there
    totals_NB: Int[Array, "N B"]  # n-grams of the reply
    distinct_NB: Int[Array, "N B"]  # different n-grams of the reply


def count_ngrams(
    reply_TB: Int[Array, "T B"], masks_TWB: UInt32[Array, "T W B"], lengths_B: Int[Array, " B"]
) -> NgramCounts:
    """Counts of replies (-1 past the end) whose `masks_TWB` (match_masks.py) say where the reference has each token.

    The k-th occurrence of an n-gram in a reply is a match if the reference has it at least k times: summed up, these are
    the clipped counts of Papineni et al. (2002), section 2.1.
    """
    own_TWB = match_masks(reply_TB, reply_TB)
    earlier_T = before_itself(len(reply_TB))
    single_TWB, same_TWB = masks_TWB, own_TWB
    matches, distinct = [], []
    for n in range(1, MAX_ORDER + 1):
        if n > 1:
            masks_TWB, same_TWB = next_ngrams(masks_TWB, single_TWB, n), next_ngrams(same_TWB, own_TWB, n)
        earlier_TB = num_bits(same_TWB & earlier_T)
        matches.append(jnp.sum(num_bits(masks_TWB) > earlier_TB, axis=0, dtype=jnp.int32))
        distinct.append(jnp.sum((earlier_TB == 0) & (num_bits(same_TWB) > 0), axis=0, dtype=jnp.int32))
    totals_NB = jnp.maximum(lengths_B - jnp.arange(MAX_ORDER)[:, None], 0)
    return NgramCounts(jnp.stack(matches), totals_NB, jnp.stack(distinct))


@flax.struct.dataclass
class NgramTable:
    """The n-grams of a set of replies and how often each was seen; merging concatenates, counting sorts.

    An n-gram may stand in several rows until `compacted`; rows with count 0 are empty.
    """

    ngrams_KN: Int[Array, "K N"]
    counts_K: Int[Array, " K"]

    def merge(self, other: NgramTable) -> NgramTable:
        """The n-grams of both."""
        return jax.tree.map(lambda mine, theirs: jnp.concatenate([mine, theirs]), self, other)

    def sizes(self) -> TableSizes:
        """How many n-grams there are, in all and different ones, and how often the most frequent occurs."""
        counts_K, starts_K = self._grouped()[1:]
        return TableSizes(
            distinct=jnp.sum(starts_K, dtype=jnp.int32),
            total=jnp.sum(self.counts_K, dtype=jnp.int32),
            most=jnp.max(counts_K, initial=0),
        )

    def compacted(self) -> NgramTable:
        """Each n-gram in one row, the empty rows last."""
        columns, sums_K, starts_K = self._grouped()
        ends_K = jnp.append(starts_K[1:], True) & (sums_K > 0)
        *columns, sums_K = _sorted([~ends_K, *columns, jnp.where(ends_K, sums_K, 0)], num_keys=1)[1:]
        return NgramTable(jnp.stack(columns, axis=1), sums_K)

    def _grouped(self) -> tuple[Sequence[Array], Array, Array]:
        """(sorted columns, running count inside each group of equal n-grams, whether a group starts here)."""
        seen_K = self.counts_K > 0
        columns = [jnp.where(seen_K, column_K, _NO_ID) for column_K in self.ngrams_KN.T]
        *columns, counts_K = _sorted([*columns, self.counts_K], num_keys=len(columns))
        changed_K = jnp.zeros_like(counts_K, bool).at[:1].set(True)
        for column_K in columns:
            changed_K |= jnp.append(True, column_K[1:] != column_K[:-1])[: changed_K.size]
        starts_K = changed_K & (counts_K > 0)
        ends_K = jnp.cumsum(counts_K)
        before_K = jax.lax.cummax(jnp.where(changed_K, ends_K - counts_K, 0))
        return columns, ends_K - before_K, starts_K


@flax.struct.dataclass
class TableSizes:
    """Numbers of n-grams."""

    distinct: Int[Array, ""]
    total: Int[Array, ""]
    most: Int[Array, ""]


def ngram_table(ids_BT: Int[Array, "B T"], n: int, inside_BT: Bool[Array, "B T"] | None = None) -> NgramTable:
    """The n-grams of rows of ids; none reaches over a place that is negative or not `inside_BT`."""
    ids_BT = ids_BT if inside_BT is None else jnp.where(inside_BT, ids_BT, -1)
    padded_BT = jnp.pad(ids_BT, ((0, 0), (0, max(n - ids_BT.shape[1], 0))), constant_values=-1)
    num_starts = padded_BT.shape[1] - n + 1
    columns = [padded_BT[:, place : place + num_starts].reshape(-1) for place in range(n)]
    ngrams_KN = jnp.stack(columns, axis=1)
    return NgramTable(ngrams_KN, jnp.all(ngrams_KN >= 0, axis=1).astype(jnp.int32))


def _sorted(operands: Sequence[Array], num_keys: int) -> Sequence[Array]:
    return jax.lax.sort(tuple(operands), num_keys=num_keys, is_stable=False)
