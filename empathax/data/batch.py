"""The arrays a compiled step receives: rows of prefix trees and the list of tokens they train."""

from __future__ import annotations

from typing import Any

import flax.struct
from jaxtyping import Float, Int

Array = Any  # numpy on the host, jax once it lies on the mesh


class LabeledReplies(flax.struct.PyTreeNode):
    """Single replies with a label (data/labeled.py): which of a row's S replies they are; unused slots have weight 0.

    A mismatched reply is this prompt with the reply to another; weight 0 where there is none.
    """

    index_BR: Int[Array, "*a B R"]
    desirable_BR: Float[Array, "*a B R"]  # 1 or 0
    weight_BR: Float[Array, "*a B R"]
    mismatched_index_BR: Int[Array, "*a B R"]
    mismatched_weight_BR: Float[Array, "*a B R"]


class Batch(flax.struct.PyTreeNode):
    """B rows of T tokens, each a forest of prefix trees in depth-first preorder (docs/prefix_tree.md).

    Token i of a row sees token j exactly when j <= i < subtree_end[j]. Unused tokens at a row's end have
    subtree_end = own index + 1. S replies are scored per row and P of its pairs compared; unused slots of M, S and P
    carry weight 0, sequence_id -1 and index 0.
    """

    token_ids_BT: Int[Array, "*a B T"]
    positions_BT: Int[Array, "*a B T"]  # depth in the tree = position in the original sequence
    subtree_end_BT: Int[Array, "*a B T"]  # one past the last token below this one
    query_index_BM: Int[Array, "*a B M"]  # the token whose hidden state predicts the target
    target_id_BM: Int[Array, "*a B M"]
    sequence_index_BM: Int[Array, "*a B M"]  # which of the row's S replies the target belongs to
    weight_BM: Float[Array, "*a B M"]  # 1 for a trained token, 0 for an unused slot
    sequence_id_BS: Int[Array, "*a B S"]  # the reply's number in its data set; -1 for an unused slot
    chosen_index_BP: Int[Array, "*a B P"]  # indices into S; P = 0 in SFT batches
    rejected_index_BP: Int[Array, "*a B P"]
    pair_weight_BP: Float[Array, "*a B P"]
    ref_logps_BS: Float[Array, "*a B S"] | None = None  # precomputed reference, fp32
    replies: LabeledReplies | None = None  # single replies with a label; P = 0 then
