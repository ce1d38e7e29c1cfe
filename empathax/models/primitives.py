"""Matrix product, RMS norm and gated activation, with backward passes that say what is kept and how it is summed.

Left to itself, differentiation keeps every intermediate of an activation, lays the gradient of a kernel out transposed
and copies it back, and sums the gradient of a norm element by element. On XLA's CPU backend that makes up half of the
time of a layer's dense part. The results are those of automatic differentiation up to rounding.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "silu": jax.nn.silu,
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True),
    "relu": jax.nn.relu,
}


@jax.custom_vjp
def matmul(x: Float[Array, "*B I"], kernel_IO: Float[Array, "I O"]) -> Float[Array, "*B O"]:
    """x @ kernel in the dtype of x; the kernel's gradient is summed, and returned, in the kernel's own dtype.

    For a kernel that is not trained nothing is summed, and x is not kept.
    """
    return x @ kernel_IO.astype(x.dtype)


def _matmul_forward(x: Any, kernel_IO: Any) -> tuple[Array, Any]:
    out = x.value @ kernel_IO.value.astype(x.value.dtype)  # not a call of `matmul`, into which no remat policy sees
    return out, (x.value if kernel_IO.perturbed else None, kernel_IO.value)


def _matmul_backward(kept: tuple[Array | None, Array], dout: Array) -> tuple[Array, Array | None]:
    x, kernel_IO = kept
    dx = jnp.einsum("...o,io->...i", dout, kernel_IO.astype(dout.dtype))
    return dx, None if x is None else _kernel_gradient(x, dout, kernel_IO.dtype)


def _kernel_gradient(x: Array, dout: Array, dtype: Any) -> Array:
    """x.T @ dout over all tokens; as the transpose of dout.T @ x where x is wider: the CPU backend lays out the first
    factor anew, tokens last, and that takes as long as a fifth of the product for a wide one."""
    tokens = tuple(range(x.ndim - 1))
    over_tokens = ((tokens, tokens), ((), ()))
    product = partial(jax.lax.dot_general, dimension_numbers=over_tokens, preferred_element_type=dtype)
    return product(dout, x).T if x.shape[-1] > dout.shape[-1] else product(x, dout)


matmul.defvjp(_matmul_forward, _matmul_backward, symbolic_zeros=True)


def split_kernel(kernel_IO: Float[Array, "I O"], num_parts: int) -> tuple[Float[Array, "o I"], ...]:
    """A kernel for `matmul_few_rows`: transposed, its outputs in `num_parts` runs of about the same length."""
    return split_rows(kernel_IO.T, num_parts)


def split_rows(kernel_OI: Float[Array, "O I"], num_parts: int) -> tuple[Float[Array, "o I"], ...]:
    """A kernel that lies with its outputs first (a vocabulary's), in `num_parts` runs for `matmul_few_rows`."""
    return tuple(jnp.array_split(kernel_OI, num_parts))


def matmul_few_rows(x: Float[Array, "*B I"], parts: tuple[Float[Array, "o I"], ...]) -> Float[Array, "*B O"]:
    """x @ kernel in float32, for so few rows that reading the kernel takes the time: a decode step on CPU.

    The CPU backend lays the second factor of a product out anew, so the kernel comes first; and it gives such a product
    one core, so the parts are products of their own, which run side by side.
    """
    rows_IB = x.reshape(-1, x.shape[-1]).T
    out_OB = jnp.concatenate([part @ rows_IB for part in parts])
    return out_OB.T.reshape(*x.shape[:-1], -1)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def scaled_rms(x: Float[Array, "*B D"], scale_D: Float[Array, " D"], eps: float) -> Float[Array, "*B D"]:
    """x / rms(x) * scale over the last axis: in float32, returned in the dtype of x."""
    return _scaled_rms_forward(x, scale_D, eps)[0]


def _scaled_rms_forward(x: Array, scale_D: Array, eps: float) -> tuple[Array, tuple[Array, Array, Array]]:
    wide = x.astype(jnp.float32)
    inverse = jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + eps)
    return (wide * inverse * scale_D.astype(jnp.float32)).astype(x.dtype), (x, inverse, scale_D)


def _scaled_rms_backward(eps: float, kept: tuple[Array, Array, Array], dout: Array) -> tuple[Array, Array]:
    x, inverse, scale_D = kept
    wide_dout = dout.astype(jnp.float32)
    normed = x.astype(jnp.float32) * inverse
    dnormed = wide_dout * scale_D.astype(jnp.float32)
    # sums as products with ones: the CPU backend's plain reductions take several times as long
    along_D = jnp.einsum("...d,d->...", dnormed * normed, jnp.ones_like(scale_D, jnp.float32)) / x.shape[-1]
    tokens = tuple(range(x.ndim - 1))
    ones = jnp.ones(x.shape[:-1], jnp.float32)
    dscale_D = jax.lax.dot_general(ones, wide_dout * normed, ((tokens, tokens), ((), ())))
    dx = inverse * (dnormed - normed * along_D[..., None])
    return dx.astype(x.dtype), dscale_D.astype(scale_D.dtype)


scaled_rms.defvjp(_scaled_rms_forward, _scaled_rms_backward)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def gated(activation: str, gate: Float[Array, "*B F"], up: Float[Array, "*B F"]) -> Float[Array, "*B F"]:
    """activation(gate) * up; the backward pass keeps the two inputs only."""
    return _gated(activation, gate, up)


def _gated(activation: str, gate: Array, up: Array) -> Array:
    return ACTIVATIONS[activation](gate) * up


def _gated_forward(activation: str, gate: Array, up: Array) -> tuple[Array, tuple[Array, Array]]:
    return _gated(activation, gate, up), (gate, up)


def _gated_backward(activation: str, kept: tuple[Array, Array], dout: Array) -> Any:
    return jax.vjp(partial(_gated, activation), *kept)[1](dout)


gated.defvjp(_gated_forward, _gated_backward)
