"""Prefix trees into rows of one length: a dialogue's tree whole where it fits, rows filled best-fit.

A unit is what must stay together: one reply (SFT), or the chosen and the rejected reply of a pair. A group is the units
that may share a prefix: a dialogue. `packing` says how much is shared: "tree" lays a group out as one tree, "pair" each
unit as one tree, "none" every reply as a chain of its own (both chains of a pair still in one row).
"""

from __future__ import annotations

import bisect
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int32

from empathax.data.batch import Batch
from empathax.data.prefix_tree import PrefixTrie, ScoredSequence, Tree, build_tree
from empathax.errors import ConfigError

ROW_MULTIPLE = 128  # T, for attention blocks
TRAINED_MULTIPLE = 64  # M
SEQUENCE_MULTIPLE = 8  # S and P
CANDIDATES = 8  # row lengths tried by row_length = 0
ATTENTION_LENGTH = 4096  # row length at which attention costs a token as much as everything else; a rough mean of models

Unit = tuple[ScoredSequence, ...]  # (reply,) or (chosen, rejected)
Group = Sequence[Unit]


@dataclass(frozen=True)
class RowSizes:
    """Shapes of a row: T tokens, M trained-token slots, S replies, P pairs (0 without pairs)."""

    tokens: int
    trained: int
    sequences: int
    pairs: int


@dataclass(frozen=True)
class PackedRows:
    """Rows as lists of trees; `rows[i]` lays row i out as arrays without the batch dimension.

    Read-only and random access, so that it can be a Grain source. `num_sequences` is one more than the largest
    sequence id.
    """

    trees: tuple[Tree, ...]
    tree_indices: tuple[tuple[int, ...], ...]
    paired: bool
    sizes: RowSizes
    num_sequences: int

    def __len__(self) -> int:
        return len(self.tree_indices)

    def __getitem__(self, row: int) -> Batch:
        """The arrays of one row: `Batch` fields without the B dimension."""
        return _lay_out([self.trees[i] for i in self.tree_indices[row]], self.sizes, self.paired)

    def empty_row(self) -> Batch:
        """A row that trains nothing, to fill a last batch."""
        return _lay_out([], self.sizes, self.paired)

    def sequence_ids(self, row: int) -> Int32[np.ndarray, " sequences"]:
        """Ids of the replies in one row."""
        ids = [self.trees[i].sequence_ids for i in self.tree_indices[row]]
        return np.concatenate([np.zeros(0, np.int32), *ids])

    def fingerprint(self) -> str:
        """Digest of every array of every row."""
        digest = hashlib.sha256(repr((self.tree_indices, self.paired, self.sizes)).encode())
        for tree in self.trees:
            for array in (tree.token_ids, tree.subtree_end, tree.query_index, tree.target_id, tree.sequence_ids):
                digest.update(np.ascontiguousarray(array, "<i4").tobytes())
        return digest.hexdigest()


def pack(groups: Sequence[Group], packing: str, row_length: int = 0, max_length: int = 0) -> PackedRows:
    """Packs `groups` into rows of `row_length` tokens.

    A tree larger than a row is split between units: the shared prefix is repeated, nothing is dropped.

    Args:
        groups: units by dialogue; all units have the same number of sequences.
        packing: "tree", "pair" or "none".
        row_length: tokens of a row, rounded up to a multiple of 128. 0 chooses: between the smallest length that holds
            max_length and every unit (or the largest tree, if that is less) and twice this, the one with the least work.
        max_length: longest prompt + reply of the data, used by row_length = 0; 0 = unlimited.

    Raises:
        ConfigError: a unit is larger than `row_length`.
    """
    share, merge = packing != "none", packing == "tree"
    whole = [group for group in groups if group]
    whole = whole if merge else [[unit] for group in whole for unit in group]
    sizes = [_num_tokens(group, share) for group in whole]
    if row_length:
        _check_units(whole, sizes, row_length, share)
        plan = _plan(whole, sizes, _round_up(row_length, ROW_MULTIPLE), share, merge)
    else:
        lengths = _candidate_lengths(whole, sizes, max_length, share)
        plan = min((_plan(whole, sizes, length, share, merge) for length in lengths), key=lambda plan: plan.work)
    trees, rows = _trees(plan, share, merge)
    paired = any(len(group[0]) == 2 for group in whole)
    return PackedRows(
        trees=tuple(trees),
        tree_indices=tuple(tuple(row) for row in rows),
        paired=paired,
        sizes=_row_sizes(trees, rows, plan.length, paired),
        num_sequences=max((int(tree.sequence_ids.max()) for tree in trees), default=-1) + 1,
    )


def split_group(group: Group, row_length: int, share: bool = True) -> list[list[Unit]]:
    """Cuts a group into runs of units whose trees fit a row; units with the longest common prompts stay neighbours."""
    units = sorted(group, key=lambda unit: tuple(unit[0].prompt_ids.tolist()))
    parts: list[list[Unit]] = []
    trie = PrefixTrie(share)
    for unit in units:
        _insert(trie, unit)
        if not parts or trie.num_tokens > row_length:
            parts.append([])
            trie = PrefixTrie(share)
            _insert(trie, unit)
        parts[-1].append(unit)
    return parts


def best_fit(sizes: Sequence[int], row_length: int) -> list[list[int]]:
    """Best-fit decreasing: each item into the fullest row that still has room; returns item indices by row."""
    rows: list[list[int]] = []
    room: list[tuple[int, int]] = []  # (free tokens, -row), sorted: of equally full rows the oldest is filled first
    for item in sorted(range(len(sizes)), key=lambda i: (-sizes[i], i)):
        place = bisect.bisect_left(room, (sizes[item], -len(rows)))
        if place == len(room):
            rows.append([item])
            free, row = row_length, len(rows) - 1
        else:
            free, negative_row = room.pop(place)
            row = -negative_row
            rows[row].append(item)
        bisect.insort(room, (free - sizes[item], -row))
    return rows


def packing_report(rows: PackedRows, groups: Sequence[Group]) -> dict[str, float]:
    """Figures of a packing: rows, tokens laid out, share of tokens and of trained slots used, tokens a unit, saving."""
    num_tokens = sum(tree.num_tokens for tree in rows.trees)
    num_trained = sum(tree.num_trained for tree in rows.trees)
    num_units = sum(len(group) for group in groups)
    unshared = sum(sequence.num_tokens for group in groups for unit in group for sequence in unit)
    num_rows = max(len(rows), 1)
    return {
        "rows": len(rows),
        "row_length": rows.sizes.tokens,
        "trained_slots": rows.sizes.trained,
        "units": num_units,
        "tokens": num_tokens,
        "trained_tokens": num_trained,
        "fill_ratio": num_tokens / (num_rows * max(rows.sizes.tokens, 1)),
        "trained_fill_ratio": num_trained / (num_rows * max(rows.sizes.trained, 1)),
        "tokens_per_unit": num_tokens / max(num_units, 1),
        "tokens_per_unit_unshared": unshared / max(num_units, 1),
        "times_fewer_tokens": unshared / max(num_tokens, 1),
    }


def _tree(units: Group, share: bool) -> Tree:
    return build_tree([sequence for unit in units for sequence in unit], share)


def _insert(trie: PrefixTrie, unit: Unit) -> None:
    for sequence in unit:
        trie.insert(sequence.token_ids())


@dataclass(frozen=True)
class _Plan:
    """Which units form a tree, and which trees a row of `length` tokens."""

    parts: list[Group]
    rows: list[list[int]]  # indices into parts
    length: int

    @property
    def work(self) -> float:
        """Tokens computed, each with its share of attention, which grows with the row."""
        return len(self.rows) * self.length * (1 + self.length / ATTENTION_LENGTH)


def _plan(groups: Sequence[Group], sizes: Sequence[int], length: int, share: bool, merge: bool) -> _Plan:
    """Splits what is larger than a row and fills rows best-fit. With `merge` a row becomes one tree, where what all
    data begin with (BOS, the system text) is laid out once."""
    parts: list[Group] = []
    part_sizes: list[int] = []
    for group, size in zip(groups, sizes, strict=True):
        split = [group] if size <= length else split_group(group, length, share)
        parts += split
        part_sizes += [size] if len(split) == 1 else [_num_tokens(part, share) for part in split]
    common = _common_prefix_length(groups) if merge else 0
    return _Plan(parts, best_fit([size - common for size in part_sizes], length - common), length)


def _trees(plan: _Plan, share: bool, merge: bool) -> tuple[list[Tree], list[list[int]]]:
    """The trees of a plan, and each row's indices into them."""
    if not merge:
        return [_tree(part, share) for part in plan.parts], plan.rows
    trees = [_tree([unit for part in row for unit in plan.parts[part]], share) for row in plan.rows]
    return trees, [[row] for row in range(len(trees))]


def _common_prefix_length(parts: Sequence[Group]) -> int:
    """Tokens that every prompt begins with."""
    prompts = [sequence.prompt_ids for part in parts for unit in part for sequence in unit]
    if not prompts:
        return 0
    common = prompts[0]
    for prompt in prompts:
        common = common[: min(len(common), len(prompt))]
        different = common != prompt[: len(common)]
        common = common[: int(different.argmax())] if different.any() else common
    return len(common)


def _candidate_lengths(groups: Sequence[Group], sizes: Sequence[int], max_length: int, share: bool) -> list[int]:
    """Row lengths worth trying: from the smallest that will do to twice that, at most CANDIDATES of them."""
    largest_tree = max(sizes, default=1)
    least = min(largest_tree, max(max_length, _largest_unit(groups, sizes, max_length, share)))
    lowest = _round_up(least, ROW_MULTIPLE) if max_length else _round_up(largest_tree, ROW_MULTIPLE)
    lengths = list(range(lowest, 2 * lowest + 1, ROW_MULTIPLE))
    step = -(-len(lengths) // CANDIDATES)
    return lengths[::step]


def _largest_unit(groups: Sequence[Group], sizes: Sequence[int], above: int, share: bool) -> int:
    """Tokens of the largest unit, where groups up to `above` need not be looked into."""
    large = [group for group, size in zip(groups, sizes, strict=True) if size > above]
    return max((_num_tokens([unit], share) for group in large for unit in group), default=1)


def _check_units(groups: Sequence[Group], sizes: Sequence[int], row_length: int, share: bool) -> None:
    length = _round_up(row_length, ROW_MULTIPLE)
    largest_unit = _largest_unit(groups, sizes, length, share)
    if largest_unit > length:
        kind = "pair" if len(groups[0][0]) == 2 else "reply with its prompt"
        raise ConfigError(
            f"data.row_length = {row_length}: the largest {kind} takes {largest_unit} tokens and must lie in one row; set "
            f"data.row_length to {_round_up(largest_unit, ROW_MULTIPLE)} or more (0 = automatic), or lower data.max_length"
        )


def _num_tokens(group: Group, share: bool) -> int:
    trie = PrefixTrie(share)
    for unit in group:
        _insert(trie, unit)
    return trie.num_tokens


def _row_sizes(trees: Sequence[Tree], rows: Sequence[Sequence[int]], length: int, paired: bool) -> RowSizes:
    trained = max((sum(trees[i].num_trained for i in row) for row in rows), default=0)
    sequences = max((sum(len(trees[i].sequence_ids) for i in row) for row in rows), default=0)
    return RowSizes(
        tokens=length,
        trained=_round_up(trained, TRAINED_MULTIPLE),
        sequences=_round_up(sequences, SEQUENCE_MULTIPLE),
        pairs=_round_up(sequences // 2, SEQUENCE_MULTIPLE) if paired else 0,
    )


def _round_up(n: int, multiple: int) -> int:
    return max(-(-n // multiple), 1) * multiple


def _lay_out(trees: Sequence[Tree], sizes: RowSizes, paired: bool) -> Batch:
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
    return Batch(
        token_ids_BT=_filled([tree.token_ids for tree in trees], sizes.tokens),
        positions_BT=_filled([tree.positions for tree in trees], sizes.tokens),
        subtree_end_BT=_filled([*ends, unused_tokens], sizes.tokens),
        query_index_BM=_filled(queries, sizes.trained),
        target_id_BM=_filled([tree.target_id for tree in trees], sizes.trained),
        sequence_index_BM=_filled(sequences, sizes.trained),
        weight_BM=_ones(num_trained, sizes.trained),
        sequence_id_BS=_filled([tree.sequence_ids for tree in trees], sizes.sequences, empty=-1),
        chosen_index_BP=_filled([np.arange(num_pairs) * 2], sizes.pairs),
        rejected_index_BP=_filled([np.arange(num_pairs) * 2 + 1], sizes.pairs),
        pair_weight_BP=_ones(num_pairs, sizes.pairs),
    )


def _filled(arrays: Sequence[np.ndarray], length: int, empty: int = 0) -> Int32[np.ndarray, " length"]:
    values = np.concatenate([np.zeros(0, np.int32), *arrays])
    return np.concatenate([values, np.full(length - len(values), empty)]).astype(np.int32)


def _ones(count: int, length: int) -> np.ndarray:
    return (np.arange(length) < count).astype(np.float32)
