"""Does a model fit into what the machine has? Asked of its shapes, before anything is listed or read."""

from __future__ import annotations

import functools
import math
import os
from pathlib import Path
from typing import Any

import jax
import numpy as np

from empathax.errors import WeightsError

LEAST_BYTES = 0.5  # of a parameter in memory: 4 bits below an adapter
_MOUNT, _OWN_GROUPS = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


def check_fits(shapes: Any, source: str, bytes_a_parameter: float, sizes: dict[str, int]) -> None:
    """Raises a WeightsError if the (abstract) parameters `shapes` take more memory than all devices have together.

    `sizes` are the settings behind the shapes by their names in the model's files: the error shows them.
    """
    num_parameters = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes))
    needed, there = num_parameters * bytes_a_parameter, machine_memory()
    if needed > there:
        named = ", ".join(f"{name} = {size:,}" for name, size in sizes.items())
        raise WeightsError(
            f"{source} describes a model of {num_parameters:,} parameters, which take {needed / 2**30:,.1f} GiB (or "
            f"more), and this machine has {there / 2**30:,.1f} GiB ({named}): take a machine that can hold it, or "
            "mend the number that is wrong"
        )


def machine_memory() -> int:
    """Bytes that all devices of the job have together; where devices do not say, those of the hosts."""
    known = [(device.memory_stats() or {}).get("bytes_limit", 0) for device in jax.local_devices()]
    if all(known):
        return sum(known) // len(known) * jax.device_count()
    return host_memory() * jax.process_count()


@functools.cache
def host_memory() -> int:
    """Bytes of this host's memory, or of the part that its control group leaves to this process."""
    try:
        whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):  # not a POSIX system
        return int(np.iinfo(np.int64).max)
    return min([whole, *_group_limits()])


def _group_limits() -> list[int]:
    """Limits of this process's control groups and of those above them, of either version of Linux's."""
    try:
        lines = _OWN_GROUPS.read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            root, name = _MOUNT, "memory.max"
        elif "memory" in controllers.split(","):
            root, name = _MOUNT / "memory", "memory.limit_in_bytes"
        else:
            continue
        own = root / path.lstrip("/")
        places = (own, *own.parents[: len(own.parts) - len(root.parts)])
        found += [_limit(place / name) for place in places]
    return [limit for limit in found if limit]


def _limit(path: Path) -> int:
    """The number in a control group's file; 0 if there is none ("max")."""
    try:
        text = path.read_text(encoding="utf-8").strip()
    except OSError:
        return 0
    return int(text) if text.isdigit() else 0
