"""Rotary position embedding (Su et al. 2021, arXiv 2104.09864) and the ways a model stretches it to longer contexts.

Frequencies follow transformers' `modeling_rope_utils.py` operation by operation in float32: at position 9,000 a
frequency that differs in its last bit already turns the angle by 5e-4.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

ROPE_TYPES = ("default", "linear", "dynamic", "llama3", "yarn")


@dataclass(frozen=True)
class RopeConfig:
    """How positions become angles; every field is resolved (no None), so two equal models compare equal."""

    theta: float = 10_000.0
    type: str = "default"  # one of ROPE_TYPES
    factor: float = 1.0  # linear, dynamic, llama3, yarn: by how much the context was stretched
    original_max_positions: int = 0  # llama3, yarn: context length before stretching; dynamic: where growth starts
    low_freq_factor: float = 1.0  # llama3
    high_freq_factor: float = 4.0  # llama3
    attention_factor: float = 1.0  # yarn: cos and sin are multiplied by it
    beta_fast: float = 32.0  # yarn
    beta_slow: float = 1.0  # yarn
    truncate: bool = True  # yarn: correction range rounded to whole dimensions


def yarn_attention_factor(factor: float, mscale: float | None = None, mscale_all_dim: float | None = None) -> float:
    """The cos/sin multiplier of YaRN when a config does not give it (arXiv 2309.00071, section 3.4)."""

    def scale(weight: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0

    if mscale and mscale_all_dim:
        return scale(mscale) / scale(mscale_all_dim)
    return scale(1.0)


def rope_tables(
    rope: RopeConfig, positions_BT: Int[Array, "B T"], head_dim: int
) -> tuple[Float[Array, "B T half"], Float[Array, "B T half"]]:
    """Cosines and sines, float32, of each position and each of the head_dim / 2 rotated planes.

    "dynamic" depends on the longest position of the whole batch, as in transformers: rows that share a batch with a
    position beyond `original_max_positions` are all rotated with the stretched frequencies, and the two packings of a
    tree agree only while every position stays below it.
    """
    if rope.type == "dynamic":
        frequencies = _dynamic_frequencies(rope, jnp.max(positions_BT) + 1, head_dim)
    else:
        frequencies = jnp.asarray(inverse_frequencies(rope, head_dim))
    angles = positions_BT[..., None].astype(jnp.float32) * frequencies
    return jnp.cos(angles) * rope.attention_factor, jnp.sin(angles) * rope.attention_factor


def apply_rope(
    x_BNTH: Float[Array, "B N T H"], cos_BTH: Float[Array, "B T half"], sin_BTH: Float[Array, "B T half"]
) -> Float[Array, "B N T H"]:
    """Rotates plane (i, i + H/2) of every head by its angle (the "half" layout of transformers), in float32."""
    first, second = jnp.split(x_BNTH.astype(jnp.float32), 2, axis=-1)
    cos, sin = cos_BTH[:, None], sin_BTH[:, None]
    rotated = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return rotated.astype(x_BNTH.dtype)


def inverse_frequencies(rope: RopeConfig, head_dim: int) -> np.ndarray:
    """Radians per position of each rotated plane, float32 [head_dim / 2]; for "dynamic" those of short inputs."""
    powers = _theta_powers(rope.theta, head_dim)
    frequencies = np.float32(1.0) / powers
    if rope.type == "linear":
        return frequencies / np.float32(rope.factor)
    if rope.type == "llama3":
        return _llama3(rope, frequencies)
    if rope.type == "yarn":
        return _yarn(rope, powers, head_dim)
    return frequencies


def _theta_powers(theta: float, head_dim: int) -> np.ndarray:
    exponents = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
    # float64 and one rounding: within half a unit of the last place, where float32 pow differs between libraries
    return np.power(float(theta), exponents.astype(np.float64)).astype(np.float32)


def _dynamic_frequencies(rope: RopeConfig, length: Int[Array, ""], head_dim: int) -> Float[Array, " half"]:
    """NTK-aware scaling by the length seen: theta grows once `length` passes original_max_positions."""
    length = jnp.maximum(length, rope.original_max_positions).astype(jnp.float32)
    stretch = rope.factor * length / rope.original_max_positions - (rope.factor - 1)
    theta = rope.theta * stretch ** (head_dim / (head_dim - 2))
    exponents = jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim
    short = jnp.asarray(inverse_frequencies(rope, head_dim))
    return jnp.where(length > rope.original_max_positions, 1.0 / theta**exponents, short)


def _llama3(rope: RopeConfig, frequencies: np.ndarray) -> np.ndarray:
    """Long wavelengths divided by the factor, short ones kept, a linear blend between (Llama 3.1)."""
    context = rope.original_max_positions
    wavelengths = np.float32(2 * math.pi) / frequencies
    slow = np.where(wavelengths > context / rope.low_freq_factor, frequencies / np.float32(rope.factor), frequencies)
    blend = (np.float32(context) / wavelengths - np.float32(rope.low_freq_factor)) / np.float32(
        rope.high_freq_factor - rope.low_freq_factor
    )
    blended = (np.float32(1) - blend) * slow / np.float32(rope.factor) + blend * slow
    is_medium = (wavelengths >= context / rope.high_freq_factor) & (wavelengths <= context / rope.low_freq_factor)
    return np.where(is_medium, blended, slow).astype(np.float32)


def _yarn(rope: RopeConfig, powers: np.ndarray, head_dim: int) -> np.ndarray:
    """NTK by parts (arXiv 2309.00071, eq. 22-23): fast planes extrapolate, slow ones interpolate."""

    def dimension_of(num_rotations: float) -> float:
        turns = rope.original_max_positions / (num_rotations * 2 * math.pi)
        return head_dim * math.log(turns) / (2 * math.log(rope.theta))

    low, high = dimension_of(rope.beta_fast), dimension_of(rope.beta_slow)
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    if low == high:
        high += 0.001  # avoids 0 / 0, as transformers does
    ramp = (np.arange(head_dim // 2, dtype=np.float32) - np.float32(low)) / np.float32(high - low)
    kept = np.float32(1) - np.clip(ramp, 0, 1)
    extrapolated = np.float32(1) / powers
    interpolated = np.float32(1) / (np.float32(rope.factor) * powers)
    return (interpolated * (np.float32(1) - kept) + extrapolated * kept).astype(np.float32)
