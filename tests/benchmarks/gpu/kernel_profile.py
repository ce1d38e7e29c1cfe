"""Where the device's time goes: seconds by kernel of a traced run."""

from __future__ import annotations

import tempfile
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import jax


def kernel_seconds(run: Callable[[], None]) -> list[tuple[str, float, int]]:
    """(kernel, seconds, launches) of everything that `run` makes the device do, longest first; none on CPU."""
    with tempfile.TemporaryDirectory(prefix="trace-") as folder:
        with jax.profiler.trace(folder):
            run()
        return _read(next(Path(folder).rglob("*.xplane.pb")))


def _read(trace: Path) -> list[tuple[str, float, int]]:
    totals: dict[str, list[float]] = defaultdict(lambda: [0.0, 0])
    for plane in jax.profiler.ProfileData.from_file(str(trace)).planes:
        if not plane.name.startswith("/device:GPU"):
            continue
        for line in plane.lines:
            if not line.name.startswith("Stream"):
                continue
            for event in line.events:
                totals[event.name][0] += event.duration_ns / 1e9
                totals[event.name][1] += 1
    return sorted(((name, seconds, int(count)) for name, (seconds, count) in totals.items()), key=lambda row: -row[1])
