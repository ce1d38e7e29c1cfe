"""Hardware by name, and what a device of it has: memory that XLA may use, arithmetic, bandwidths.

"v5e:4x4" is a TPU slice by the chips along each dimension of its network, as `jax.experimental.topologies` names it,
"2xv5e:4x4" two of them; "h100:8" is a node of GPUs, "h100:2x8" two. Inside a slice or node links are fast, between them
lies a slower network.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from empathax.errors import ConfigError, nearest

GIB = 2**30
GPU_MEMORY_FRACTION = 0.9  # of a GPU's memory that XLA gets: XLA_PYTHON_CLIENT_MEM_FRACTION of launch/flags_gpu.sh


@dataclass(frozen=True)
class Kind:
    """One kind of device, as jax counts them. Bandwidths are bytes per second of one device; 0 = not known.

    Attributes:
        hbm_bytes: memory that XLA may use.
        peak_flops: bfloat16, dense.
        link_bandwidth: to others of its slice or node: one direction, all links added.
        network_bandwidth: to other slices or nodes.
        max_chips: of the largest slice or node.
        shapes: slices or nodes from small to large, for a search.
    """

    name: str
    platform: str  # tpu, cuda or cpu
    hbm_bytes: int
    peak_flops: float
    memory_bandwidth: float
    link_bandwidth: float
    network_bandwidth: float
    max_chips: int
    shapes: tuple[str, ...]
    devices_per_chip: int = 1

    @property
    def is_tpu(self) -> bool:
        """Whether devices come in slices, whose shape says nothing of nodes."""
        return self.platform == "tpu"

    @property
    def num_dims(self) -> int:
        """Numbers in the shape of one slice or node."""
        return self.shapes[0].count("x") + 1

    @property
    def examples(self) -> tuple[str, str]:
        """One slice or node, and two."""
        shape = {1: "8", 2: "4x4", 3: "2x2x4"}[self.num_dims]
        return f"{self.name}:{shape}", f"2x{self.name}:{shape}" if self.is_tpu else f"{self.name}:2x{shape}"


_FLAT = ("2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")  # v5e and v6e, as Google offers them
_CUBES = ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8")
_NODES = ("1", "2", "4", "8")
_NIC = 50e9  # of each GPU: one 400 Gbit/s card a GPU, as DGX H100 has; DGX A100's have 200

# TPU memory: what libtpu 0.0.42 says it has ("exceeds available HBM (15.75G)") when a program asks for too much. The
# rest: Google's pages docs.cloud.google.com/tpu/docs/{v4,v5e,v5p,v6e,tpu7x}; "bidirectional" link bandwidth halved, the
# data center network a pod's over its chips. A chip of tpu7x is two devices, each with half of it; of v4 and v5p one
# ("megacore"). GPU memory: device_memory_size of the specs in openxla/xla, xla/backends/gpu/target_config/specs (L40S:
# 46,068 MiB by nvidia-smi). The rest: NVIDIA's data sheets, bfloat16 without sparsity; NVLink's and PCIe's
# "bidirectional" bandwidth halved.
_KINDS = (
    Kind("v4", "tpu", int(30.75 * GIB), 275e12, 1228e9, 300e9, 0.0, 4096, _CUBES),
    Kind("v5e", "tpu", int(15.75 * GIB), 197e12, 819e9, 200e9, 6.4e12 / 8 / 256, 256, _FLAT),
    Kind("v5p", "tpu", int(95.74 * GIB), 459e12, 2765e9, 600e9, 50e9 / 8, 8960, _CUBES),
    Kind("v6e", "tpu", int(31.25 * GIB), 918e12, 1638e9, 400e9, 25.6e12 / 8 / 256, 256, _FLAT),
    Kind("tpu7x", "tpu", int(94.75 * GIB), 2307e12 / 2, 7380e9 / 2, 600e9 / 2, 0.0, 9216, _CUBES, 2),
    Kind("a100", "cuda", int(85_100_068_864 * GPU_MEMORY_FRACTION), 312e12, 2039e9, 300e9, _NIC / 2, 16, _NODES),
    Kind("h100", "cuda", int(84_942_979_072 * GPU_MEMORY_FRACTION), 989e12, 3352e9, 450e9, _NIC, 8, _NODES),
    Kind("h200", "cuda", int(151_397_597_184 * GPU_MEMORY_FRACTION), 989e12, 4800e9, 450e9, _NIC, 8, _NODES),
    Kind("l40s", "cuda", int(46_068 * 2**20 * GPU_MEMORY_FRACTION), 362e12, 864e9, 32e9, _NIC, 8, _NODES),
    Kind("cpu", "cpu", 0, 0.0, 0.0, 0.0, 0.0, 1024, _NODES),  # memory: this machine's, shared by its devices
)
KINDS = {kind.name: kind for kind in _KINDS}
_NODES_TO_SEARCH = (2, 4, 8)
_NAME = re.compile(r"(?:(?P<slices>\d+)x)?(?P<kind>[a-z]\w*)(?::(?P<shape>\d+(?:x\d+)*))?")


@dataclass(frozen=True)
class Topology:
    """`num_slices` TPU slices, or nodes of GPUs, of `shape` each."""

    kind: Kind
    shape: tuple[int, ...]
    num_slices: int = 1

    def __str__(self) -> str:
        if self.num_slices == 1:
            return self.slice_name
        if self.kind.is_tpu:
            return f"{self.num_slices}x{self.slice_name}"
        return f"{self.kind.name}:{self.num_slices}x{self.slice_size}"

    @property
    def slice_name(self) -> str:
        """The name of one of its slices or nodes."""
        return f"{self.kind.name}:{'x'.join(map(str, self.shape))}"

    @property
    def slice_size(self) -> int:
        """Devices of a slice or node, as jax counts them."""
        return math.prod(self.shape) * self.kind.devices_per_chip

    @property
    def num_devices(self) -> int:
        """All of them."""
        return self.num_slices * self.slice_size


def parse_hardware(name: str) -> Topology:
    """The hardware called `name`; raises ConfigError that says what a name looks like, or which one was meant."""
    found = _NAME.fullmatch(name.strip().lower())
    kind = find_kind(found["kind"] if found else re.split(r"[:\-\s]", name.strip().lower())[0], name)
    shape = [int(size) for size in found["shape"].split("x")] if found and found["shape"] else []
    prefix = found["slices"] if found else None
    one, two = kind.examples
    things = "slices" if kind.is_tpu else "nodes"
    if not kind.is_tpu and len(shape) == 2 and not prefix:
        prefix, shape = str(shape[0]), shape[1:]
    elif not kind.is_tpu and prefix:
        shape = []
    if len(shape) != kind.num_dims or 0 in shape or (prefix and int(prefix) == 0):
        raise ConfigError(f"hardware {name!r}: {kind.name} is written like {one!r}, or like {two!r} for two {things}")
    if math.prod(shape) > kind.max_chips:
        raise ConfigError(
            f"hardware {name!r}: {kind.name} has at most {kind.max_chips} devices side by side; more are several "
            f"{things}, such as {two!r}"
        )
    return Topology(kind, tuple(shape), int(prefix or 1))


def find_kind(kind: str, name: str = "") -> Kind:
    """The kind of hardware called `kind`; raises ConfigError that says which one was meant (in `name`)."""
    if kind in KINDS:
        return KINDS[kind]
    near = nearest(kind, KINDS)
    hint = f"did you mean {KINDS[near].examples[0]!r}?" if near else f"known: {', '.join(KINDS)}"
    raise ConfigError(f"hardware {name or kind!r} is not known; {hint}")


def smaller_to_larger(kind: str) -> list[Topology]:
    """The topologies of a kind that a search goes through: slices, for GPUs also several nodes of the largest."""
    found = find_kind(kind)
    single = [parse_hardware(f"{kind}:{shape}") for shape in found.shapes]
    if found.platform != "cuda":
        return single
    return [*single, *(Topology(found, single[-1].shape, nodes) for nodes in _NODES_TO_SEARCH)]
