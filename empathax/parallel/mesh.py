"""The hardware mesh: devices along the axes data, fsdp and tensor, and the dtype they compute in."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh

from empathax.config import MeshOptions, ModelOptions
from empathax.errors import ConfigError

AXES = ("data", "fsdp", "tensor")


def mesh_shape(options: MeshOptions, num_devices: int) -> tuple[int, int, int]:
    """The sizes of AXES for `num_devices`; an axis of -1 takes the devices that the others leave.

    Raises ConfigError if the sizes do not multiply to `num_devices`.
    """
    sizes = [options.data, options.fsdp, options.tensor]
    fixed = int(np.prod([size for size in sizes if size != -1]))
    if -1 in sizes and num_devices % fixed == 0:
        sizes[sizes.index(-1)] = num_devices // fixed
    if -1 in sizes or int(np.prod(sizes)) != num_devices:
        wanted = " x ".join(f"{axis}={size}" for axis, size in zip(AXES, sizes, strict=True))
        raise ConfigError(
            f"mesh {wanted} does not fit {num_devices} devices: the sizes must multiply to {num_devices} "
            "(set one axis to -1 to let it take what is left)"
        )
    return sizes[0], sizes[1], sizes[2]


def make_mesh(options: MeshOptions, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh with all three AXES (size 1 where unused) over `devices`, by default all of the job's."""
    devices = jax.devices() if devices is None else devices
    shape = mesh_shape(options, len(devices))
    return Mesh(np.asarray(devices).reshape(shape), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def compute_dtype(options: ModelOptions, mesh: Mesh | None = None) -> jnp.dtype:
    """The dtype of activations; "auto" is float32 on CPU and bfloat16 on accelerators."""
    if options.compute_dtype != "auto":
        return jnp.dtype(options.compute_dtype)
    platform = mesh.devices.flat[0].platform if mesh else jax.default_backend()
    return jnp.dtype("float32" if platform == "cpu" else "bfloat16")
