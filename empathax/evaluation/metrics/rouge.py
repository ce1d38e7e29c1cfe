"""ROUGE-L in the graph: the longest common subsequence by bit-parallel addition, one word operation for 32 cells."""

from __future__ import annotations

import operator

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, UInt32

from empathax.evaluation.metrics.exact_sum import ExactSum, exact_sum


def lcs_lengths(masks_TWB: UInt32[Array, "T W B"]) -> Int[Array, " B"]:
    """Lengths of the longest common subsequences of B pairs.

    Hyyrö (2004), "Bit-parallel LCS-length computation revisited": V := (V + (V & M)) | (V & ~M) for each token of the
    reply, where M marks its places in the reference; the LCS is as long as V has zeros. Here V spans W words, and the
    carry of the addition passes from one to the next.

    `masks_TWB` holds M of each token of the replies, 0 past their ends (match_masks.py). Padding of the references
    matches nothing, so that its bits stay 1.
    """
    num_words = masks_TWB.shape[1]

    def step(open_WB: Array, mask_WB: Array) -> tuple[Array, None]:
        carry_B = jnp.zeros_like(open_WB[0])
        rows = []
        for word in range(num_words):
            open_B, mask_B = open_WB[word], mask_WB[word]
            hit_B = open_B & mask_B
            partial_B = open_B + hit_B
            sum_B = partial_B + carry_B
            carry_B = ((partial_B < open_B) | (sum_B < partial_B)).astype(jnp.uint32)
            rows.append(sum_B | (open_B & ~mask_B))
        return jnp.stack(rows), None

    open_WB = jnp.full_like(masks_TWB[0], 0xFFFFFFFF)
    open_WB, _ = jax.lax.scan(step, open_WB, masks_TWB, unroll=min(4, len(masks_TWB)))
    closed_WB = jax.lax.population_count(~open_WB).astype(jnp.int32)
    return jnp.sum(closed_WB, axis=0)


@flax.struct.dataclass
class RougeSums:
    """Sums of LCS F-measures over pairs."""

    rouge_l: ExactSum
    rouge_l_coco: ExactSum

    def merge(self, other: RougeSums) -> RougeSums:
        """The sums of both."""
        return jax.tree.map(operator.add, self, other)


def f_measures(
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


def rouge_sums(
    lcs_B: Int[Array, " B"],
    reply_lengths_B: Int[Array, " B"],
    reference_lengths_B: Int[Array, " B"],
    counted_B: Bool[Array, " B"],
) -> RougeSums:
    """Sums over the pairs that are `counted_B`."""
    scores = f_measures(lcs_B, reply_lengths_B, reference_lengths_B)
    return RougeSums(*(exact_sum(score_B, counted_B) for score_B in scores))
