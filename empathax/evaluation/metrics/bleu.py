"""BLEU-4 in the graph, three ways: NLTK's sentence and corpus scores, and sacrebleu's (Papineni et al. 2002)."""

from __future__ import annotations

import math
import operator

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from empathax.evaluation.metrics.exact_sum import ExactSum, exact_sum
from empathax.evaluation.metrics.ngrams import MAX_ORDER, NgramCounts

# NLTK takes an order without a match for float64's smallest normal, 2**-1022, so that a reply without a common four-
# gram scores 2**-255.5 times the rest: 0 for every purpose, but equal to the reference to the last.
_ZERO_PRECISION_LOG2 = 1022
_MAX_PENALTY = 745  # exp(-746) is 0 in float64


@flax.struct.dataclass
class BleuSums:
    """Sums over pairs, by order n = 1 .. 4 (axis N)."""

    matches_N: Int[Array, " N"]
    totals_N: Int[Array, " N"]
    num_short_N: Int[Array, " N"]  # replies without an n-gram of the order
    reply_length: Int[Array, ""]
    reference_length: Int[Array, ""]
    sentence: ExactSum

    def merge(self, other: BleuSums) -> BleuSums:
        """The sums of both."""
        return jax.tree.map(operator.add, self, other)

    def bleu4_sentence(self) -> float:
        """Mean of NLTK's unsmoothed `sentence_bleu` over pairs, x100. On the host, as those below."""
        return self.sentence.percent()

    def bleu4_corpus(self) -> float:
        """NLTK's `corpus_bleu` with smoothing method3, x100."""
        matches, totals = self._counts()
        if not matches[0]:
            return 0.0
        # NLTK counts one n-gram for a reply that has none
        totals = [total + int(short) for total, short in zip(totals, self.num_short_N, strict=True)]
        return _score(matches, totals, int(self.reply_length), int(self.reference_length))

    def bleu4_sacre(self) -> float:
        """The corpus score of sacrebleu (smoothing "exp"), already x100."""
        matches, totals = self._counts()
        if not any(matches) or not all(totals):
            return 0.0
        return _score(matches, totals, int(self.reply_length), int(self.reference_length))

    def _counts(self) -> tuple[list[int], list[int]]:
        matches_N, totals_N = jax.device_get((self.matches_N, self.totals_N))
        return matches_N.tolist(), totals_N.tolist()


def bleu_sums(
    counts: NgramCounts,
    reply_lengths_B: Int[Array, " B"],
    reference_lengths_B: Int[Array, " B"],
    counted_B: Bool[Array, " B"],
) -> BleuSums:
    """The sums over the pairs that are `counted_B`."""
    mantissas_B, exponents_B = sentence_scores(counts, reply_lengths_B, reference_lengths_B)

    def total(values: Array) -> Array:
        return jnp.sum(jnp.where(counted_B, values, 0), axis=-1, dtype=jnp.int32)

    return BleuSums(
        matches_N=total(counts.matches_NB),
        totals_N=total(counts.totals_NB),
        num_short_N=total(counts.totals_NB == 0),
        reply_length=total(reply_lengths_B),
        reference_length=total(reference_lengths_B),
        sentence=exact_sum(mantissas_B, counted_B, exponents_B),
    )


def sentence_scores(
    counts: NgramCounts, reply_B: Int[Array, " B"], reference_B: Int[Array, " B"]
) -> tuple[Float[Array, " B"], Int[Array, " B"]]:
    """NLTK's unsmoothed sentence score of each pair as (mantissa, exponent): it reaches further down than float32 does.

    `reply_B` and `reference_B` are lengths.
    """
    matched_NB = counts.matches_NB > 0
    precisions_NB = counts.matches_NB / jnp.maximum(counts.totals_NB, 1).astype(jnp.float32)
    precisions_NB = jnp.where(matched_NB, precisions_NB, 1.0)
    num_zero_B = jnp.sum(~matched_NB, axis=0, dtype=jnp.int32)
    halves_B = num_zero_B * (_ZERO_PRECISION_LOG2 // 2)  # log2 of the zero orders' fourth root, in halves
    geometric_B = jnp.sqrt(
        jnp.sqrt(precisions_NB[0] * precisions_NB[1]) * jnp.sqrt(precisions_NB[2] * precisions_NB[3])
    )
    geometric_B = geometric_B * jnp.where(halves_B % 2, np.float32(math.sqrt(2)), np.float32(1))
    penalty_B, penalty_exponents_B = _brevity_penalty(reply_B, reference_B)
    score_B = jnp.where(matched_NB[0], geometric_B * penalty_B, 0.0)
    return score_B, penalty_exponents_B - (halves_B + 1) // 2


def _brevity_penalty(reply_B: Array, reference_B: Array) -> tuple[Array, Array]:
    """exp(1 - reference / reply) for replies that are no longer than their reference, as (mantissa, exponent)."""
    mantissas, exponents = np.frexp(np.exp(-np.arange(_MAX_PENALTY + 1, dtype=np.float64)))
    missing_B, reply_B = jnp.maximum(reference_B - reply_B, 0), jnp.maximum(reply_B, 1)
    whole_B = missing_B // reply_B
    rest_B = jnp.exp(-(missing_B - whole_B * reply_B) / reply_B.astype(jnp.float32))
    place_B = jnp.minimum(whole_B, _MAX_PENALTY)
    penalty_B = jnp.asarray(mantissas, jnp.float32)[place_B] * rest_B
    return jnp.where(whole_B <= _MAX_PENALTY, penalty_B, 0.0), jnp.asarray(exponents, jnp.int32)[place_B]


def _score(matches: list[int], totals: list[int], reply_length: int, reference_length: int) -> float:
    """x100; the k-th order without a match counts 1 / 2**k of an n-gram (NIST; Chen and Cherry 2014, method 3)."""
    logs, num_zero = [], 0
    for matched, total in zip(matches, totals, strict=True):
        num_zero += not matched
        logs.append(math.log((matched or 2.0**-num_zero) / total))
    penalty = min(0.0, 1.0 - reference_length / reply_length)
    return 100.0 * math.exp(penalty + math.fsum(logs) / MAX_ORDER)
