"""N-grams in the graph: clipped matches for BLEU, repeats inside a reply, and the table that Distinct counts.

N-grams are compared id by id: there are no hashes, hence no collisions.

Which places of one row hold the token of another: bits of uint32 words, the ground of n-gram matches and of the LCS.

Rows lie along the last axis, so that every step runs over many rows at once.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int, UInt32

MAX_ORDER = 4  # of BLEU
MAX_ID = 2**31 - 2
_EMPTY = np.uint32(0xFFFFFFFF)


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

    The k-th occurrence of an n-gram in a reply is a match if the reference has it at least k times: summed up, these
    are the clipped counts of Papineni et al. (2002), section 2.1.
    """
    own_TWB = match_masks(reply_TB, reply_TB)
    later = [jnp.zeros_like(own_TWB[0])] * (MAX_ORDER - 1)  # masks of the next tokens, the nearest first
    none = jnp.zeros((MAX_ORDER, lengths_B.size), jnp.int32)

    def step(carry: Any, masks: tuple[Array, Array, Array]) -> tuple[Any, None]:
        matches_NB, distinct_NB, theirs, own = carry
        gram_WB, same_WB, earlier_W1 = masks  # where the n-gram that begins here stands in the reference, in the reply
        matched, is_new = [], []
        for n in range(MAX_ORDER):
            if n:
                gram_WB, same_WB = gram_WB & shifted_down(theirs[n - 1], n), same_WB & shifted_down(own[n - 1], n)
            earlier_B = num_bits(same_WB & earlier_W1)
            matched.append(num_bits(gram_WB) > earlier_B)
            is_new.append((earlier_B == 0) & (num_bits(same_WB) > 0))
        counts = matches_NB + jnp.stack(matched), distinct_NB + jnp.stack(is_new)
        return (*counts, [masks[0], *theirs[:-1]], [masks[1], *own[:-1]]), None

    # from the last token to the first, so that the masks of the tokens after it are at hand
    steps = masks_TWB, own_TWB, before_itself(len(reply_TB))
    (matches_NB, distinct_NB, _, _), _ = jax.lax.scan(step, (none, none, later, later), steps, reverse=True)
    totals_NB = jnp.maximum(lengths_B - jnp.arange(MAX_ORDER)[:, None], 0)
    return NgramCounts(matches_NB, totals_NB, distinct_NB)


@flax.struct.dataclass
class NgramTable:
    """Every n-gram of a set of replies, each packed into W words of 32 bits; merging concatenates, counting sorts."""

    words_WK: UInt32[Array, "W K"]  # all bits set: empty

    def merge(self, other: NgramTable) -> NgramTable:
        """The n-grams of both, which must be packed alike."""
        return NgramTable(jnp.concatenate([self.words_WK, other.words_WK], axis=1))

    def sizes(self) -> TableSizes:
        """How many n-grams there are, how many different ones, and how often the most frequent occurs."""
        words = jax.lax.sort(tuple(self.words_WK), num_keys=len(self.words_WK), is_stable=False)
        place_K = jnp.arange(words[0].size, dtype=jnp.int32)
        changed_K = place_K == 0
        for word_K in words:
            changed_K |= word_K != jnp.roll(word_K, 1)
        seen_K = ~_is_empty(words)
        run_K = place_K - jax.lax.cummax(jnp.where(changed_K, place_K, 0)) + 1
        return TableSizes(
            distinct=jnp.sum(changed_K & seen_K, dtype=jnp.int32),
            total=jnp.sum(seen_K, dtype=jnp.int32),
            most=jnp.max(jnp.where(seen_K, run_K, 0), initial=0),
        )


@flax.struct.dataclass
class TableSizes:
    """Numbers of n-grams."""

    distinct: Int[Array, ""]
    total: Int[Array, ""]
    most: Int[Array, ""]


def ngram_table(
    ids_BT: Int[Array, "B T"], n: int, inside_BT: Bool[Array, "B T"] | None = None, num_ids: int = MAX_ID + 1
) -> NgramTable:
    """The n-grams of rows of ids from 0 to `num_ids` - 1; none reaches over a place that is negative or not inside."""
    ids_BT = ids_BT if inside_BT is None else jnp.where(inside_BT, ids_BT, -1)
    padded_BT = jnp.pad(ids_BT, ((0, 0), (0, max(n - ids_BT.shape[1], 0))), constant_values=-1)
    num_starts = padded_BT.shape[1] - n + 1
    columns = [padded_BT[:, place : place + num_starts].reshape(-1) for place in range(n)]
    empty_K = functools.reduce(jnp.bitwise_or, columns) < 0  # a sign bit among them
    words = _packed([column_K.astype(jnp.uint32) for column_K in columns], num_ids.bit_length())
    return NgramTable(jnp.stack([jnp.where(empty_K, _EMPTY, word_K) for word_K in words]))


def _packed(columns: Sequence[Array], bits: int) -> list[Array]:
    """Numbers of `bits` bits side by side in words of 32; none has all bits set, so that no word row looks empty."""
    words = [jnp.zeros_like(columns[0]) for _ in range(-(-len(columns) * bits // BITS))]
    for place, column_K in enumerate(columns):
        word, offset = divmod(place * bits, BITS)
        words[word] |= column_K << offset
        if offset + bits > BITS:
            words[word + 1] |= column_K >> (BITS - offset)
    return words


def _is_empty(words: Sequence[Array]) -> Array:
    return functools.reduce(jnp.bitwise_and, words) == _EMPTY


BITS = 32


def match_masks(ids_TB: Int[Array, "T B"], other_UB: Int[Array, "U B"]) -> UInt32[Array, "T W B"]:
    """Bit u % 32 of word u // 32 says whether other[u] == ids[t]; W = ceil(U / 32). Negative ids match nothing."""
    num_words = -(-other_UB.shape[0] // BITS)
    padded_UB = jnp.pad(other_UB, ((0, num_words * BITS - other_UB.shape[0]), (0, 0)), constant_values=-1)
    words_WKB = padded_UB.reshape(num_words, BITS, -1)
    same_TWKB = (ids_TB[:, None, None] == words_WKB) & (words_WKB >= 0)
    bits_K11 = jnp.uint32(1) << jnp.arange(BITS, dtype=jnp.uint32)[:, None]
    return jnp.sum(jnp.where(same_TWKB, bits_K11, jnp.uint32(0)), axis=2, dtype=jnp.uint32)


def shifted_down(masks_WB: UInt32[Array, "W B"], places: int) -> UInt32[Array, "W B"]:
    """Bit u becomes bit u - places, of 0 < places < BITS: where the place `places` later is marked."""
    from_above_WB = jnp.pad(masks_WB[1:], ((0, 1), (0, 0))) << jnp.uint32(BITS - places)
    return (masks_WB >> jnp.uint32(places)) | from_above_WB


def before_itself(num_places: int) -> UInt32[Array, "T W 1"]:
    """Masks of the places before each place."""
    num_words = -(-num_places // BITS)
    places_T1 = jnp.arange(num_places)[:, None]
    below_TW = jnp.clip(places_T1 - BITS * jnp.arange(num_words), 0, BITS)
    full = jnp.uint32(0xFFFFFFFF)
    masks_TW = jnp.where(below_TW == BITS, full, (jnp.uint32(1) << (below_TW % BITS).astype(jnp.uint32)) - 1)
    return masks_TW[:, :, None]


def num_bits(masks_WB: UInt32[Array, "W B"]) -> Int[Array, " B"]:
    """Set bits over all words."""
    return jnp.sum(jax.lax.population_count(masks_WB).astype(jnp.int32), axis=0)


def row_of(ids_BT: Int[Array, "B T"], lengths_B: Int[Array, " B"]) -> Int[Array, "T B"]:
    """Rows along the last axis, -1 from each row's end."""
    inside_BT: Bool[Array, "B T"] = jnp.arange(ids_BT.shape[1]) < lengths_B[:, None]
    return jnp.where(inside_BT, ids_BT, -1).T
