"""Devices of hardware that is not there, to compile for, and the environment of the process that does it."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

from empathax.config.hardware import Kind, Topology, smaller_to_larger
from empathax.errors import ConfigError

_TPU_INSTALL = "pip install -e '.[plan]', or 'jax[tpu]'"
_GPU_INSTALL = (
    "pip install -e '.[plan]', or 'jax[cuda12-local]' nvidia-cuda-nvcc-cu12 (the plugin without CUDA's libraries, and "
    "their assembler)"
)


def child_environment(kind: Kind, num_devices: int, base: Mapping[str, str]) -> dict[str, str]:
    """`base` as the process that compiles for at most `num_devices` needs it: this machine's own accelerators stay out.

    Compiler flags in `base` (LIBTPU_INIT_ARGS, XLA_FLAGS, as launch/flags_*.sh set them) are kept. Raises ConfigError
    that says what to install if the compiler for `kind` is missing.
    """
    environment = dict(base) | {"JAX_PLATFORMS": "cpu", "TF_CPP_MIN_LOG_LEVEL": "3"}
    environment.setdefault("HF_HUB_ETAG_TIMEOUT", "5")  # a plan needs no hub: what it would say is known here
    if kind.platform == "cpu":
        environment["JAX_NUM_CPU_DEVICES"] = str(num_devices)
    elif kind.platform == "tpu":
        _require("libtpu", _TPU_INSTALL)
        environment["TPU_SKIP_MDS_QUERY"] = "1"
        environment["ALLOW_MULTIPLE_LIBTPU_LOAD"] = "1"  # beside others that compile, or a run: no chip is touched
    elif kind.platform == "cuda":
        _require("jax_plugins.xla_cuda12", _GPU_INSTALL)
        nvcc = Path((_require("nvidia.cuda_nvcc", _GPU_INSTALL).submodule_search_locations or [])[0])
        environment["PATH"] = f"{nvcc / 'bin'}{os.pathsep}{environment.get('PATH', '')}"  # ptxas
        # nothing can be tuned by running it; and the place of the device code libraries
        ours = f"--xla_gpu_autotune_level=0 --xla_gpu_cuda_data_dir={nvcc}"
        environment["XLA_FLAGS"] = f"{environment.get('XLA_FLAGS', '')} {ours}".strip()
    return environment


def topology_devices(topology: Topology) -> Sequence[Any]:
    """The devices of `topology`, for a mesh to compile for; called in a process with `child_environment`."""
    import jax
    from jax.experimental import topologies

    kind = topology.kind
    if kind.platform == "cpu":
        return jax.devices("cpu")[: topology.num_devices]
    try:
        return topologies.get_topology_desc(platform=kind.platform, **_description(topology)).devices
    except jax.errors.JaxRuntimeError as error:
        reason = str(error).splitlines()[0].partition(": ")[2] or str(error)
        shapes = ", ".join(map(str, smaller_to_larger(kind.name)))
        raise ConfigError(
            f"--topology={topology} cannot be had from the compiler ({reason}); shapes that are for sale: {shapes}"
        ) from error


def _description(topology: Topology) -> dict[str, Any]:
    """The arguments by which a compiler's plugin knows the topology."""
    kind = topology.kind
    if kind.platform == "cuda":
        description: dict[str, Any] = {"topology_name": kind.name, "target_config": _target_config(kind.name)}
        return description | {"topology": f"1x{topology.num_slices}x{topology.slice_size}"}
    description = {"topology_name": topology.slice_name, "num_slices": topology.num_slices}
    if kind.name == "v4":
        description["chip_config_name"] = "megacore"  # a chip is one device, as jobs on v4 see it
    if topology.num_devices == 1:
        description["chips_per_host_bounds"] = (1, 1, 1)  # a slice smaller than a host's four chips has to say so
    return description


def _require(module: str, install: str) -> ModuleSpec:
    try:
        spec = importlib.util.find_spec(module)
    except ModuleNotFoundError:
        spec = None
    if spec is None:
        raise ConfigError(f"{module} is not installed, and compiling for this hardware needs it: {install}")
    return spec


@dataclass(frozen=True)
class _Gpu:
    """A GPU's properties. Sources: openxla/xla, xla/backends/gpu/target_config/specs; of the L40S CUDA's device
    properties and NVIDIA's data sheet."""

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


_H100 = _Gpu(
    name="NVIDIA H100 80GB HBM3",
    capability=(9, 0),
    cores=132,
    fpus_per_core=128,
    threads_per_core=2048,
    shared_per_core=233472,
    shared_per_block_optin=232448,
    l2_bytes=52428800,
    clock_ghz=1.98,
    memory_bytes=84942979072,
    memory_bandwidth=3352320000000,
)
_GPUS = {
    "h100": _H100,
    "h200": replace(_H100, name="NVIDIA H200 141GB HBM3e", memory_bytes=151397597184, memory_bandwidth=4800000000000),
    "a100": _Gpu(
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
    "l40s": _Gpu(
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


def _target_config(kind: str) -> str:
    """A GPU as XLA describes it to itself (stream_executor.GpuTargetConfigProto, as text)."""
    gpu = _GPUS[kind]
    major, minor = gpu.capability
    return f"""
gpu_device_info {{
  threads_per_block_limit: 1024  threads_per_warp: 32  threads_per_core_limit: {gpu.threads_per_core}
  shared_memory_per_block: 49152  shared_memory_per_core: {gpu.shared_per_core}
  shared_memory_per_block_optin: {gpu.shared_per_block_optin}
  registers_per_core_limit: 65536  registers_per_block_limit: 65536
  core_count: {gpu.cores}  fpus_per_core: {gpu.fpus_per_core}  clock_rate_ghz: {gpu.clock_ghz}
  block_dim_limit_x: 2147483647  block_dim_limit_y: 65535  block_dim_limit_z: 65535
  memory_bandwidth: {gpu.memory_bandwidth}  l2_cache_size: {gpu.l2_bytes}  device_memory_size: {gpu.memory_bytes}
  cuda_compute_capability {{ major: {major} minor: {minor} }}
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 8 }}
device_description_str: "{gpu.name}"
"""
