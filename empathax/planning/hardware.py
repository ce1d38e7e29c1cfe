"""What a device has: memory that XLA may use, arithmetic, bandwidths; and how topologies are written."""

from __future__ import annotations

import math
from dataclasses import dataclass

from empathax.errors import ConfigError

GIB = 2**30
GPU_MEMORY_FRACTION = 0.9  # of a GPU's memory that XLA gets: XLA_PYTHON_CLIENT_MEM_FRACTION of launch/flags_gpu.sh
NIC_BYTES = 50e9  # per second and GPU between nodes: one 400 Gbit/s card a GPU, as DGX H100 has


@dataclass(frozen=True)
class Hardware:
    """One kind of device. Bandwidths are bytes per second of one device; a link's in one direction, all links added."""

    kind: str
    platform: str  # tpu, cuda or cpu
    hbm_bytes: int  # that XLA may use
    peak_flops: float  # bfloat16, dense; 0 = not known
    memory_bandwidth: float
    link_bandwidth: float
    shapes: tuple[str, ...] = ()  # topologies from small to large, for a search
    devices_per_chip: int = 1


_FLAT = ("2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")  # v5e and v6e, as Google offers them
_CUBES = ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8")
_NODES = ("1", "2", "4", "8", "2x8", "4x8", "8x8")

# TPU memory: what libtpu 0.0.42 says it has ("exceeds available HBM (15.75G)") when a program asks for too much. The
# rest: Google's pages docs.cloud.google.com/tpu/docs/{v4,v5e,v5p,v6e,tpu7x}; "bidirectional" link bandwidth halved.
# A chip of v4 or tpu7x is two devices here, each with half of it. GPU memory: device_memory_size of the specs in
# openxla/xla, xla/backends/gpu/target_config/specs (L40S: 46,068 MiB by nvidia-smi). The rest: NVIDIA's data sheets,
# bfloat16 without sparsity; NVLink's and PCIe's "bidirectional" bandwidth halved.
_KINDS = (
    Hardware("v4", "tpu", int(15.25 * GIB), 275e12 / 2, 1228e9 / 2, 300e9 / 2, _CUBES, 2),
    Hardware("v5e", "tpu", int(15.75 * GIB), 197e12, 819e9, 200e9, _FLAT),
    Hardware("v5p", "tpu", int(95.74 * GIB), 459e12, 2765e9, 600e9, _CUBES),
    Hardware("v6e", "tpu", int(31.25 * GIB), 918e12, 1638e9, 400e9, _FLAT),
    Hardware("tpu7x", "tpu", int(94.75 * GIB), 2307e12 / 2, 7380e9 / 2, 600e9 / 2, _CUBES, 2),
    Hardware("h100", "cuda", int(84_942_979_072 * GPU_MEMORY_FRACTION), 989e12, 3352e9, 450e9, _NODES),
    Hardware("h200", "cuda", int(151_397_597_184 * GPU_MEMORY_FRACTION), 989e12, 4800e9, 450e9, _NODES),
    Hardware("a100", "cuda", int(85_100_068_864 * GPU_MEMORY_FRACTION), 312e12, 2039e9, 300e9, _NODES),
    Hardware("l40s", "cuda", int(46_068 * 2**20 * GPU_MEMORY_FRACTION), 362e12, 864e9, 32e9, _NODES),
    Hardware("cpu", "cpu", 0, 0.0, 0.0, 0.0, ("1", "2", "4", "8")),  # memory: this machine's, shared by its devices
)
HARDWARE = {hardware.kind: hardware for hardware in _KINDS}
_NUM_DIMS = {"v4": (3,), "v5e": (2,), "v5p": (3,), "v6e": (2,), "tpu7x": (3,), "cpu": (1,)}
_EXAMPLES = "v5e:4x4, v5p:2x2x2, h100:8, h100:2x8 (nodes x GPUs) or cpu:8"


@dataclass(frozen=True)
class Topology:
    """Devices of one kind in a shape."""

    hardware: Hardware
    shape: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.hardware.kind}:{'x'.join(map(str, self.shape))}"

    @property
    def num_devices(self) -> int:
        """Devices as jax counts them."""
        return math.prod(self.shape) * self.hardware.devices_per_chip

    @property
    def link_bandwidth(self) -> float:
        """Bytes per second that a device sends: on its slowest link where a step crosses nodes."""
        crosses = self.hardware.platform == "cuda" and len(self.shape) == 2 and self.shape[0] > 1
        return min(self.hardware.link_bandwidth, NIC_BYTES) if crosses else self.hardware.link_bandwidth


def parse_topology(text: str) -> Topology:
    """ "v5e:4x4" as a Topology; raises ConfigError for a kind or shape that does not exist."""
    kind, _, shape_text = text.partition(":")
    hardware = parse_kind(kind)
    sizes = shape_text.split("x")
    num_dims = _NUM_DIMS.get(kind, (1, 2))
    is_shape = all(size.isdigit() and int(size) > 0 for size in sizes)
    if not is_shape or len(sizes) not in num_dims:
        numbers = " or ".join(map(str, num_dims))
        raise ConfigError(f"--topology={text}: expected a shape of {numbers} numbers after {kind}:, e.g. {_EXAMPLES}")
    return Topology(hardware, tuple(map(int, sizes)))


def parse_kind(kind: str) -> Hardware:
    """The hardware called `kind`."""
    if kind not in HARDWARE:
        known = ", ".join(HARDWARE)
        raise ConfigError(f"--topology: {kind!r} is no known hardware; expected {_EXAMPLES}; kinds: {known}")
    return HARDWARE[kind]


def smaller_to_larger(kind: str) -> list[Topology]:
    """The topologies that a search goes through."""
    return [parse_topology(f"{kind}:{shape}") for shape in parse_kind(kind).shapes]
