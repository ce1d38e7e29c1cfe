"""Batches as a pure function of (seed, step): a resumed run needs the step number and nothing else.

Grain shuffles the rows anew in each epoch; data/passes.py orders them where a step may hold at most n pairs of a
dialogue. A step's rows do not depend on how many processes read them: each takes its parts of the global batch.
"""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import grain
import jax
import numpy as np
from jaxtyping import Float32, Int

from empathax.config.arguments import MAX_COUNT
from empathax.data.batch import Batch
from empathax.data.packing import PackedRows
from empathax.data.passes import PassOrder, row_order
from empathax.errors import ConfigError, DataError

PREFETCH_THREADS = 2
PREFETCH_BATCHES = 4


class Loader:
    """Training batches [A, B, ...].

    A = accumulation_steps micro-batches of B = rows_per_batch * len(parts) / num_parts rows.

    Args:
        rows: packed rows; every step takes A * rows_per_batch of them.
        rows_per_batch: rows of one micro-batch over all processes.
        accumulation_steps: micro-batches of one step.
        seed: order of the rows; with `shuffle=False` they come in their own order.
        parts, num_parts: which of the equal parts of each micro-batch this process reads.
        ref_logps: reference log-probability of each reply by sequence id; put into `ref_logps_BS`.

    Raises:
        DataError: fewer rows than one step takes.
        ConfigError: rows_per_batch does not divide by num_parts; a pass of data/passes.py is shorter than a step.
    """

    def __init__(
        self,
        rows: PackedRows,
        *,
        rows_per_batch: int,
        accumulation_steps: int = 1,
        seed: int = 0,
        shuffle: bool = True,
        parts: Sequence[int] = (0,),
        num_parts: int = 1,
        ref_logps: Float32[np.ndarray, " sequences"] | None = None,
    ) -> None:
        self.rows = rows
        self.rows_per_step = rows_per_batch * accumulation_steps
        if len(rows) < self.rows_per_step:
            raise DataError(
                f"the data fill {len(rows)} row(s) of {rows.sizes.tokens} tokens, but one step takes "
                f"rows_per_batch * accumulation_steps = {rows_per_batch} * {accumulation_steps}: lower these, lower "
                "data.row_length, or add data"
            )
        self._own = _rows_of(parts, num_parts, rows_per_batch, "rows_per_batch")
        self._shape = (accumulation_steps, rows_per_batch)
        self._order = {"seed": seed, "shuffle": shuffle}
        self._ref_logps = ref_logps
        self._row_ids = self._ordered(seed, shuffle).batch(self.rows_per_step, drop_remainder=True)

    @property
    def steps_per_epoch(self) -> float:
        """Steps in which every row is seen once; a step may span two epochs."""
        return len(self.rows) / self.rows_per_step

    def num_steps(self, num_epochs: float, max_steps: int = 0) -> int:
        """Steps of a stage: every row at least `num_epochs` times, or `max_steps` where that is set.

        Raises a ConfigError for epochs that come to no step, or to more than can be counted.
        """
        steps = max_steps or math.ceil(round(num_epochs * self.steps_per_epoch, 6))
        if not 1 <= steps <= MAX_COUNT:
            raise ConfigError(
                f"num_epochs = {num_epochs:g} makes {steps:.6g} steps ({self.steps_per_epoch:g} an epoch): expected "
                f"from 1 to {MAX_COUNT:,}; raise or lower num_epochs, or set max_steps"
            )
        return steps

    def row_ids(self, step: int) -> Int[np.ndarray, "A B"]:
        """The rows of step `step` over all processes."""
        return np.asarray(self._row_ids[step]).reshape(self._shape)

    def batch_at(self, step: int) -> Batch:
        """This process's part of step `step`, leading dims [A, B]; numpy arrays."""
        return self._assemble(self._row_ids[step])

    def iterate(self, start_step: int = 0, stop_step: int | None = None) -> Iterator[Batch]:
        """Batches of steps start_step, start_step + 1, ..., read ahead in the background.

        Raises:
            DataError: a row cannot be laid out; names it.
        """
        stop = min(stop_step if stop_step is not None else sys.maxsize, len(self._row_ids))
        batches = self._row_ids[start_step:stop].map(self._assemble)
        options = grain.ReadOptions(num_threads=PREFETCH_THREADS, prefetch_buffer_size=PREFETCH_BATCHES)
        iterator = iter(batches.to_iter_dataset(options))
        try:
            yield from iterator
        finally:
            iterator.close()

    def fingerprint(self) -> dict[str, str]:
        """What the rows of a step depend on, by name; two loaders with equal values give equal batches."""
        parts = {**self._order, "rows_per_step": self.rows_per_step, "rows": self.rows.fingerprint()}
        return {name: str(value) for name, value in parts.items()}

    def _ordered(self, seed: int, shuffle: bool) -> grain.MapDataset:
        """Row ids, epoch after epoch."""
        rows = self.rows
        if not rows.max_units:
            return row_order(0, len(rows), seed, shuffle)
        shortest = min(rows.pass_sizes)
        if shortest < self.rows_per_step:
            raise ConfigError(
                f"data.max_pairs_per_dialogue = {rows.max_units} deals the data into {len(rows.pass_sizes)} passes, "
                f"the shortest of {shortest} row(s) of {rows.sizes.tokens} tokens, but one step takes "
                f"{self.rows_per_step} and would mix passes: raise data.max_pairs_per_dialogue, or lower "
                "rows_per_batch, accumulation_steps or data.row_length"
            )
        order = PassOrder(
            rows.pass_sizes,
            rows.dialogues,
            rows.max_units,
            rows_per_step=self.rows_per_step,
            seed=seed,
            shuffle=shuffle,
        )
        return grain.MapDataset.source(order)

    def _assemble(self, row_ids: Int[np.ndarray, " AB"]) -> Batch:
        local_ids = np.asarray(row_ids).reshape(self._shape)[:, self._own]
        flat = _stack([_read(self.rows, int(row), self._ref_logps) for row in local_ids.ravel()])
        return jax.tree.map(lambda array: array.reshape(*local_ids.shape, *array.shape[1:]), flat)


def eval_batches(
    rows: PackedRows,
    rows_per_batch: int,
    *,
    parts: Sequence[int] = (0,),
    num_parts: int = 1,
    ref_logps: Float32[np.ndarray, " sequences"] | None = None,
) -> Iterator[Batch]:
    """One pass over `rows` in their own order, leading dim [B]; the last batch is filled up with empty rows.

    `parts` of `num_parts` are read, as by Loader.
    """
    if rows_per_batch % num_parts == 0:  # a batch is no larger than all rows, in equal parts
        rows_per_batch = min(rows_per_batch, max(1, -(-len(rows) // num_parts)) * num_parts)
    own = _rows_of(parts, num_parts, rows_per_batch, "eval.rows_per_batch")
    for start in range(0, len(rows), rows_per_batch):
        yield _stack([_read(rows, start + int(row), ref_logps) for row in own])


def _rows_of(parts: Sequence[int], num_parts: int, rows_per_batch: int, name: str) -> Int[np.ndarray, " B"]:
    """The places of a batch's rows that lie in `parts`."""
    if rows_per_batch % num_parts:
        raise ConfigError(f"{name} = {rows_per_batch} does not divide by {num_parts}: processes read equal parts of it")
    return np.arange(rows_per_batch).reshape(num_parts, -1)[list(parts)].ravel()


def _read(rows: PackedRows, row: int, ref_logps: np.ndarray | None) -> Batch:
    """One row, an empty one past the end, with its reference log-probs."""
    try:
        batch = rows[row] if row < len(rows) else rows.empty_row()
        if ref_logps is None:
            return batch
        ids = batch.sequence_id_BS
        filled: Any = np.where(ids >= 0, ref_logps[ids], 0.0).astype(np.float32)
        return dataclasses.replace(batch, ref_logps_BS=filled)
    except Exception as error:
        raise DataError(f"row {row} of the packed data cannot be read: {type(error).__name__}: {error}") from error


def _stack(rows: Sequence[Batch]) -> Batch:
    return jax.tree.map(lambda *arrays: np.stack(arrays), *rows)
