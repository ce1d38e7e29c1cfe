"""Prefix trees packed into rows of one length: the rows, `pack`, and a report of what a packing costs and saves.

A unit is what must lie in one row: one reply (SFT), or the chosen and the rejected reply of a pair. A group is the
units that may share a prefix: a dialogue. `packing` says how much is shared: "tree" lays a group out as one tree,
"pair" each unit as one tree, "none" every reply as a chain of its own (both chains of a pair in one row). Replies with
a label (data/labeled.py) are units of one, to which planning may add a mismatched reply.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Int32

from empathax.data.batch import Batch
from empathax.data.labeled import labeled_replies, with_mismatched, with_room
from empathax.data.passes import deal
from empathax.data.prefix_tree import Tree, build_tree, joined
from empathax.data.row_plan import Group, RowPlan, plan_rows, round_up

TRAINED_MULTIPLE = 32  # M
SEQUENCE_MULTIPLE = 8  # S and P


@dataclass(frozen=True)
class RowSizes:
    """Shapes of a row: T tokens, M trained-token slots, S replies, P pairs (0 without pairs), R labeled replies."""

    tokens: int
    trained: int
    sequences: int
    pairs: int
    labeled: int = 0


@dataclass(frozen=True)
class PackedRows:
    """Rows as lists of trees; `rows[i]` lays row i out as arrays without the batch dimension.

    Read-only with random access, so that it can be a Grain source.

    Attributes:
        trees, tree_indices: all trees, and the indices of each row's trees.
        paired: whether the replies of a row are pairs, chosen and rejected in turn.
        num_sequences: one more than the largest sequence id.
        pass_sizes: rows of each pass of data/passes.py, one pass after another.
        dialogues: (dialogue, its units) of each row, where `max_units` limits them in a step (0 = no limit).
        labels: whether each reply is desirable, by sequence id; () without labels. The mismatched reply of reply i has
            the id len(labels) + i.
    """

    trees: tuple[Tree, ...]
    tree_indices: tuple[tuple[int, ...], ...]
    paired: bool
    sizes: RowSizes
    num_sequences: int
    pass_sizes: tuple[int, ...] = ()
    dialogues: tuple[tuple[tuple[int, int], ...], ...] = ()
    max_units: int = 0
    labels: tuple[bool, ...] = ()

    def __len__(self) -> int:
        return len(self.tree_indices)

    def __getitem__(self, row: int) -> Batch:
        """The arrays of one row: `Batch` fields without the B dimension."""
        return self._lay_out([self.trees[i] for i in self.tree_indices[row]])

    def empty_row(self) -> Batch:
        """A row that trains nothing, to fill a last batch."""
        return self._lay_out([])

    def _lay_out(self, trees: Sequence[Tree]) -> Batch:
        return _lay_out(trees, self.sizes, self.paired, self.labels)

    def sequence_ids(self, row: int) -> Int32[np.ndarray, " sequences"]:
        """Ids of the replies in one row."""
        return joined([self.trees[i].sequence_ids for i in self.tree_indices[row]])

    def reply_lengths(self) -> Int32[np.ndarray, " sequences"]:
        """Trained tokens of each reply by sequence id; 0 for ids that no row holds."""
        lengths = np.zeros(self.num_sequences, np.int32)
        for tree in self.trees:
            lengths[tree.sequence_ids] = np.bincount(tree.sequence_index, minlength=len(tree.sequence_ids))
        return lengths

    def fingerprint(self) -> str:
        """Digest of every array of every row."""
        facts = (self.tree_indices, self.paired, self.sizes, self.pass_sizes)
        digest = hashlib.sha256(repr((*facts, self.labels) if self.labels else facts).encode())
        for tree in self.trees:
            for array in (tree.token_ids, tree.subtree_end, tree.query_index, tree.target_id, tree.sequence_ids):
                digest.update(np.ascontiguousarray(array, "<i4").tobytes())
        return digest.hexdigest()


def pack(
    groups: Sequence[Group],
    packing: str,
    row_length: int = 0,
    max_length: int = 0,
    max_units: int = 0,
    *,
    labels: Sequence[bool] = (),
    mismatched: bool = False,
) -> PackedRows:
    """Packs `groups` into rows of `row_length` tokens.

    A tree larger than a row is cut between units: the shared prefix is repeated, nothing is dropped.

    Args:
        groups: units by dialogue; all units have the same number of sequences.
        packing: "tree", "pair" or "none".
        row_length: tokens of a row, rounded up to a multiple of 128. 0 chooses: the smallest length that holds
            max_length and every unit (or the largest tree, if that is less), or one up to twice as long where the data
            take less work in it, since fewer trees are split.
        max_length: longest prompt + reply of the data, used by row_length = 0; 0 = unlimited.
        max_units: units of one dialogue that a training step may hold, 0 = any number; see data/passes.py.
        labels: whether each reply is desirable, by sequence id, for units of one reply; () = they have no labels.
        mismatched: with labels, each prompt also with another prompt's reply (data/labeled.py).

    Raises:
        ConfigError: a unit is larger than `row_length`.
    """
    share, merge = packing != "none", packing == "tree"
    given = with_room(groups, len(labels)) if mismatched else groups
    passes = deal(given, max_units)
    if not merge:
        passes = [[[unit] for group in dealt for unit in group] for dealt in passes]
    plan = plan_rows(passes, share, merge, row_length, max_length)
    plan = with_mismatched(plan, max_length) if mismatched else plan
    trees, rows = _trees(plan, share, merge)
    paired = not labels and any(len(group[0]) == 2 for dealt in passes for group in dealt)
    return PackedRows(
        trees=tuple(trees),
        tree_indices=tuple(tuple(row) for row in rows),
        paired=paired,
        sizes=_row_sizes(trees, rows, plan.length, paired, len(labels)),
        num_sequences=max((int(tree.sequence_ids.max()) for tree in trees), default=-1) + 1,
        pass_sizes=plan.pass_sizes,
        dialogues=_dialogues(plan, groups) if max_units else (),
        max_units=max_units,
        labels=tuple(labels),
    )


def _dialogues(plan: RowPlan, groups: Sequence[Group]) -> tuple[tuple[tuple[int, int], ...], ...]:
    """(dialogue, its units) of each row."""
    dialogue_of = {unit[0].sequence_id: number for number, group in enumerate(groups) for unit in group}
    rows = [[dialogue_of[unit[0].sequence_id] for part in row for unit in plan.parts[part]] for row in plan.rows]
    return tuple(tuple(Counter(row).items()) for row in rows)


def _trees(plan: RowPlan, share: bool, merge: bool) -> tuple[list[Tree], list[list[int]]]:
    """The trees of a plan, and each row's indices into them: a tree for each part, or with `merge` for each row."""
    merged = [[unit for part in row for unit in plan.parts[part]] for row in plan.rows]
    groups, rows = (merged, [[row] for row in range(len(merged))]) if merge else (plan.parts, plan.rows)
    return [build_tree([sequence for unit in group for sequence in unit], share) for group in groups], rows


def _row_sizes(
    trees: Sequence[Tree], rows: Sequence[Sequence[int]], length: int, paired: bool, num_labels: int
) -> RowSizes:
    trained = max((sum(trees[i].num_trained for i in row) for row in rows), default=0)
    sequences = max((sum(len(trees[i].sequence_ids) for i in row) for row in rows), default=0)
    labeled = max((sum(int((trees[i].sequence_ids < num_labels).sum()) for i in row) for row in rows), default=0)
    return RowSizes(
        tokens=length,
        trained=round_up(trained, TRAINED_MULTIPLE),
        sequences=round_up(sequences, SEQUENCE_MULTIPLE),
        pairs=round_up(sequences // 2, SEQUENCE_MULTIPLE) if paired else 0,
        labeled=round_up(labeled, SEQUENCE_MULTIPLE) if num_labels else 0,
    )


def _lay_out(trees: Sequence[Tree], sizes: RowSizes, paired: bool, labels: Sequence[bool]) -> Batch:
    """One row's arrays; trees one after another, then unused slots."""
    token_offsets = np.cumsum([0, *(tree.num_tokens for tree in trees)])
    sequence_offsets = np.cumsum([0, *(len(tree.sequence_ids) for tree in trees)])
    num_tokens, num_sequences = int(token_offsets[-1]), int(sequence_offsets[-1])
    num_trained = sum(tree.num_trained for tree in trees)
    ends = [tree.subtree_end + offset for tree, offset in zip(trees, token_offsets, strict=False)]
    queries = [tree.query_index + offset for tree, offset in zip(trees, token_offsets, strict=False)]
    sequences = [tree.sequence_index + offset for tree, offset in zip(trees, sequence_offsets, strict=False)]
    num_pairs = num_sequences // 2 if paired else 0
    unused_tokens = np.arange(num_tokens + 1, sizes.tokens + 1)  # each sees itself only
    arrays: dict[str, Any] = {
        "token_ids_BT": _filled([tree.token_ids for tree in trees], sizes.tokens),
        "positions_BT": _filled([tree.positions for tree in trees], sizes.tokens),
        "subtree_end_BT": _filled([*ends, unused_tokens], sizes.tokens),
        "query_index_BM": _filled(queries, sizes.trained),
        "target_id_BM": _filled([tree.target_id for tree in trees], sizes.trained),
        "sequence_index_BM": _filled(sequences, sizes.trained),
        "weight_BM": _ones(num_trained, sizes.trained),
        "sequence_id_BS": _filled([tree.sequence_ids for tree in trees], sizes.sequences, empty=-1),
        "chosen_index_BP": _filled([np.arange(num_pairs) * 2], sizes.pairs),
        "rejected_index_BP": _filled([np.arange(num_pairs) * 2 + 1], sizes.pairs),
        "pair_weight_BP": _ones(num_pairs, sizes.pairs),
    }
    if labels:
        ids = joined([tree.sequence_ids for tree in trees])
        arrays["replies"] = labeled_replies(ids, labels, sizes.labeled)
    return Batch(**arrays)


def _filled(arrays: Sequence[np.ndarray], length: int, empty: int = 0) -> Int32[np.ndarray, " length"]:
    values = joined(arrays)
    return joined([values, np.full(length - len(values), empty)])


def _ones(count: int, length: int) -> np.ndarray:
    return (np.arange(length) < count).astype(np.float32)


def packing_report(rows: PackedRows, groups: Sequence[Group]) -> dict[str, float]:
    """Figures of a packing: rows and their sizes, how full they are and how evenly, tokens a unit, saving.

    `fill_ratio` and `trained_fill_ratio` are the shares of tokens and of trained slots in use; `tokens_spread` and
    `trained_spread` the coefficients of variation of both between rows; `times_fewer_tokens` compares with every reply
    laid out by itself.
    """
    tokens, trained = _by_row(rows, "num_tokens"), _by_row(rows, "num_trained")
    num_units = sum(len(group) for group in groups)
    unshared = sum(_tokens_one_by_one(tree) for tree in rows.trees)
    num_rows = max(len(rows), 1)
    return {
        "rows": len(rows),
        "row_length": rows.sizes.tokens,
        "trained_slots": rows.sizes.trained,
        "passes": len(rows.pass_sizes),
        "units": num_units,
        "tokens": sum(tokens),
        "trained_tokens": sum(trained),
        "fill_ratio": sum(tokens) / (num_rows * max(rows.sizes.tokens, 1)),
        "trained_fill_ratio": sum(trained) / (num_rows * max(rows.sizes.trained, 1)),
        "tokens_spread": _spread(tokens),
        "trained_spread": _spread(trained),
        "tokens_per_unit": sum(tokens) / max(num_units, 1),
        "tokens_per_unit_unshared": unshared / max(num_units, 1),
        "times_fewer_tokens": unshared / max(sum(tokens), 1),
    }


def _tokens_one_by_one(tree: Tree) -> int:
    """Tokens of a tree's sequences without sharing: the last target of each stands two past its query's depth."""
    last_query = tree.query_index[np.append(np.flatnonzero(np.diff(tree.sequence_index)), -1)]
    return int((tree.positions[last_query] + 2).sum())


def _by_row(rows: PackedRows, figure: str) -> list[int]:
    return [sum(getattr(rows.trees[i], figure) for i in row) for row in rows.tree_indices]


def _spread(values: Sequence[int]) -> float:
    """Standard deviation as a share of the mean."""
    return float(np.std(values) / np.mean(values)) if values else 0.0
