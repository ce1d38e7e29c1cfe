"""Which units share a tree and which trees share a row: lengths of rows, splitting of large groups, best fit."""

from __future__ import annotations

import bisect
import dataclasses
import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from empathax.data.leveling import level_rows
from empathax.data.prefix_tree import PrefixTrie, ScoredSequence
from empathax.errors import ConfigError

ROW_MULTIPLE = 128  # T, for attention blocks
LONG_ROW, LONG_ROW_MULTIPLE = 1024, 256  # rows above this many tokens may as well allow the larger, faster blocks
CANDIDATES = 8  # row lengths tried by row_length = 0
# Row length at which attention costs a token as much as everything else; a rough mean of models.
ATTENTION_LENGTH = 4096
# A slot for a trained token, in tokens without attention: vocabulary projection and its gradient, 6 D V of 6 x
# parameters. 0.27 for SmolLM2 135M, 0.08 for Llama 3 8B; their geometric mean.
TRAINED_COST = 0.15

Unit = tuple[ScoredSequence, ...]  # (reply,) or (chosen, rejected)
Group = Sequence[Unit]


@dataclass(frozen=True)
class RowPlan:
    """Which units form a tree, and which trees a row of `length` tokens; rows of one pass stand together."""

    parts: list[Group]
    part_sizes: list[int]  # tokens a part adds to a row
    rows: list[list[int]]  # indices into parts
    pass_sizes: tuple[int, ...]  # rows of each pass
    length: int
    room: int  # tokens of a row that its parts may fill: `length` less what all of them begin with

    @property
    def work(self) -> float:
        """Tokens computed, each with its share of attention, which grows with the row, and the slots for trained
        tokens as they are once rows are levelled: what an average row needs, or the largest part."""
        trained = [num_trained(part) for part in self.parts]
        slots = max(sum(trained) / max(len(self.rows), 1), max(trained, default=0))
        return len(self.rows) * (self.length * (1 + self.length / ATTENTION_LENGTH) + TRAINED_COST * slots)

    def leveled(self) -> RowPlan:
        """The same with the trained tokens of each pass's rows evened out."""
        trained = [num_trained(part) for part in self.parts]
        starts = np.cumsum([0, *self.pass_sizes])
        rows: list[list[int]] = []
        for start, stop in itertools.pairwise(starts):
            rows += level_rows(self.rows[start:stop], self.part_sizes, trained, self.room)
        return dataclasses.replace(self, rows=rows)


def plan_rows(passes: Sequence[Sequence[Group]], share: bool, merge: bool, row_length: int, max_length: int) -> RowPlan:
    """The rows of `passes` (no group empty): of `row_length` tokens, or of a length chosen as data/packing.py says.

    No row holds groups of two passes. With `merge` the trees of a row become one, where what all data begin with (BOS,
    the system text) is laid out once.

    Raises:
        ConfigError: a unit is larger than `row_length`.
    """
    groups = [group for groups in passes for group in groups]
    sizes = [num_tokens(group, share) for group in groups]
    common = _common_prefix_length(groups) if merge else 0
    if row_length:
        _check_units(groups, sizes, row_length, share)
        lengths = [round_up(row_length, ROW_MULTIPLE)]
    else:
        lengths = _candidate_lengths(groups, sizes, max_length, share)
    plans = (_plan(passes, sizes, length, share, common) for length in lengths)
    return min(plans, key=lambda plan: plan.work).leveled()


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


def num_tokens(group: Group, share: bool) -> int:
    """Tokens of a group's tree."""
    trie = PrefixTrie(share)
    for unit in group:
        _insert(trie, unit)
    return trie.num_tokens


def num_trained(group: Group) -> int:
    """Reply tokens of a group."""
    return sum(len(sequence.reply_ids) for unit in group for sequence in unit)


def round_up(n: int, multiple: int) -> int:
    """The smallest positive multiple that is at least n."""
    return max(-(-n // multiple), 1) * multiple


def _plan(passes: Sequence[Sequence[Group]], sizes: Sequence[int], length: int, share: bool, common: int) -> RowPlan:
    """Splits what is larger than a row and fills the rows of each pass best-fit. `sizes` are the groups' over all
    passes; the first `common` tokens of every group are laid out once a row."""
    parts: list[Group] = []
    part_sizes: list[int] = []
    rows: list[list[int]] = []
    pass_sizes: list[int] = []
    rest = iter(sizes)
    for groups in passes:
        cut, cut_sizes = _cut(groups, [next(rest) for _ in groups], length, share)
        own_sizes = [size - common for size in cut_sizes]
        filled = best_fit(own_sizes, length - common)
        rows += [[len(parts) + item for item in row] for row in filled]
        parts += cut
        part_sizes += own_sizes
        pass_sizes.append(len(filled))
    return RowPlan(parts, part_sizes, rows, tuple(pass_sizes), length, length - common)


def _cut(groups: Sequence[Group], sizes: Sequence[int], length: int, share: bool) -> tuple[list[Group], list[int]]:
    """Groups with those larger than a row in parts, and the tokens of each."""
    parts: list[Group] = []
    part_sizes: list[int] = []
    for group, size in zip(groups, sizes, strict=True):
        split = [group] if size <= length else split_group(group, length, share)
        parts += split
        part_sizes += [size] if len(split) == 1 else [num_tokens(part, share) for part in split]
    return parts, part_sizes


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
    lowest = round_up(least if max_length else largest_tree, ROW_MULTIPLE)
    if lowest > LONG_ROW:
        lowest = round_up(lowest, LONG_ROW_MULTIPLE)
    lengths = list(range(lowest, 2 * lowest + 1, LONG_ROW_MULTIPLE if lowest > LONG_ROW else ROW_MULTIPLE))
    step = -(-len(lengths) // CANDIDATES)
    return lengths[::step]


def _largest_unit(groups: Sequence[Group], sizes: Sequence[int], above: int, share: bool) -> int:
    """Tokens of the largest unit, where groups up to `above` need not be looked into."""
    large = [group for group, size in zip(groups, sizes, strict=True) if size > above]
    return max((num_tokens([unit], share) for group in large for unit in group), default=1)


def _check_units(groups: Sequence[Group], sizes: Sequence[int], row_length: int, share: bool) -> None:
    length = round_up(row_length, ROW_MULTIPLE)
    largest_unit = _largest_unit(groups, sizes, length, share)
    if largest_unit > length:
        kind = "pair of replies" if len(groups[0][0]) == 2 else "reply with its prompt"
        raise ConfigError(
            f"data.row_length = {row_length}: the largest {kind} takes {largest_unit} tokens and must lie in one row; "
            f"set data.row_length to {round_up(largest_unit, ROW_MULTIPLE)} or more (0 = automatic), or lower "
            "data.max_length"
        )


def _insert(trie: PrefixTrie, unit: Unit) -> None:
    for sequence in unit:
        trie.insert(sequence.token_ids())
