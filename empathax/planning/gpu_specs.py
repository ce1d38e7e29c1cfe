"""GPUs as XLA describes them to itself (stream_executor.GpuTargetConfigProto, as text), to compile for them from afar.

Figures: openxla/xla, xla/backends/gpu/target_config/specs; of the L40S: CUDA's device properties, NVIDIA's data sheet.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class _Spec:
    name: str
    capability: tuple[int, int]
    cores: int
    fpus_per_core: int
    threads_per_core: int
    shared_per_core: int
    shared_per_block_optin: int
    l2_bytes: int
    clock_ghz: float
    memory_bytes: int
    memory_bandwidth: int


_HOPPER = {
    "capability": (9, 0),
    "cores": 132,
    "fpus_per_core": 128,
    "threads_per_core": 2048,
    "shared_per_core": 233472,
    "shared_per_block_optin": 232448,
    "l2_bytes": 52428800,
    "clock_ghz": 1.98,
}
_SPECS = {
    "h100": _Spec(
        name="NVIDIA H100 80GB HBM3",
        memory_bytes=84942979072,
        memory_bandwidth=3352320000000,
        **_HOPPER,  # type: ignore[arg-type]
    ),
    "h200": _Spec(
        name="NVIDIA H200 141GB HBM3e",
        memory_bytes=151397597184,
        memory_bandwidth=4800000000000,
        **_HOPPER,  # type: ignore[arg-type]
    ),
    "a100": _Spec(
        name="NVIDIA A100-SXM4-80GB",
        capability=(8, 0),
        cores=108,
        fpus_per_core=64,
        threads_per_core=2048,
        shared_per_core=167936,
        shared_per_block_optin=166912,
        l2_bytes=41943040,
        clock_ghz=1.41,
        memory_bytes=85100068864,
        memory_bandwidth=2039040000000,
    ),
    "l40s": _Spec(
        name="NVIDIA L40S",
        capability=(8, 9),
        cores=142,
        fpus_per_core=128,
        threads_per_core=1536,
        shared_per_core=102400,
        shared_per_block_optin=101376,
        l2_bytes=100663296,
        clock_ghz=2.52,
        memory_bytes=48305799168,
        memory_bandwidth=864000000000,
    ),
}


def target_config(kind: str) -> str:
    """The text that `get_topology_desc(target_config=...)` takes for a GPU."""
    spec = _SPECS[kind]
    major, minor = spec.capability
    return f"""
gpu_device_info {{
  threads_per_block_limit: 1024  threads_per_warp: 32  threads_per_core_limit: {spec.threads_per_core}
  shared_memory_per_block: 49152  shared_memory_per_core: {spec.shared_per_core}
  shared_memory_per_block_optin: {spec.shared_per_block_optin}
  registers_per_core_limit: 65536  registers_per_block_limit: 65536
  core_count: {spec.cores}  fpus_per_core: {spec.fpus_per_core}  clock_rate_ghz: {spec.clock_ghz}
  block_dim_limit_x: 2147483647  block_dim_limit_y: 65535  block_dim_limit_z: 65535
  memory_bandwidth: {spec.memory_bandwidth}  l2_cache_size: {spec.l2_bytes}  device_memory_size: {spec.memory_bytes}
  cuda_compute_capability {{ major: {major} minor: {minor} }}
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 8 }}
device_description_str: "{spec.name}"
"""
