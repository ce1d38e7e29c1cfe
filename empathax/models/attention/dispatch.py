"""Attention over prefix trees: token i sees token j exactly when j <= i < subtree_end[j].

Heads come before tokens in every array ("bnth"): on XLA's CPU backend that runs about twice as fast as "btnh".
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float

from empathax.config.options import ATTENTION_IMPLEMENTATIONS
from empathax.errors import ConfigError
from empathax.models.attention.blockwise import block_size
from empathax.models.attention.flash import HEAD_DIMS, Plan, divides, flash_attention, has_kernel
from empathax.models.attention.tree_layout import MASKED, ScoreOptions, TreeLayout


def attention(
    q_BNTH: Float[Array, "B N T H"],
    k_BKTH: Float[Array, "B K T H"],
    v_BKTH: Float[Array, "B K T H"],
    layout: TreeLayout,
    *,
    softcap: float = 0.0,
    scale: float = 1.0,
    implementation: str = "auto",
    mesh: Mesh | None = None,
) -> Float[Array, "B N T H"]:
    """Grouped-query attention within rows of prefix trees; query head n reads key head n // (N / K).

    `softcap` 0 is off. Scores and softmax are float32, the result has the dtype of `q_BNTH`.

    `mesh` is where the arrays lie, rows and heads split as parallel/rules.py says: with it the work is split by hand,
    and "auto" may take the kernel of the mesh's platform. XLA cannot partition a kernel, so without a mesh "auto" is
    portable, and a kernel asked for by name runs on one device. Raises a ConfigError for an `implementation` that does
    not exist or does not fit these arrays.
    """
    if implementation not in ATTENTION_IMPLEMENTATIONS:
        known = ", ".join(map(repr, ATTENTION_IMPLEMENTATIONS))
        raise ConfigError(f"attention {implementation!r} does not exist: choose one of {known}")
    fits_mesh = mesh is None or divides(mesh, q_BNTH.shape[0], q_BNTH.shape[1], k_BKTH.shape[1])
    chosen = _choose(q_BNTH, mesh if fits_mesh else None) if implementation == "auto" else implementation
    if chosen == "dense":
        return masked_attention(q_BNTH, k_BKTH, v_BKTH, tree_mask(layout), softcap, scale)
    if chosen != "blockwise":
        _check_kernel(chosen, q_BNTH, k_BKTH, fits_mesh)
    is_split = mesh is not None and mesh.size > 1 and fits_mesh
    plan = Plan(chosen, ScoreOptions(scale, softcap, layout.has_window), mesh if is_split else None)
    return flash_attention(q_BNTH, k_BKTH, v_BKTH, layout, plan)


def tree_mask(layout: TreeLayout) -> Bool[Array, "B T T"]:
    """True at [b, i, j] where token i sees token j."""
    positions_BT, subtree_end_BT, window = layout
    index_T = jnp.arange(positions_BT.shape[-1], dtype=jnp.int32)
    query_T1 = index_T[:, None]
    mask_BTT = (index_T[None, :] <= query_T1) & (query_T1 < subtree_end_BT[:, None, :])
    if not layout.has_window:
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
    scores_BKGTS = jnp.where(mask_BTS[:, None, None], scores.reshape(B, K, N // K, T, S), MASKED)
    weights = jax.nn.softmax(scores_BKGTS, axis=-1).astype(v_BKSH.dtype).reshape(B, K, N // K * T, S)
    out = jnp.einsum("bkrs,bksh->bkrh", weights, v_BKSH, preferred_element_type=jnp.float32)
    return out.astype(q_BNTH.dtype).reshape(B, N, T, H)


def _choose(q_BNTH: Array, mesh: Mesh | None) -> str:
    """Blocks where a row divides into several of them, the plain matrix where it is short."""
    _, _, T, H = q_BNTH.shape
    size = block_size(T)
    if size is None or 2 * size > T:
        return "dense"
    # the mesh's platform, not the host's: a step can be compiled for hardware that is not there
    name = f"pallas_{mesh.devices.flat[0].platform}" if mesh is not None else ""
    return name if H in HEAD_DIMS and has_kernel(name) else "blockwise"


def _check_kernel(name: str, q_BNTH: Array, k_BKTH: Array, fits_mesh: bool) -> None:
    _, N, T, H = q_BNTH.shape
    problem = ""
    if T % 128:
        problem = f"rows of a multiple of 128 tokens, not {T} (data.row_length)"
    elif H not in HEAD_DIMS:
        problem = f"heads of {', '.join(map(str, HEAD_DIMS))} numbers, not {H}"
    elif not fits_mesh:
        problem = f"a mesh that divides rows and heads ({N} query, {k_BKTH.shape[1]} key heads over axis tensor)"
    if problem:
        raise ConfigError(f"attention {name!r} needs {problem}; choose 'auto' instead")
