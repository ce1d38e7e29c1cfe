"""Which places of one row hold the token of another: bits of uint32 words, the ground of n-gram matches and of the LCS.

Rows lie along the last axis, so that every step runs over many rows at once.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, UInt32

BITS = 32


def match_masks(ids_TB: Int[Array, "T B"], other_UB: Int[Array, "U B"]) -> UInt32[Array, "T W B"]:
    """Bit u % 32 of word u // 32 says whether other[u] == ids[t]; W = ceil(U / 32). Negative ids match nothing."""
    num_words = -(-other_UB.shape[0] // BITS)
    padded_UB = jnp.pad(other_UB, ((0, num_words * BITS - other_UB.shape[0]), (0, 0)), constant_values=-1)
    words_WKB = padded_UB.reshape(num_words, BITS, -1)
    same_TWKB = (ids_TB[:, None, None] == words_WKB) & (words_WKB >= 0)
    bits_K11 = jnp.uint32(1) << jnp.arange(BITS, dtype=jnp.uint32)[:, None]
    return jnp.sum(jnp.where(same_TWKB, bits_K11, jnp.uint32(0)), axis=2, dtype=jnp.uint32)


def shifted_down(masks_WB: UInt32[Array, "W B"], places: int) -> UInt32[Array, "W B"]:
    """Bit u becomes bit u - places, of 0 < places < BITS: where the place `places` later is marked."""
    from_above_WB = jnp.pad(masks_WB[1:], ((0, 1), (0, 0))) << jnp.uint32(BITS - places)
    return (masks_WB >> jnp.uint32(places)) | from_above_WB


def before_itself(num_places: int) -> UInt32[Array, "T W 1"]:
    """Masks of the places before each place."""
    num_words = -(-num_places // BITS)
    places_T1 = jnp.arange(num_places)[:, None]
    below_TW = jnp.clip(places_T1 - BITS * jnp.arange(num_words), 0, BITS)
    full = jnp.uint32(0xFFFFFFFF)
    masks_TW = jnp.where(below_TW == BITS, full, (jnp.uint32(1) << (below_TW % BITS).astype(jnp.uint32)) - 1)
    return masks_TW[:, :, None]


def num_bits(masks_WB: UInt32[Array, "W B"]) -> Int[Array, " B"]:
    """Set bits over all words."""
    return jnp.sum(jax.lax.population_count(masks_WB).astype(jnp.int32), axis=0)


def row_of(ids_BT: Int[Array, "B T"], lengths_B: Int[Array, " B"]) -> Int[Array, "T B"]:
    """Rows along the last axis, -1 from each row's end."""
    inside_BT: Bool[Array, "B T"] = jnp.arange(ids_BT.shape[1]) < lengths_B[:, None]
    return jnp.where(inside_BT, ids_BT, -1).T
