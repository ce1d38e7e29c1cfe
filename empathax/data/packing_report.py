"""What a packing costs and saves, in figures."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from empathax.data.packing import PackedRows
from empathax.data.prefix_tree import Tree
from empathax.data.row_plan import Group


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
