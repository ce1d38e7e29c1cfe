"""Devices of hardware that is not there, and the environment of the process that compiles for it."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Mapping, Sequence
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

from empathax.errors import ConfigError
from empathax.hardware import Kind, Topology, smaller_to_larger
from empathax.planning.gpu_specs import target_config

TPU_INSTALL = "pip install -e '.[plan]', or 'jax[tpu]'"
GPU_INSTALL = (
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
        _require("libtpu", TPU_INSTALL)
        environment["TPU_SKIP_MDS_QUERY"] = "1"
        environment["ALLOW_MULTIPLE_LIBTPU_LOAD"] = "1"  # beside others that compile, or a run: no chip is touched
    elif kind.platform == "cuda":
        _require("jax_plugins.xla_cuda12", GPU_INSTALL)
        places = _require("nvidia.cuda_nvcc", GPU_INSTALL).submodule_search_locations
        nvcc = Path(next(iter(places or [])))
        environment["PATH"] = f"{nvcc / 'bin'}{os.pathsep}{environment.get('PATH', '')}"  # ptxas
        # nothing can be tuned by running it; and where the device code libraries lie
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
    """The topology as the compiler's plugin wants it told."""
    kind = topology.kind
    if kind.platform == "cuda":
        description: dict[str, Any] = {"topology_name": kind.name, "target_config": target_config(kind.name)}
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
