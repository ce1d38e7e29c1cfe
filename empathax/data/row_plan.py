"""Planning of packed rows: which units share a tree, which trees share a row, and how long rows are.

`plan_rows` cuts groups that are larger than a row, fills rows best-fit and levels them. All rows of a data set have as
many slots for trained tokens as the fullest row needs (M), so every trained token that leaves the fullest rows saves a
slot in all of them. Levelling exchanges trees between rows of one pass where both keep within their length: no row is
added and no prefix repeated.
"""

from __future__ import annotations

import bisect
import dataclasses
import heapq
import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int

from empathax.data.prefix_tree import PrefixTrie, ScoredSequence, common_length
from empathax.errors import ConfigError

ROW_MULTIPLE = 128  # T, for attention blocks
ANY_ROW = 1 << 16  # tokens of a row that is made as long as asked for
LONG_ROW, LONG_ROW_MULTIPLE = 1024, 256  # rows above this many tokens may as well allow the larger, faster blocks
CANDIDATES = 8  # row lengths tried by row_length = 0
# Row length at which attention costs a token as much as everything else; a rough mean of models.
ATTENTION_LENGTH = 4096
# A slot for a trained token, in tokens without attention: vocabulary projection and its gradient, 6 D V of 6 x
# parameters. 0.27 for SmolLM2 135M, 0.08 for Llama 3 8B; their geometric mean.
TRAINED_COST = 0.15
PARTNERS = 128  # rows tried in exchange with a full one: those with the fewest trained tokens
MAX_VISITS = 20_000  # bounds the time on data of very many rows

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
        """Cost of a step over all rows, in tokens: each token with its share of attention, which grows with the row,
        and the trained slots of levelled rows, which are what an average row needs, or the largest part."""
        trained = [num_trained(part) for part in self.parts]
        slots = max(sum(trained) / max(len(self.rows), 1), max(trained, default=0))
        return len(self.rows) * (self.length * (1 + self.length / ATTENTION_LENGTH) + TRAINED_COST * slots)

    def leveled(self) -> RowPlan:
        """The same plan with the rows of each pass levelled."""
        trained = [num_trained(part) for part in self.parts]
        starts = np.cumsum([0, *self.pass_sizes])
        rows: list[list[int]] = []
        for start, stop in itertools.pairwise(starts):
            rows += level_rows(self.rows[start:stop], self.part_sizes, trained, self.room)
        return dataclasses.replace(self, rows=rows)


def plan_rows(passes: Sequence[Sequence[Group]], share: bool, merge: bool, row_length: int, max_length: int) -> RowPlan:
    """The rows of `passes` (no group empty): of `row_length` tokens, or of a length chosen as `pack` says.

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
        if row_length > ANY_ROW:  # longer than all data together, a row holds nothing more
            row_length = min(row_length, round_up(max(ANY_ROW, sum(sizes)), LONG_ROW_MULTIPLE))
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
    """Cuts groups larger than a row and fills the rows of each pass best-fit.

    `sizes` are the tokens of all groups; the first `common` tokens of every group are laid out once a row.
    """
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
    """Groups, those larger than a row in parts, and the tokens of each."""
    parts: list[Group] = []
    part_sizes: list[int] = []
    for group, size in zip(groups, sizes, strict=True):
        split = [group] if size <= length else split_group(group, length, share)
        parts += split
        part_sizes += [size] if len(split) == 1 else [num_tokens(part, share) for part in split]
    return parts, part_sizes


def _common_prefix_length(parts: Sequence[Group]) -> int:
    """Number of tokens that every prompt begins with."""
    prompts = [sequence.prompt_ids for part in parts for unit in part for sequence in unit]
    common = prompts[0] if prompts else np.zeros(0, np.int32)
    for prompt in prompts:
        common = common[: common_length(common, prompt)]
    return len(common)


def _candidate_lengths(groups: Sequence[Group], sizes: Sequence[int], max_length: int, share: bool) -> list[int]:
    """Row lengths to try: from the smallest possible one to twice that, at most CANDIDATES of them."""
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


def level_rows(
    rows: Sequence[Sequence[int]], sizes: Sequence[int], trained: Sequence[int], row_length: int
) -> list[list[int]]:
    """The same items in as many rows, with the trained tokens of the fullest rows brought down.

    The fullest row gives one item to one of the emptiest, against a smaller one or none, as long as the fuller of the
    two comes out less full than it was. A row that finds no such exchange is left.

    Args:
        rows: item indices by row, none longer than `row_length`.
        sizes: tokens of each item.
        trained: trained tokens of each item.
        row_length: tokens of a row.
    """
    levels = _Levels(rows, np.asarray(sizes, int), np.asarray(trained, int), row_length)
    waiting = [(-int(load), row) for row, load in enumerate(levels.trained)]  # heap, the fullest row first
    stuck: list[tuple[int, int]] = []  # heap of the rows that found no exchange
    heapq.heapify(waiting)
    for _ in range(MAX_VISITS):
        if not waiting:
            break
        load, row = heapq.heappop(waiting)
        if -load != levels.trained[row]:
            continue  # the row has changed since; its present load has an entry of its own
        changed = levels.relieve(row)
        for other in changed:
            heapq.heappush(waiting, (-int(levels.trained[other]), other))
        if not changed:
            heapq.heappush(stuck, (load, row))
        elif stuck:  # the fullest row of all, which sets M, may find an exchange now
            heapq.heappush(waiting, heapq.heappop(stuck))
    return levels.rows


class _Levels:
    """Rows with their loads: `tokens` and `trained`, both by row."""

    def __init__(
        self,
        rows: Sequence[Sequence[int]],
        sizes: Int[np.ndarray, " items"],
        trained: Int[np.ndarray, " items"],
        row_length: int,
    ) -> None:
        self.rows = [list(row) for row in rows]
        self.tokens = np.array([sizes[row].sum() for row in self.rows], int)
        self.trained = np.array([trained[row].sum() for row in self.rows], int)
        self._sizes = np.append(sizes, 0)  # the last item is none at all
        self._item_trained = np.append(trained, 0)
        self._row_length = row_length

    def relieve(self, row: int) -> tuple[int, ...]:
        """Makes the exchange after which the fuller of `row` and its partner is least full; the rows it changed."""
        none = len(self._sizes) - 1
        partners = [int(other) for other in self._emptiest() if self.trained[other] < self.trained[row]]
        if not partners:
            return ()
        theirs = np.concatenate([[*self.rows[other], none] for other in partners]).astype(int)
        owners = np.repeat(partners, [len(self.rows[other]) + 1 for other in partners])
        mine = np.array(self.rows[row])
        # [mine, theirs]: what `row` loses and the partner gains
        tokens = self._sizes[mine][:, None] - self._sizes[theirs]
        trained = self._item_trained[mine][:, None] - self._item_trained[theirs]
        fits = (self.tokens[row] - tokens <= self._row_length) & (self.tokens[owners] + tokens <= self._row_length)
        fuller = np.maximum(self.trained[row] - trained, self.trained[owners] + trained)
        fuller = np.where(fits, fuller, self.trained[row])
        best_mine, best_theirs = np.unravel_index(int(fuller.argmin()), fuller.shape)
        if fuller[best_mine, best_theirs] >= self.trained[row]:
            return ()
        partner = int(owners[best_theirs])
        self._move(int(mine[best_mine]), row, partner)
        if theirs[best_theirs] != none:
            self._move(int(theirs[best_theirs]), partner, row)
        return row, partner

    def _emptiest(self) -> Int[np.ndarray, " rows"]:
        count = min(PARTNERS, len(self.trained))
        return np.sort(np.argpartition(self.trained, count - 1)[:count])

    def _move(self, item: int, source: int, target: int) -> None:
        self.rows[source].remove(item)
        self.rows[target].append(item)
        for loads, item_loads in ((self.tokens, self._sizes), (self.trained, self._item_trained)):
            loads[source] -= item_loads[item]
            loads[target] += item_loads[item]
