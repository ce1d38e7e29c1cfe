"""At most n units of one dialogue in a training step (data.max_pairs_per_dialogue).

A dialogue of k units is dealt into ceil(k / n) runs of neighbours, which share the most, and the runs go to different
passes. Rows are packed pass by pass and an epoch takes the passes in turn, so that two runs of a dialogue can meet only
in the step between two passes; there the order steps around them.
"""

from __future__ import annotations

import itertools
import threading
from collections import Counter, deque
from collections.abc import Sequence
from typing import SupportsIndex

import grain

from empathax.data.row_plan import Group


def deal(groups: Sequence[Group], max_units: int) -> list[list[Group]]:
    """The passes: each holds at most `max_units` units of a group (0 = all, in one pass), every unit is in one.

    Groups take turns in where they begin: passes are of about one size, and hold early and late units alike.
    """
    whole = [group for group in groups if group]
    if not max_units:
        return [whole]
    num_passes = max((_num_parts(group, max_units) for group in whole), default=1)
    passes: list[list[Group]] = [[] for _ in range(num_passes)]
    first = 0
    for group in whole:
        num_parts = _num_parts(group, max_units)
        bounds = [len(group) * part // num_parts for part in range(num_parts + 1)]
        for part, (start, stop) in enumerate(itertools.pairwise(bounds)):
            passes[(first + part * num_passes // num_parts) % num_passes].append(group[start:stop])
        first += num_parts
    return [groups for groups in passes if groups] or [[]]


class PassOrder:
    """Row ids by position in an endless run of epochs: pass after pass, each pass in an order of its own every time.

    A row that would bring more than `max_units` units of a dialogue into a step waits for the next place in its pass
    where it does not. Only a pass whose rows left all share such a dialogue with the step breaks the limit.

    Args:
        pass_sizes: rows of each pass; row ids count through them.
        dialogues: (dialogue, units) pairs of each row.
        max_units: units of a dialogue that a step may hold.
        rows_per_step: rows of a step over all processes.
        seed, shuffle: order of a pass; with shuffle=False rows come in their own order.
    """

    def __init__(
        self,
        pass_sizes: Sequence[int],
        dialogues: Sequence[Sequence[tuple[int, int]]],
        max_units: int,
        *,
        rows_per_step: int,
        seed: int,
        shuffle: bool,
    ) -> None:
        self._sizes, self._dialogues, self._max_units = pass_sizes, dialogues, max_units
        self._rows_per_step = rows_per_step
        self._passes = []
        start = 0
        for number, size in enumerate(pass_sizes):
            self._passes.append(row_order(start, size, seed + number, shuffle))
            start += size
        self._num_rows = start
        self._epochs: list[list[int]] = []  # each goes on from the one before, whose last step it may complete
        self._step: Counter[int] = Counter()  # units by dialogue in the step that is being filled
        self._lock = threading.Lock()  # Grain reads in several threads

    def __len__(self) -> int:
        return 2**62 // self._num_rows * self._num_rows

    def __getitem__(self, position: SupportsIndex) -> int:
        """The row at `position`."""
        epoch, place = divmod(int(position), self._num_rows)
        with self._lock:
            while len(self._epochs) <= epoch:
                self._epochs.append(self._next_epoch())
        return self._epochs[epoch][place]

    def _next_epoch(self) -> list[int]:
        epoch = len(self._epochs)
        order: list[int] = []
        for size, rows in zip(self._sizes, self._passes, strict=True):
            waiting = deque(int(rows[epoch * size + place]) for place in range(size))
            while waiting:
                if (epoch * self._num_rows + len(order)) % self._rows_per_step == 0:
                    self._step.clear()
                place = next((i for i, row in enumerate(waiting) if self._fits(row)), 0)
                order.append(waiting[place])
                self._step.update(dict(self._dialogues[waiting[place]]))
                del waiting[place]
        return order

    def _fits(self, row: int) -> bool:
        return all(self._step[dialogue] + units <= self._max_units for dialogue, units in self._dialogues[row])


def row_order(start: int, size: int, seed: int, shuffle: bool) -> grain.MapDataset:
    """Rows start, ..., start + size - 1 over and over, in a new order in each epoch if shuffled."""
    order = grain.MapDataset.range(start, start + size).seed(seed % 2**32)
    order = order.shuffle() if shuffle else order
    return order.repeat(None, reseed_each_epoch=True)


def _num_parts(group: Group, max_units: int) -> int:
    return -(-len(group) // max_units)
