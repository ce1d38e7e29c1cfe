"""The arithmetic of adapters: what LoRA and DoRA add to one product, and the kernel that they amount to.

A product's weights are {"kernel", perhaps "bias", "lora": (adapter, ...)}, of one layer or stacked over layers (see
adapters.py). An adapter is {"lora_a" [I, R], "lora_b" [R, O], "scale" []}, with DoRA "lora_magnitude" [O], with dropout
"dropout_key" and "dropout_rate" []. LoRA: Hu et al. 2021, arXiv 2106.09685, eq. 3; DoRA: Liu et al. 2024,
arXiv 2402.09353, eq. 5 and section 4.3.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from empathax.models.lora.quantized import dense_kernel, product
from empathax.models.primitives import matmul

Weights = Mapping[str, Any]


def add_adapters(out: Float[Array, "*B O"], weights: Weights, x: Float[Array, "*B I"]) -> Float[Array, "*B O"]:
    """`out` = x @ kernel with what each adapter adds; W + BA is never formed."""
    plain = out
    for adapter in weights["lora"]:
        entering = _dropped(adapter, x)
        low_rank = matmul(matmul(entering, adapter["lora_a"]), adapter["lora_b"]) * adapter["scale"].astype(x.dtype)
        if "lora_magnitude" in adapter:
            of_kernel = plain if entering is x else product(weights, entering)
            rescale = _rescale(adapter, dense_kernel(weights, x.shape[-1]))
            low_rank = (rescale - 1.0).astype(x.dtype) * of_kernel + rescale.astype(x.dtype) * low_rank
        out = out + low_rank
    return out


def merged_kernel(weights: Weights) -> Float[Array, "*L I O"]:
    """The kernel with its adapters added in, in float32 arithmetic and the kernel's dtype; of a stack of layers too."""
    kernel = weights["kernel"].astype(jnp.float32)
    whole = kernel
    for adapter in weights["lora"]:
        change = _stacked(adapter["scale"], 2) * jnp.einsum("...ir,...ro->...io", adapter["lora_a"], adapter["lora_b"])
        if "lora_magnitude" in adapter:
            change = (kernel + change) * _rescale(adapter, kernel)[..., None, :] - kernel
        whole = whole + change
    return whole.astype(weights["kernel"].dtype)


def direction_norms(
    kernel: Float[Array, "*L I O"], a: Float[Array, "*L I R"], b: Float[Array, "*L R O"], scale: Float[Array, "*L"]
) -> Float[Array, "*L O"]:
    """||W + scale * A @ B|| of each output, from W'W, A'W and A'A, so that no second kernel is formed."""
    kernel, scale = kernel.astype(jnp.float32), _stacked(scale, 1)
    squares = jnp.einsum("...io,...io->...o", kernel, kernel)
    crossed = jnp.einsum("...ro,...ir,...io->...o", b, a, kernel)
    own = jnp.einsum("...ro,...rs,...so->...o", b, jnp.einsum("...ir,...is->...rs", a, a), b)
    return jnp.sqrt(squares + 2.0 * scale * crossed + scale * scale * own)


def _rescale(adapter: Weights, kernel: Array) -> Float[Array, "*L O"]:
    """DoRA's magnitude over the norm of the direction, which takes part in no gradient."""
    norms = direction_norms(kernel, adapter["lora_a"], adapter["lora_b"], adapter["scale"])
    return adapter["lora_magnitude"] / jax.lax.stop_gradient(norms)


def _dropped(adapter: Weights, x: Array) -> Array:
    if "dropout_key" not in adapter:
        return x
    keep = 1.0 - adapter["dropout_rate"]
    return jnp.where(jax.random.bernoulli(adapter["dropout_key"], keep, x.shape), x / keep.astype(x.dtype), 0.0)


def _stacked(values: Array, dims: int) -> Array:
    return values.reshape(*values.shape, *(1,) * dims)
