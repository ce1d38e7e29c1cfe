"""The largest batch that fits on a topology, and the smallest topology of a kind that a config fits on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from jax.sharding import AbstractMesh

from empathax.config.hardware import Topology
from empathax.config.mesh import AXES, parse_rules
from empathax.errors import ConfigError
from empathax.models.transformer import abstract_params, logical_axes
from empathax.parallel.mesh import mesh_shape
from empathax.parallel.rules import param_shardings
from empathax.planning.compile import Subject
from empathax.planning.rows import check_enough_rows

MAX_COMPILES = 10
Plan = dict[str, Any]
Try = Callable[[Subject, Topology], Plan]  # compiles the train step


@dataclass(frozen=True)
class LargestRows:
    """What was found: the largest rows_per_batch that fits, 0 if none does. `is_certain`: whether the next larger one
    does not fit, or the data have no more for a step; else the search ended before."""

    rows: int
    is_certain: bool


def largest_rows(subject: Subject, topology: Topology, attempt: Try) -> tuple[LargestRows, list[Plan]]:
    """The largest rows_per_batch that fits, and the plans that were made to find it.

    Doubles or halves from the config's value, then narrows down in multiples of what the mesh asks for, guessing that
    memory grows evenly with rows: the answer is right if more rows never take less. Stops at what the data have for one
    step, where that is known, and after MAX_COMPILES plans. Raises a DataError if the data do not fill the smallest.
    """
    data, fsdp, _ = mesh_shape(subject.config.mesh, topology.num_devices)
    options = subject.config.stage(subject.stage)
    unit = data * fsdp
    check_enough_rows(subject.with_rows_per_batch(unit).config, subject.stage, subject.rows)
    limit = subject.rows.num_rows // options.accumulation_steps // unit or MAX_COMPILES * 10**6
    plans: dict[int, Plan] = {}

    def fits(units: int) -> bool:
        plans[units] = attempt(subject.with_rows_per_batch(units * unit), topology)
        return plans[units]["fits"]

    low, high = _bracket(fits, min(max(1, options.rows_per_batch // unit), limit), limit)
    while high - low > 1 and len(plans) < MAX_COMPILES:
        guess = _guess(low, high, plans)
        low, high = (guess, high) if fits(guess) else (low, guess)
    is_certain = high - low == 1 and (high in plans or low == limit)
    return LargestRows(low * unit, is_certain), list(plans.values())


def smallest_topology(
    subject: Subject, candidates: Sequence[Topology], attempt: Try
) -> tuple[Topology | None, list[Plan]]:
    """The first of `candidates`, small to large, that fits; None if none does; and the plans made on the way.

    Bisects, so it is right if more devices never need more memory each. Topologies that the mesh, the model or the rows
    do not divide over are left out.
    """
    usable = [topology for topology in candidates if _divides(subject, topology)]
    if not usable:
        rows = subject.config.stage(subject.stage).rows_per_batch
        raise ConfigError(
            f"{subject.stage}.rows_per_batch = {rows}, or the model, divides over no topology of this kind: name one "
            "to hear why"
        )
    plans: list[Plan] = []
    low, high = -1, len(usable)
    while high - low > 1 and len(plans) < MAX_COMPILES:
        middle = (low + high) // 2
        plans.append(attempt(subject, usable[middle]))
        low, high = (low, middle) if plans[-1]["fits"] else (middle, high)
    return (usable[high] if high < len(usable) else None), plans


def _bracket(fits: Callable[[int], bool], start: int, limit: int) -> tuple[int, int]:
    """(units that fit, units that do not), a factor of two apart, or at the ends 0 and limit + 1."""
    if not fits(start):
        low, high = start // 2, start
        while low and not fits(low):
            low, high = low // 2, low
        return low, high
    low = start
    for _ in range(MAX_COMPILES - 1):
        if low == limit:
            break
        high = min(2 * low, limit)
        if not fits(high):
            return low, high
        low = high
    return low, low + 1


def _guess(low: int, high: int, plans: dict[int, Plan]) -> int:
    """Units between `low`, which fit, and `high`, which do not: where a line through both meets the memory there is."""
    if low not in plans:
        return (low + high) // 2
    below, above = (plans[units]["bytes_per_device"]["total"] for units in (low, high))
    share = (plans[low]["hbm_bytes"] - below) / max(above - below, 1)
    return min(max(low + int(share * (high - low)), low + 1), high - 1)


def _divides(subject: Subject, topology: Topology) -> bool:
    try:
        data, fsdp, tensor = mesh_shape(subject.config.mesh, topology.num_devices)
        model, mesh = subject.model.config, AbstractMesh((data, fsdp, tensor), AXES)
        param_shardings(mesh, abstract_params(model), logical_axes(model), parse_rules(subject.config.mesh.rules))
    except ConfigError:
        return False
    options, shards = subject.config.stage(subject.stage), data * fsdp
    return options.rows_per_batch % shards == 0 and subject.config.eval.rows_per_batch % shards == 0
