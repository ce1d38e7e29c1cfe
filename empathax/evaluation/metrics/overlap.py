"""What a reply shares with its reference, in the graph: the n-grams of BLEU-4 and the common subsequence of ROUGE-L.

`pair_values` is the one per-reply statistic of all overlap metrics; text_metrics.py makes the metrics from it. It is a
pure function of integer ids, so it can stand in the same compiled function as the generation of a reply.

The places of a text where another text has the same token are bits of uint32 words. N-grams are compared id by id:
there are no hashes, hence no collisions. Rows lie along the last axis, so that every step runs over many rows at once.

Axes: B pairs, T tokens of a reply, U of a reference, W words of 32 bits, N orders of n-grams (1 to 4).
"""

from __future__ import annotations

import math
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, UInt32

MAX_ORDER = 4  # of BLEU
_BITS = 32
# NLTK takes an order without a match for float64's smallest normal, 2**-1022, so that a reply without a common four-
# gram scores 2**-255.5 times the rest: 0 for every purpose, but equal to the reference to the last.
_ZERO_PRECISION_LOG2 = 1022
_MAX_PENALTY = 745  # exp(-746) is 0 in float64


@flax.struct.dataclass
class PairRows:
    """B replies and their references as ids of equal meaning, from 0; what is past a row's length is not read."""

    reply_ids_BT: Int[Array, "B T"]
    reply_lengths_B: Int[Array, " B"]
    reference_ids_BU: Int[Array, "B U"]
    reference_lengths_B: Int[Array, " B"]


@flax.struct.dataclass
class PairValues:
    """What each pair gives; scores are on a scale of 0 to 1."""

    sentence_mantissas_B: Float[Array, " B"]  # sentence BLEU-4 = mantissa * 2**exponent, which float32 cannot hold
    sentence_exponents_B: Int[Array, " B"]
    rouge_l_B: Float[Array, " B"]  # rouge-score's F1
    rouge_l_coco_B: Float[Array, " B"]  # F with beta 1.2
    matches_BN: Int[Array, "B N"]  # n-grams of the reply that are in the reference, each at most as often as there
    totals_BN: Int[Array, "B N"]  # n-grams of the reply
    distinct_BN: Int[Array, "B N"]  # different n-grams of the reply


def pair_values(rows: PairRows) -> PairValues:
    """The values of a block of pairs; to be called inside jit, which drops the parts that nobody reads."""
    reply_TB = _columns(rows.reply_ids_BT, rows.reply_lengths_B)
    reference_UB = _columns(rows.reference_ids_BU, rows.reference_lengths_B)
    lengths = rows.reply_lengths_B, rows.reference_lengths_B
    masks_TWB = _match_masks(reply_TB, reference_UB)
    matches_NB, totals_NB, distinct_NB = _count_ngrams(reply_TB, masks_TWB, rows.reply_lengths_B)
    return PairValues(
        *_sentence_bleu(matches_NB, totals_NB, *lengths),
        *_f_measures(_lcs_lengths(masks_TWB), *lengths),
        *(table_NB.T for table_NB in (matches_NB, totals_NB, distinct_NB)),
    )


def _columns(ids_BT: Int[Array, "B T"], lengths_B: Int[Array, " B"]) -> Int[Array, "T B"]:
    """Rows along the last axis, -1 from each row's end."""
    return jnp.where(jnp.arange(ids_BT.shape[1]) < lengths_B[:, None], ids_BT, -1).T


def _match_masks(ids_TB: Int[Array, "T B"], other_UB: Int[Array, "U B"]) -> UInt32[Array, "T W B"]:
    """Bit u % 32 of word u // 32 says whether other[u] == ids[t]; W = ceil(U / 32). Negative ids match nothing."""
    num_words = -(-other_UB.shape[0] // _BITS)
    padded_UB = jnp.pad(other_UB, ((0, num_words * _BITS - other_UB.shape[0]), (0, 0)), constant_values=-1)
    words_WKB = padded_UB.reshape(num_words, _BITS, -1)
    same_TWKB = (ids_TB[:, None, None] == words_WKB) & (words_WKB >= 0)
    bits_K11 = jnp.uint32(1) << jnp.arange(_BITS, dtype=jnp.uint32)[:, None]
    return jnp.sum(jnp.where(same_TWKB, bits_K11, jnp.uint32(0)), axis=2, dtype=jnp.uint32)


def _count_ngrams(
    reply_TB: Int[Array, "T B"], masks_TWB: UInt32[Array, "T W B"], lengths_B: Int[Array, " B"]
) -> tuple[Int[Array, "N B"], Int[Array, "N B"], Int[Array, "N B"]]:
    """(matches, totals, distinct) of replies whose `masks_TWB` say where the reference has each token.

    The k-th occurrence of an n-gram in a reply is a match if the reference has it at least k times: summed up, these
    are the clipped counts of Papineni et al. (2002), section 2.1.
    """
    own_TWB = _match_masks(reply_TB, reply_TB)
    later = [jnp.zeros_like(own_TWB[0])] * (MAX_ORDER - 1)  # masks of the next tokens, the nearest first
    none = jnp.zeros((MAX_ORDER, lengths_B.size), jnp.int32)

    def step(carry: Any, masks: tuple[Array, Array, Array]) -> tuple[Any, None]:
        matches_NB, distinct_NB, theirs, own = carry
        gram_WB, same_WB, earlier_W1 = masks  # where the n-gram that begins here stands in the reference, in the reply
        matched, is_new = [], []
        for n in range(MAX_ORDER):
            if n:
                gram_WB, same_WB = gram_WB & _shifted_down(theirs[n - 1], n), same_WB & _shifted_down(own[n - 1], n)
            earlier_B = _num_bits(same_WB & earlier_W1)
            matched.append(_num_bits(gram_WB) > earlier_B)
            is_new.append((earlier_B == 0) & (_num_bits(same_WB) > 0))
        counts = matches_NB + jnp.stack(matched), distinct_NB + jnp.stack(is_new)
        return (*counts, [masks[0], *theirs[:-1]], [masks[1], *own[:-1]]), None

    # from the last token to the first, so that the masks of the tokens after it are at hand
    steps = masks_TWB, own_TWB, _before_itself(len(reply_TB))
    (matches_NB, distinct_NB, _, _), _ = jax.lax.scan(step, (none, none, later, later), steps, reverse=True)
    totals_NB = jnp.maximum(lengths_B - jnp.arange(MAX_ORDER)[:, None], 0)
    return matches_NB, totals_NB, distinct_NB


def _shifted_down(masks_WB: UInt32[Array, "W B"], places: int) -> UInt32[Array, "W B"]:
    """Bit u becomes bit u - places, of 0 < places < 32: where the place `places` later is marked."""
    from_above_WB = jnp.pad(masks_WB[1:], ((0, 1), (0, 0))) << jnp.uint32(_BITS - places)
    return (masks_WB >> jnp.uint32(places)) | from_above_WB


def _before_itself(num_places: int) -> UInt32[Array, "T W 1"]:
    """Masks of the places before each place."""
    num_words = -(-num_places // _BITS)
    places_T1 = jnp.arange(num_places)[:, None]
    below_TW = jnp.clip(places_T1 - _BITS * jnp.arange(num_words), 0, _BITS)
    full = jnp.uint32(0xFFFFFFFF)
    masks_TW = jnp.where(below_TW == _BITS, full, (jnp.uint32(1) << (below_TW % _BITS).astype(jnp.uint32)) - 1)
    return masks_TW[:, :, None]


def _num_bits(masks_WB: UInt32[Array, "W B"]) -> Int[Array, " B"]:
    """Set bits over all words."""
    return jnp.sum(jax.lax.population_count(masks_WB).astype(jnp.int32), axis=0)


def _sentence_bleu(
    matches_NB: Int[Array, "N B"],
    totals_NB: Int[Array, "N B"],
    reply_lengths_B: Int[Array, " B"],
    reference_lengths_B: Int[Array, " B"],
) -> tuple[Float[Array, " B"], Int[Array, " B"]]:
    """NLTK's unsmoothed sentence score of each pair as (mantissa, exponent): it reaches further down than float32."""
    matched_NB = matches_NB > 0
    precisions_NB = matches_NB / jnp.maximum(totals_NB, 1).astype(jnp.float32)
    precisions_NB = jnp.where(matched_NB, precisions_NB, 1.0)
    num_zero_B = jnp.sum(~matched_NB, axis=0, dtype=jnp.int32)
    halves_B = num_zero_B * (_ZERO_PRECISION_LOG2 // 2)  # log2 of the zero orders' fourth root, in halves
    geometric_B = jnp.sqrt(
        jnp.sqrt(precisions_NB[0] * precisions_NB[1]) * jnp.sqrt(precisions_NB[2] * precisions_NB[3])
    )
    geometric_B = geometric_B * jnp.where(halves_B % 2, np.float32(math.sqrt(2)), np.float32(1))
    penalty_B, penalty_exponents_B = _brevity_penalty(reply_lengths_B, reference_lengths_B)
    score_B = jnp.where(matched_NB[0], geometric_B * penalty_B, 0.0)
    return score_B, penalty_exponents_B - (halves_B + 1) // 2


def _brevity_penalty(reply_B: Int[Array, " B"], reference_B: Int[Array, " B"]) -> tuple[Array, Array]:
    """exp(1 - reference / reply) for replies that are no longer than their reference, as (mantissa, exponent)."""
    mantissas, exponents = np.frexp(np.exp(-np.arange(_MAX_PENALTY + 1, dtype=np.float64)))
    missing_B, reply_B = jnp.maximum(reference_B - reply_B, 0), jnp.maximum(reply_B, 1)
    whole_B = missing_B // reply_B
    rest_B = jnp.exp(-(missing_B - whole_B * reply_B) / reply_B.astype(jnp.float32))
    place_B = jnp.minimum(whole_B, _MAX_PENALTY)
    penalty_B = jnp.asarray(mantissas, jnp.float32)[place_B] * rest_B
    return jnp.where(whole_B <= _MAX_PENALTY, penalty_B, 0.0), jnp.asarray(exponents, jnp.int32)[place_B]


def _lcs_lengths(masks_TWB: UInt32[Array, "T W B"]) -> Int[Array, " B"]:
    """Lengths of the longest common subsequences of B pairs.

    Hyyrö (2004), "Bit-parallel LCS-length computation revisited": V := (V + (V & M)) | (V & ~M) for each token of the
    reply, where M marks its places in the reference; the LCS is as long as V has zeros. Here V spans W words, and the
    carry of the addition passes from one to the next. M is 0 past a reply's end, and padding of the references matches
    nothing, so that its bits stay 1.
    """
    num_words = masks_TWB.shape[1]

    def step(open_WB: Array, mask_WB: Array) -> tuple[Array, None]:
        carry_B = jnp.zeros_like(open_WB[0])
        rows = []
        for word in range(num_words):
            open_B, mask_B = open_WB[word], mask_WB[word]
            partial_B = open_B + (open_B & mask_B)
            sum_B = partial_B + carry_B
            carry_B = ((partial_B < open_B) | (sum_B < partial_B)).astype(jnp.uint32)
            rows.append(sum_B | (open_B & ~mask_B))
        return jnp.stack(rows), None

    open_WB, _ = jax.lax.scan(step, jnp.full_like(masks_TWB[0], 0xFFFFFFFF), masks_TWB, unroll=min(4, len(masks_TWB)))
    return _num_bits(~open_WB)


def _f_measures(
    lcs_B: Int[Array, " B"], reply_lengths_B: Int[Array, " B"], reference_lengths_B: Int[Array, " B"]
) -> tuple[Float[Array, " B"], Float[Array, " B"]]:
    """(rouge-score's F1, the F with beta 1.2 of pycocoevalcap and ESConv's script), 0 where one of the texts is empty.

    Of precision P = lcs / reply and recall R = lcs / reference: (1 + beta^2) P R / (R + beta^2 P)
    = (1 + beta^2) lcs / (reply + beta^2 reference), which one division rounds once.
    """

    def score(beta_squared_25: int) -> Array:
        below_B = 25 * reply_lengths_B + beta_squared_25 * reference_lengths_B
        above_B = (25 + beta_squared_25) * lcs_B
        return above_B.astype(jnp.float32) / jnp.maximum(below_B, 1).astype(jnp.float32)

    return score(25), score(36)
