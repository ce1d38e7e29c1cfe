"""Attention over prefix trees: token i sees token j exactly when j <= i < subtree_end[j].

Heads come before tokens in every array ("bnth"): on XLA's CPU backend that runs about twice as fast as "btnh".
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from empathax.errors import ConfigError
from empathax.models.blockwise import block_size, blockwise_attention

NO_WINDOW = jnp.iinfo(jnp.int32).max  # a traced window that hides nothing
_MASKED = -1e30  # finite: a row without any visible token gives a uniform softmax, not NaN

Window = int | Int[Array, ""]


def attention(
    q_BNTH: Float[Array, "B N T H"],
    k_BKTH: Float[Array, "B K T H"],
    v_BKTH: Float[Array, "B K T H"],
    *,
    positions_BT: Int[Array, "B T"],
    subtree_end_BT: Int[Array, "B T"],
    window: Window = 0,
    softcap: float = 0.0,
    scale: float = 1.0,
    implementation: str = "auto",
) -> Float[Array, "B N T H"]:
    """Grouped-query attention within rows of prefix trees; query head n reads key head n // (N / K).

    `window` counts the tokens a query sees along its own path, itself included (positions differ by less than it);
    the int 0 switches it off, a traced value must be > 0 (`NO_WINDOW` hides nothing). `softcap` 0 is off. Scores and
    softmax are float32, the result has the dtype of `q_BNTH`.
    """
    if implementation not in _IMPLEMENTATIONS:
        known = ", ".join(map(repr, _IMPLEMENTATIONS))
        raise ConfigError(f"attention {implementation!r} does not exist: choose one of {known}")
    run = _IMPLEMENTATIONS[implementation]
    return run(q_BNTH, k_BKTH, v_BKTH, positions_BT, subtree_end_BT, window, softcap, scale)


def tree_mask(
    positions_BT: Int[Array, "B T"], subtree_end_BT: Int[Array, "B T"], window: Window = 0
) -> Bool[Array, "B T T"]:
    """True at [b, i, j] where token i sees token j."""
    index_T = jnp.arange(positions_BT.shape[-1], dtype=jnp.int32)
    query_T1 = index_T[:, None]
    mask_BTT = (index_T[None, :] <= query_T1) & (query_T1 < subtree_end_BT[:, None, :])
    if isinstance(window, int) and window == 0:
        return mask_BTT
    return mask_BTT & (positions_BT[:, :, None] - positions_BT[:, None, :] < window)


def masked_attention(
    q_BNTH: Float[Array, "B N T H"],
    k_BKSH: Float[Array, "B K S H"],
    v_BKSH: Float[Array, "B K S H"],
    mask_BTS: Bool[Array, "B T S"],
    softcap: float,
    scale: float,
) -> Float[Array, "B N T H"]:
    """Softmax attention of T queries to S keys under an explicit mask; holds all [B, N, T, S] scores."""
    B, N, T, H = q_BNTH.shape
    K, S = k_BKSH.shape[1:3]
    # the N / K queries of a group share their keys: fold them into the rows of one matmul
    q_BKRH = q_BNTH.reshape(B, K, N // K * T, H)
    scores = jnp.einsum("bkrh,bksh->bkrs", q_BKRH, k_BKSH, preferred_element_type=jnp.float32) * scale
    if softcap:
        scores = softcap * jnp.tanh(scores / softcap)
    scores_BKGTS = jnp.where(mask_BTS[:, None, None], scores.reshape(B, K, N // K, T, S), _MASKED)
    weights = jax.nn.softmax(scores_BKGTS, axis=-1).astype(v_BKSH.dtype).reshape(B, K, N // K * T, S)
    out = jnp.einsum("bkrs,bksh->bkrh", weights, v_BKSH, preferred_element_type=jnp.float32)
    return out.astype(q_BNTH.dtype).reshape(B, N, T, H)


def _dense(
    q_BNTH: Array,
    k_BKTH: Array,
    v_BKTH: Array,
    positions_BT: Array,
    subtree_end_BT: Array,
    window: Window,
    softcap: float,
    scale: float,
) -> Array:
    """The reference: one T x T mask and score matrix per head."""
    mask_BTT = tree_mask(positions_BT, subtree_end_BT, window)
    return masked_attention(q_BNTH, k_BKTH, v_BKTH, mask_BTT, softcap, scale)


def _auto(q_BNTH: Array, *rest: Any) -> Array:
    """Blocks where a row divides into several of them, the plain matrix where it is short."""
    T = q_BNTH.shape[2]
    size = block_size(T)
    run = _dense if size is None or 2 * size > T else blockwise_attention
    return run(q_BNTH, *rest)


_IMPLEMENTATIONS: dict[str, Callable[..., Array]] = {
    "auto": _auto,
    "dense": _dense,
    "blockwise": blockwise_attention,
}
