"""The hardware mesh: devices along the axes data, fsdp and tensor, and the dtype they compute in."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh

from empathax.config import MeshOptions, ModelOptions
from empathax.config.mesh import AXES, preset_sizes
from empathax.errors import ConfigError

Shape = tuple[int, int, int]  # sizes of AXES


def mesh_shape(options: MeshOptions, num_devices: int) -> Shape:
    """The sizes of AXES for `num_devices`; an axis of -1 takes the devices that the others leave.

    Raises ConfigError if the sizes do not multiply to `num_devices`, or slices do not divide them.
    """
    options = _without_preset(options)
    sizes = [options.data, options.fsdp, options.tensor]
    fixed = math.prod(size for size in sizes if size != -1)
    if -1 in sizes and num_devices % fixed == 0:
        sizes[sizes.index(-1)] = num_devices // fixed
    if -1 in sizes or math.prod(sizes) != num_devices:
        wanted = " x ".join(f"{axis}={size}" for axis, size in zip(AXES, sizes, strict=True))
        raise ConfigError(
            f"mesh {wanted} does not fit {num_devices} devices: the sizes must multiply to {num_devices} "
            "(set one axis to -1 to let it take what is left)"
        )
    for axis, size, times in zip(AXES, sizes, dcn_shape(options), strict=True):
        if size % times:
            raise ConfigError(f"mesh.dcn_{axis} = {times} does not divide the {size} devices along {axis}")
    return sizes[0], sizes[1], sizes[2]


def dcn_shape(options: MeshOptions) -> Shape:
    """How many slices (or nodes) each of AXES spans; tensor parallelism never leaves one."""
    options = _without_preset(options)
    return options.dcn_data, options.dcn_fsdp, 1


def make_mesh(options: MeshOptions, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh with all three AXES (size 1 where unused) over `devices`, by default all of the job's.

    They may be those of a topology that is not attached (`jax.experimental.topologies`). Raises ConfigError if the
    settings do not fit them.
    """
    devices = jax.devices() if devices is None else devices
    if options.preset:
        wanted = math.prod(preset_sizes(options.preset)[axis] for axis in AXES)
        if wanted != len(devices):
            raise ConfigError(
                f"mesh.preset = {options.preset!r} is {wanted} devices, but there are {len(devices)} of kind "
                f"{devices[0].device_kind}: name the hardware that is there, or set mesh.data, fsdp and tensor instead"
            )
    grid = arranged(devices, mesh_shape(options, len(devices)), dcn_shape(options))
    return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def arranged(devices: Sequence[jax.Device], shape: Shape, dcn: Shape = (1, 1, 1)) -> np.ndarray:
    """`devices` as an array of `shape`, in which neighbours are near each other in the network.

    Along each axis the `dcn` slices come outermost. Slices are what the devices say (TPU slices, GPU nodes), else
    processes if their number is right, else equal runs of the list, so that virtual devices can stand for slices.
    """
    num_slices, found = math.prod(dcn), len({getattr(device, "slice_index", 0) for device in devices})
    if num_slices == 1:
        if found > 1 and devices[0].platform == "tpu":
            raise ConfigError(
                f"the devices lie in {found} TPU slices: set mesh.dcn_data = {found} and mesh.data to {found} or a "
                f"multiple of it (parameters repeated on each slice), or mesh.dcn_fsdp = {found} (split over all)"
            )
        return mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    if found > 1 and found != num_slices:
        raise ConfigError(
            f"mesh.dcn_data x mesh.dcn_fsdp = {dcn[0]} x {dcn[1]} slices, but the devices lie in {found}: the two must "
            f"multiply to {found}"
        )
    inner = tuple(size // times for size, times in zip(shape, dcn, strict=True))
    is_process = found == 1 and len({device.process_index for device in devices}) == num_slices
    if found > 1 or is_process:
        return mesh_utils.create_hybrid_device_mesh(
            inner, dcn, devices, process_is_granule=is_process, allow_split_physical_axes=True
        )
    runs = np.asarray(devices).reshape(*dcn, *inner)
    return runs.transpose(0, 3, 1, 4, 2, 5).reshape(shape)


def compute_dtype(options: ModelOptions, mesh: Mesh | None = None) -> jnp.dtype:
    """The dtype of activations; "auto" is float32 on CPU and bfloat16 on accelerators."""
    if options.compute_dtype != "auto":
        return jnp.dtype(options.compute_dtype)
    return jnp.dtype("float32" if platform_of(mesh) == "cpu" else "bfloat16")


def platform_of(mesh: Mesh | None) -> str:
    """ "cpu", "tpu" or "gpu": the mesh's, which may be of hardware that is not there; without one the host's."""
    return mesh.devices.flat[0].platform if mesh else jax.default_backend()


def _without_preset(options: MeshOptions) -> MeshOptions:
    if not options.preset:
        return options
    sizes: dict[str, Any] = dict(preset_sizes(options.preset))
    return dataclasses.replace(options, preset="", **sizes)
