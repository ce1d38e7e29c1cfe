"""Hardware by name: "v5e:4x4" is one TPU slice, "h100:8" one node of GPUs, "2xv5e:4x4" two such slices.

TPU slices are named by chips along each dimension of their network, as `jax.experimental.topologies` names them.
"""

from __future__ import annotations

import difflib
import math
import re
from dataclasses import dataclass

from empathax.errors import ConfigError


@dataclass(frozen=True)
class Kind:
    """What a name must look like: dimensions of a slice's shape, and devices of the largest slice or node."""

    num_dims: int
    max_devices: int
    example: str


KINDS = {
    "v4": Kind(3, 4096, "v4:2x2x4"),
    "v5e": Kind(2, 256, "v5e:4x4"),
    "v5p": Kind(3, 8960, "v5p:2x2x4"),
    "v6e": Kind(2, 256, "v6e:4x4"),
    "a100": Kind(1, 16, "a100:8"),
    "h100": Kind(1, 8, "h100:8"),
    "h200": Kind(1, 8, "h200:8"),
    "l40s": Kind(1, 8, "l40s:8"),
    "cpu": Kind(1, 1024, "cpu:8"),
}
_NAME = re.compile(r"(?:(?P<slices>\d+)x)?(?P<kind>[a-z]\w*)(?::(?P<shape>\d+(?:x\d+)*))?")


@dataclass(frozen=True)
class Hardware:
    """`num_slices` TPU slices, or nodes of GPUs, each of `shape` devices; fast links inside, a slower network between."""

    kind: str
    shape: tuple[int, ...]
    num_slices: int = 1

    @property
    def devices_per_slice(self) -> int:
        """Chips of a slice, GPUs of a node."""
        return math.prod(self.shape)

    @property
    def num_devices(self) -> int:
        """All of them."""
        return self.num_slices * self.devices_per_slice


def parse_hardware(name: str) -> Hardware:
    """The hardware called `name`; raises ConfigError that says what a name looks like, or which one was meant."""
    found = _NAME.fullmatch(name.strip().lower())
    kind_name = found["kind"] if found else re.split(r"[:\-\s]", name.strip().lower())[0]
    if kind_name not in KINDS:
        close = difflib.get_close_matches(kind_name, KINDS, n=1)
        hint = f"did you mean {KINDS[close[0]].example!r}?" if close else f"known: {', '.join(KINDS)}"
        raise ConfigError(f"hardware {name!r} is not known; {hint}")
    kind = KINDS[kind_name]
    shape = tuple(int(size) for size in found["shape"].split("x")) if found and found["shape"] else ()
    slices = int(found["slices"] or 1) if found else 1
    if len(shape) != kind.num_dims or 0 in (*shape, slices):
        raise ConfigError(
            f"hardware {name!r}: expected {kind_name} with {kind.num_dims} "
            f"size{'s' if kind.num_dims > 1 else ''} after a colon, such as {kind.example!r}, "
            f"or several of them, such as {'2x' + kind.example!r}"
        )
    hardware = Hardware(kind_name, shape, slices)
    if hardware.devices_per_slice > kind.max_devices:
        raise ConfigError(
            f"hardware {name!r}: {kind_name} has at most {kind.max_devices} devices side by side; more are several of "
            f"them, such as {'2x' + kind.example!r}"
        )
    return hardware
