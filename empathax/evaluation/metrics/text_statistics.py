"""The text metrics reply by reply, counted in the graph as the metrics are: what bootstrap intervals come from.

The numbers themselves come from text_metrics.py; a record holds both and refuses them if they disagree.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from empathax.evaluation.metrics.bleu import sentence_scores
from empathax.evaluation.metrics.id_rows import PairRows, numbered_pair_rows
from empathax.evaluation.metrics.ngrams import count_ngrams, match_masks, row_of
from empathax.evaluation.metrics.rouge import f_measures, lcs_lengths
from empathax.evaluation.metrics.statistics import BleuCounts, MeanOfValues, ReplyWords, Statistic
from empathax.evaluation.metrics.text_metrics import DISTINCT_ORDERS
from empathax.evaluation.metrics.words import (
    TextIds,
    cased_pieces,
    lower_pieces,
    mteval_piece,
    rouge_piece,
    treebank_piece,
)

Columns = Mapping[str, np.ndarray]  # an entry (or a row of entries) for each pair


@flax.struct.dataclass
class PairValues:
    """What each pair of a block gives, on a scale of 0 to 1; N is the order of n-grams, 1 to 4."""

    bleu4_sentence_B: Float[Array, " B"]
    rouge_l_B: Float[Array, " B"]
    rouge_l_coco_B: Float[Array, " B"]
    matches_BN: Int[Array, "B N"]
    totals_BN: Int[Array, "B N"]
    distinct_BN: Int[Array, "B N"]


def pair_values(rows: PairRows) -> PairValues:
    """The values of a block of pairs; rows that are not counted hold nothing of use. A pure function."""
    reply_TB = row_of(rows.reply_ids_BT, rows.reply_lengths_B)
    reference_UB = row_of(rows.reference_ids_BU, rows.reference_lengths_B)
    masks_TWB = match_masks(reply_TB, reference_UB)
    lengths = rows.reply_lengths_B, rows.reference_lengths_B
    counts = count_ngrams(reply_TB, masks_TWB, rows.reply_lengths_B)
    by_pair = (table_NB.T for table_NB in (counts.matches_NB, counts.totals_NB, counts.distinct_NB))
    return PairValues(
        jnp.ldexp(*sentence_scores(counts, *lengths)), *f_measures(lcs_lengths(masks_TWB), *lengths), *by_pair
    )


_jitted_values = jax.jit(pair_values)


def text_statistics(
    replies: Sequence[str], references: Sequence[str], dialogues: Sequence[str]
) -> dict[str, Statistic]:
    """Statistics of BLEU, ROUGE-L and Distinct (unit "word") of replies, each with its reference and its dialogue.

    Names and scales as in docs/report.md. What no reply has (a bigram, say) is left out.
    """
    owners = tuple(dialogues)
    texts = [*replies, *references]
    lower = lower_pieces(texts)
    words, rouge, mteval = lower.ids(treebank_piece), lower.ids(rouge_piece), cased_pieces(texts).ids(mteval_piece)
    by_word, by_rouge, by_mteval = (_columns(ids, len(replies)) for ids in (words, rouge, mteval))
    return {
        "bleu4_sentence": _mean(owners, by_word["bleu4_sentence_B"]),
        "bleu4_corpus": _bleu(owners, by_word, smallest_total=1),  # NLTK counts one n-gram for a reply without any
        "bleu4_sacre": _bleu(owners, by_mteval, smallest_total=0),
        "rouge_l": _mean(owners, by_rouge["rouge_l_B"]),
        "rouge_l_coco": _mean(owners, by_word["rouge_l_coco_B"]),
        "distinct": ReplyWords(owners, _rows(words[: len(replies)])),
        **_reply_distinct(owners, by_word),
    }


def _columns(ids: TextIds, num_pairs: int) -> Columns:
    """The values of all pairs, in their order, and both lengths."""
    replies, references = ids[:num_pairs], ids[num_pairs:]
    found: dict[str, np.ndarray] = {"lengths": replies.lengths_N, "reference_lengths": references.lengths_N}
    for members_M, rows in numbered_pair_rows(replies, references):
        block = jax.device_get(_jitted_values(rows))
        for name, values in vars(block).items():
            column = found.setdefault(name, np.zeros((num_pairs, *values.shape[1:]), values.dtype))
            column[members_M] = values[: len(members_M)]
    return found


def _mean(owners: tuple[str, ...], values_E: np.ndarray) -> MeanOfValues:
    return MeanOfValues.of(owners, 100.0 * values_E.astype(np.float64))


def _bleu(owners: tuple[str, ...], columns: Columns, smallest_total: int) -> BleuCounts:
    totals_EN = np.maximum(columns["totals_BN"], smallest_total)
    matches, totals = (tuple(map(tuple, table.tolist())) for table in (columns["matches_BN"], totals_EN))
    lengths, reference_lengths = (tuple(columns[name].tolist()) for name in ("lengths", "reference_lengths"))
    return BleuCounts(owners, matches, totals, lengths, reference_lengths)


def _reply_distinct(owners: tuple[str, ...], columns: Columns) -> dict[str, MeanOfValues]:
    found = {}
    for n in DISTINCT_ORDERS:
        distinct_E, totals_E = columns["distinct_BN"][:, n - 1], columns["totals_BN"][:, n - 1]
        has_any_E = totals_E > 0
        if has_any_E.any():
            kept = tuple(owner for owner, has_any in zip(owners, has_any_E.tolist(), strict=True) if has_any)
            found[f"distinct_{n}_reply"] = _mean(kept, distinct_E[has_any_E] / totals_E[has_any_E])
    return found


def _rows(ids: TextIds) -> tuple[tuple[int, ...], ...]:
    ends = np.cumsum(ids.lengths_N)
    return tuple(tuple(row.tolist()) for row in np.split(ids.ids_K, ends[:-1]))
