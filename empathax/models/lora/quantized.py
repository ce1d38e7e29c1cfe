"""Kernels that are not trained, in 4 or 8 bits: QLoRA (Dettmers et al. 2023, arXiv 2305.14314, section 3).

A product's weights are then {"codes", "absmax", perhaps "bias"} in place of {"kernel", ...}. A block is 64 inputs of
one output, as bitsandbytes cuts a [out, in] weight; its largest magnitude is kept in float32:

    nf4   codes uint8 [.., I / 2, O], inputs 2i and 2i + 1 in the high and the low half of a byte: 0.5625 bytes a weight
    int8  codes int8 [.., I, O], round(127 * weight / absmax): 1.0625 bytes a weight

with absmax [.., I / 64, O]; I is rounded up to whole blocks. A layer is dense only while it is multiplied with, forward
and backward.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Float

from empathax.models.primitives import matmul

Params = dict[str, Any]
BLOCK = 64
# QLoRA, appendix E: the quantiles of a normal distribution, scaled to [-1, 1], zero among them
NF4_VALUES = np.array(
    [
        -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
        -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
        0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
    ],
    np.float32,
)  # fmt: skip


def quantize(kernel: Float[Array, "*L I O"], kind: str) -> dict[str, Array]:
    """{"codes", "absmax"} of a kernel, each weight by the nearest value that its block has."""
    width, outputs = kernel.shape[-2:]
    padding = [(0, 0)] * (kernel.ndim - 2) + [(0, -width % BLOCK), (0, 0)]
    blocks = jnp.pad(kernel.astype(jnp.float32), padding).reshape(*kernel.shape[:-2], -1, BLOCK, outputs)
    absmax = jnp.abs(blocks).max(axis=-2)
    scaled = blocks / jnp.where(absmax > 0.0, absmax, 1.0)[..., None, :]
    if kind == "int8":
        codes = jnp.round(127.0 * scaled).astype(jnp.int8)
        return {"codes": codes.reshape(*kernel.shape[:-2], -1, outputs), "absmax": absmax}
    borders = (NF4_VALUES[1:] + NF4_VALUES[:-1]) / 2
    codes = sum((scaled > border).astype(jnp.uint8) for border in borders)
    pairs = jnp.asarray(codes).reshape(*kernel.shape[:-2], -1, 2, outputs)
    return {"codes": (pairs[..., 0, :] << 4) | pairs[..., 1, :], "absmax": absmax}


def dequantize(weights: Mapping[str, Any], width: int, dtype: Any = jnp.float32) -> Float[Array, "*L I O"]:
    """The kernel that `weights` stand for, with its `width` inputs."""
    codes, absmax = weights["codes"], weights["absmax"]
    values = _nf4_values(codes) if codes.dtype == jnp.uint8 else codes.astype(jnp.float32) / 127.0
    blocks = values.reshape(*absmax.shape[:-1], BLOCK, absmax.shape[-1]) * absmax[..., None, :]
    return blocks.reshape(*values.shape)[..., :width, :].astype(dtype)


def product(weights: Mapping[str, Any], x: Float[Array, "*B I"]) -> Float[Array, "*B O"]:
    """x @ kernel in the dtype of x, of a dense kernel or one in codes."""
    if "codes" in weights:
        return _quantized_matmul(x.shape[-1], x, weights["codes"], weights["absmax"])
    return matmul(x, weights["kernel"])


def dense_kernel(weights: Mapping[str, Any], width: int) -> Float[Array, "*L I O"]:
    """The kernel of a product with `width` inputs, dense or out of its codes."""
    return dequantize(weights, width) if "codes" in weights else weights["kernel"]


def quantized_parameter(kind: str, path: tuple[str, ...], leaf: jax.Array) -> dict[str, jax.Array]:
    """What takes a parameter's place in the tree, by name: codes for a layer's kernel, any other parameter itself."""
    if not _is_quantized(path):
        return {path[-1]: leaf}
    shapes = jax.eval_shape(partial(quantize, kind=kind), leaf)
    shardings = jax.tree.map(lambda shape: _like(leaf.sharding, shape.shape), shapes)
    return jax.jit(partial(quantize, kind=kind), out_shardings=shardings)(leaf)


def rounded_parameter(kind: str, path: tuple[str, ...], leaf: jax.Array) -> dict[str, jax.Array]:
    """The same, dense again: what an adapter on the codes was trained with."""
    if not _is_quantized(path):
        return {path[-1]: leaf}
    there_and_back = jax.jit(
        lambda leaf: dequantize(quantize(leaf, kind), leaf.shape[-2], leaf.dtype), out_shardings=leaf.sharding
    )
    return {path[-1]: there_and_back(leaf)}


def abstract_quantized(params: Params, kind: str) -> Params:
    """The abstract parameters with their kernels in codes, laid out as the kernels are."""

    def visit(node: Any, path: tuple[str, ...]) -> dict[str, Any]:
        if isinstance(node, dict):
            parts = (visit(value, (*path, name)) for name, value in node.items())
            inner = {name: value for part in parts for name, value in part.items()}
            return {path[-1]: inner} if path else inner
        if not _is_quantized(path):
            return {path[-1]: node}
        shapes = jax.eval_shape(partial(quantize, kind=kind), node)
        return {
            name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=_like(node.sharding, leaf.shape))
            for name, leaf in shapes.items()
        }

    return visit(params, ())


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _quantized_matmul(width: int, x: Array, codes: Array, absmax: Array) -> Array:
    return x @ dequantize({"codes": codes, "absmax": absmax}, width, x.dtype)


def _quantized_forward(width: int, x: Array, codes: Array, absmax: Array) -> tuple[Array, Any]:
    # kept are the codes: the dense kernels of all layers would otherwise lie there until the backward pass
    return x @ dequantize({"codes": codes, "absmax": absmax}, width, x.dtype), (codes, absmax)


def _quantized_backward(width: int, kept: tuple[Array, Array], dout: Array) -> tuple[Array, None, None]:
    codes, absmax = kept
    kernel_IO = dequantize({"codes": codes, "absmax": absmax}, width, dout.dtype)
    return jnp.einsum("...o,io->...i", dout, kernel_IO), None, None


_quantized_matmul.defvjp(_quantized_forward, _quantized_backward)


def _nf4_values(codes: Array) -> Array:
    """The values of both halves of each byte, in order of inputs. Selected bit by bit: a table look-up is a gather,
    which no backend does at the speed of memory."""
    halves = jnp.stack([codes >> 4, codes & 15], axis=-2)
    candidates = [jnp.float32(value) for value in NF4_VALUES]
    for bit in range(4):
        is_set = (halves >> bit) & 1 == 1
        candidates = [jnp.where(is_set, high, low) for low, high in zip(candidates[::2], candidates[1::2], strict=True)]
    return candidates[0].reshape(*codes.shape[:-2], -1, codes.shape[-1])


def _is_quantized(path: tuple[str, ...]) -> bool:
    return path[0] == "layers" and path[-1] == "kernel"


def _like(sharding: Any, shape: tuple[int, ...]) -> Any:
    """Where codes of `shape` lie: as the kernel does, but whole along dimensions that the mesh does not divide."""
    if not isinstance(sharding, NamedSharding):
        return sharding
    places = (*sharding.spec, *[None] * (len(shape) - len(sharding.spec)))
    parts = [_num_parts(sharding.mesh, place) for place in places]
    whole = (place if size % count == 0 else None for place, size, count in zip(places, shape, parts, strict=True))
    return NamedSharding(sharding.mesh, PartitionSpec(*whole))


def _num_parts(mesh: Any, place: Any) -> int:
    axes = (place,) if isinstance(place, str) else place or ()
    return math.prod(mesh.shape[axis] for axis in axes)
