"""Training batches of groups chosen by hand: which pairs a step takes is given, and every step has one shape."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax
import numpy as np

from empathax.data.batch import Batch
from empathax.data.packing import PackedRows, RowSizes, pack
from empathax.data.prefix_tree import ScoredSequence
from empathax.data.row_plan import Group


def planned_steps(groups: Sequence[Group], together: int, pairs_per_step: int, seed: int) -> list[list[Group]]:
    """The groups of each step. `together` pairs of a dialogue stay neighbours: 1 shuffles all pairs, 0 whole dialogues.

    A last step that is not full is left out.
    """
    runs = [run for group in groups for run in _runs(group, together or len(group))]
    order = np.random.default_rng(seed).permutation(len(runs))
    units = [(index, unit) for index in order for unit in runs[index]]
    chunks = [units[start : start + pairs_per_step] for start in range(0, len(units), pairs_per_step)]
    return [_regrouped(chunk) for chunk in chunks if len(chunk) == pairs_per_step]


def fixed_batches(
    steps: Sequence[Sequence[Group]], packing: str, row_length: int = 0, ref_logps: np.ndarray | None = None
) -> list[Batch]:
    """One batch [A, 1, ...] for each entry of `steps`, which lists the groups it trains; rows are micro-batches.

    All batches have the largest one's shape, so that a compiled step takes them all. `ref_logps` by sequence id;
    without it the batches carry zeros.
    """
    packed = [pack(groups, packing, row_length) for groups in steps]
    sizes = RowSizes(
        *(max(getattr(rows.sizes, field.name) for rows in packed) for field in dataclasses.fields(RowSizes))
    )
    num_rows = max(map(len, packed))
    return [_batch(dataclasses.replace(rows, sizes=sizes), num_rows, ref_logps) for rows in packed]


def synthetic_dialogues(count: int, turns: int, vocab_size: int, seed: int = 0) -> list[Group]:
    """Groups of `turns` pairs about as long as ESConv's: a system text, then turns and replies of 25 to 30 tokens."""
    random = np.random.default_rng(seed)

    def tokens(length: int) -> np.ndarray:
        return random.integers(0, vocab_size, length).astype(np.int32)

    system, groups, next_id = tokens(180), [], 0
    for _ in range(count):
        history, group = system, []
        for _ in range(turns):
            prompt, chosen = np.concatenate([history, tokens(30)]), tokens(25)
            pair = [ScoredSequence(prompt, reply, next_id + n) for n, reply in enumerate((chosen, tokens(25)))]
            group.append(tuple(pair))
            next_id += 2
            history = np.concatenate([prompt, chosen])
        groups.append(group)
    return groups


def _batch(rows: PackedRows, num_rows: int, ref_logps: np.ndarray | None) -> Batch:
    laid_out = [rows[index] if index < len(rows) else rows.empty_row() for index in range(num_rows)]
    batch = jax.tree.map(lambda *arrays: np.stack(arrays)[:, None], *laid_out)
    ids = batch.sequence_id_BS
    values = np.zeros(ids.shape) if ref_logps is None else np.where(ids >= 0, ref_logps[ids], 0.0)
    return dataclasses.replace(batch, ref_logps_BS=values.astype(np.float32))


def _runs(group: Group, length: int) -> list[Group]:
    return [group[start : start + length] for start in range(0, len(group), length)]


def _regrouped(chunk: Sequence[tuple[int, tuple]]) -> list[Group]:
    groups: dict[int, list] = {}
    for index, unit in chunk:
        groups.setdefault(index, []).append(unit)
    return list(groups.values())
