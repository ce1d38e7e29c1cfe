"""Evens out the trained tokens of rows that are filled already, by exchanging items between them.

All rows of a data set have as many slots for trained tokens as the fullest one needs (M), so every trained token that
leaves the fullest rows saves a slot in all of them. Items change places only where both rows keep within their length:
no row is added and no prefix repeated.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

PARTNERS = 128  # rows tried in exchange with a full one: those with the fewest trained tokens
MAX_VISITS = 20_000  # bounds the time on data of very many rows


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
            continue  # it has changed since, and stands in the heap with what it holds now
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
