"""Hardware by name: "v5e:4x4" is a TPU slice, "2xv5e:4x4" two of them, "h100:8" a node of GPUs, "h100:2x8" two.

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
    """What a name looks like, and the devices of the largest TPU slice or GPU node."""

    num_dims: tuple[int, ...]
    max_devices: int
    examples: tuple[str, str]  # one slice or node, and two

    @property
    def is_tpu(self) -> bool:
        """Whether devices come in slices, whose shape says nothing of nodes."""
        return 1 not in self.num_dims


KINDS = {
    "v5e": Kind((2,), 256, ("v5e:4x4", "2xv5e:4x4")),
    "v5p": Kind((3,), 8960, ("v5p:2x2x4", "2xv5p:2x2x4")),
    "v6e": Kind((2,), 256, ("v6e:4x4", "2xv6e:4x4")),
    "a100": Kind((1, 2), 16, ("a100:8", "a100:2x8")),
    "h100": Kind((1, 2), 8, ("h100:8", "h100:2x8")),
    "h200": Kind((1, 2), 8, ("h200:8", "h200:2x8")),
    "l40s": Kind((1, 2), 8, ("l40s:8", "l40s:2x8")),
    "cpu": Kind((1, 2), 1024, ("cpu:8", "cpu:2x4")),
}
_NAME = re.compile(r"(?:(?P<slices>\d+)x)?(?P<kind>[a-z]\w*)(?::(?P<shape>\d+(?:x\d+)*))?")


@dataclass(frozen=True)
class Hardware:
    """`num_slices` TPU slices, or nodes of GPUs, of `slice_size` devices each: fast links inside, a slow network
    between."""

    kind: str
    slice_size: int
    num_slices: int = 1

    @property
    def num_devices(self) -> int:
        """All of them."""
        return self.num_slices * self.slice_size


def parse_hardware(name: str) -> Hardware:
    """The hardware called `name`; raises ConfigError that says what a name looks like, or which one was meant."""
    found = _NAME.fullmatch(name.strip().lower())
    kind_name = found["kind"] if found else re.split(r"[:\-\s]", name.strip().lower())[0]
    if kind_name not in KINDS:
        close = difflib.get_close_matches(kind_name, KINDS, n=1)
        hint = f"did you mean {KINDS[close[0]].examples[0]!r}?" if close else f"known: {', '.join(KINDS)}"
        raise ConfigError(f"hardware {name!r} is not known; {hint}")
    kind = KINDS[kind_name]
    shape = [int(size) for size in found["shape"].split("x")] if found and found["shape"] else []
    prefix = found["slices"] if found else None
    one, two = kind.examples
    if len(shape) not in kind.num_dims or 0 in shape or prefix == "0" or (prefix and not kind.is_tpu):
        raise ConfigError(
            f"hardware {name!r}: {kind_name} is written like {one!r}, or like {two!r} for two "
            f"{'slices' if kind.is_tpu else 'nodes'}"
        )
    nodes = int(prefix or 1) if kind.is_tpu else math.prod(shape[:-1])
    hardware = Hardware(kind_name, math.prod(shape) if kind.is_tpu else shape[-1], nodes)
    if hardware.slice_size > kind.max_devices:
        raise ConfigError(
            f"hardware {name!r}: {kind_name} has at most {kind.max_devices} devices side by side; more are several "
            f"{'slices' if kind.is_tpu else 'nodes'}, such as {two!r}"
        )
    return hardware
