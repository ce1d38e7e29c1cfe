"""What pairs of a reply and its reference add up to: BLEU counts, ROUGE-L, and Distinct inside each reply."""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Collection, Sequence

import flax.struct
import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array

from empathax.evaluation.metrics.bleu import BleuSums, bleu_sums
from empathax.evaluation.metrics.exact_sum import ExactSum, exact_sum
from empathax.evaluation.metrics.id_rows import PairRows, pair_rows
from empathax.evaluation.metrics.ngrams import NgramCounts, count_ngrams, match_masks, row_of
from empathax.evaluation.metrics.rouge import RougeSums, lcs_lengths, rouge_sums
from empathax.evaluation.metrics.words import TextIds
from empathax.parallel.processes import put_batch
from empathax.parallel.rules import BATCH_AXES, batch_sharding

_REPLY_DISTINCT = ("distinct_1_reply", "distinct_2_reply", "distinct_3_reply")
_BLEU = ("bleu4_sentence", "bleu4_corpus", "bleu4_sacre")
_ROUGE = ("rouge_l", "rouge_l_coco")
GROUPS = {"bleu": _BLEU, "rouge": _ROUGE, "reply_distinct": _REPLY_DISTINCT}  # what is counted together


@flax.struct.dataclass
class PairSums:
    """Sums over pairs; None where no metric asked for them."""

    bleu: BleuSums | None
    rouge: RougeSums | None
    reply_distinct: tuple[ExactSum, ...] | None

    def merge(self, other: PairSums) -> PairSums:
        """The sums of both."""
        return jax.tree.map(operator.add, self, other)

    def compute(self, metrics: Collection[str]) -> dict[str, float]:
        """Those of `metrics` that these sums give. On the host."""
        sums: PairSums = jax.device_get(self)
        ways: dict[str, Callable[[], float]] = {}
        if sums.bleu:
            ways |= {name: getattr(sums.bleu, name) for name in _BLEU}
        if sums.rouge:
            ways |= {name: getattr(sums.rouge, name).percent for name in _ROUGE}
        if sums.reply_distinct:
            ways |= {name: total.percent for name, total in zip(_REPLY_DISTINCT, sums.reply_distinct, strict=True)}
        return {name: way() for name, way in ways.items() if name in metrics}


def block_sums(
    replies: TextIds, references: TextIds, metrics: Collection[str], mesh: Mesh | None = None
) -> list[PairSums]:
    """The sums of any number of pairs, block by block, on one device or spread over `mesh`; to be merged.

    On one device they are dispatched only, so that the host can go on while they are computed.
    """
    sharding = batch_sharding(mesh) if mesh else None
    multiple = mesh.shape[BATCH_AXES[0]] * mesh.shape[BATCH_AXES[1]] if mesh else 1
    groups = frozenset(group for group, names in GROUPS.items() if set(names) & set(metrics))
    blocks = pair_rows(replies, references, multiple)
    if sharding:  # one at a time: on virtual devices, two programs that wait for each other's threads may never end
        return [jax.device_get(_jitted_count(put_batch(rows, sharding), groups)) for rows in blocks]
    return [_jitted_count(rows, groups) for rows in blocks]


def merged(parts: Sequence[PairSums]) -> PairSums:
    """The sums of all blocks, of which there is one at least. On the host."""
    return functools.reduce(PairSums.merge, jax.device_get(parts))


def count_pairs(rows: PairRows, groups: Collection[str] = frozenset(GROUPS)) -> PairSums:
    """The sums of one block of pairs that `groups` names; a pure function."""
    reply_TB = row_of(rows.reply_ids_BT, jnp.where(rows.counted_B, rows.reply_lengths_B, 0))
    reference_UB = row_of(rows.reference_ids_BU, rows.reference_lengths_B)
    masks_TWB = match_masks(reply_TB, reference_UB)
    lengths = rows.reply_lengths_B, rows.reference_lengths_B
    counts = count_ngrams(reply_TB, masks_TWB, rows.reply_lengths_B)  # what is not asked for is never compiled
    return PairSums(
        bleu=bleu_sums(counts, *lengths, rows.counted_B) if "bleu" in groups else None,
        rouge=rouge_sums(lcs_lengths(masks_TWB), *lengths, rows.counted_B) if "rouge" in groups else None,
        reply_distinct=_reply_distinct(counts, rows.counted_B) if "reply_distinct" in groups else None,
    )


_jitted_count = jax.jit(count_pairs, static_argnames="groups")


def _reply_distinct(counts: NgramCounts, counted_B: Array) -> tuple[ExactSum, ...]:
    """Different over all n-grams of each reply; a reply too short to have any is left out."""
    shares_NB = counts.distinct_NB / jnp.maximum(counts.totals_NB, 1).astype(jnp.float32)
    has_any_NB = (counts.totals_NB > 0) & counted_B
    return tuple(exact_sum(shares_NB[n], has_any_NB[n]) for n in range(len(_REPLY_DISTINCT)))
