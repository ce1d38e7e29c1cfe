"""Memory-linear attention: one gradient rule over interchangeable kernels, split over the mesh.

A kernel is a pair of functions. `forward` gives the result and each query's log-sum-exp; `backward` recomputes the
weights from that (Dao 2023, "FlashAttention-2", section 3.1), so that no T x T array is ever kept.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from functools import partial
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Float

from empathax.config.options import ATTENTION_IMPLEMENTATIONS
from empathax.models.attention.tree_layout import ScoreOptions, TreeLayout

KERNELS = ATTENTION_IMPLEMENTATIONS[2:]  # "blockwise" and the Pallas kernels
HEAD_DIMS = (64, 128, 256)  # of the Pallas kernels
BATCH_AXES = ("data", "fsdp")  # the mesh axes of rows and of heads; parallel/rules.py puts them there
HEAD_AXIS = "tensor"
SAVED_NAMES = ("attention_out", "attention_logsumexp")  # for policies of jax.checkpoint


@dataclass(frozen=True)
class Plan:
    """What is known of a call when it is traced."""

    kernel: str  # one of KERNELS
    options: ScoreOptions
    mesh: Mesh | None = None  # split the work over it; None = the arrays lie on one device, or XLA partitions


def divides(mesh: Mesh, batch: int, num_heads: int, num_kv_heads: int) -> bool:
    """True if rows and heads can be split evenly over the mesh."""
    sizes = dict(mesh.shape)
    rows, heads = np.prod([sizes.get(axis, 1) for axis in BATCH_AXES]), sizes.get(HEAD_AXIS, 1)
    return not (batch % rows or num_heads % heads or num_kv_heads % heads)


def _load_kernel(name: str) -> ModuleType:
    """The module of kernel `name` ("pallas_tpu" is tpu.py).

    It is imported on first use: Pallas is slow to import, and its back ends come and go.
    """
    return importlib.import_module(f"empathax.models.attention.{name.removeprefix('pallas_')}")


def has_kernel(name: str) -> bool:
    """True if `name` is a kernel that the installed jax can build."""
    if name not in KERNELS:
        return False
    try:
        _load_kernel(name)
    except ImportError:
        return False
    return True


def flash_attention(
    q_BNTH: Float[Array, "B N T H"],
    k_BKTH: Float[Array, "B K T H"],
    v_BKTH: Float[Array, "B K T H"],
    layout: TreeLayout,
    plan: Plan,
) -> Float[Array, "B N T H"]:
    """Attention by `plan.kernel`, differentiable in q, k and v."""
    return _attend(q_BNTH, k_BKTH, v_BKTH, layout.traced(), plan)


@partial(jax.custom_vjp, nondiff_argnums=(4,))
def _attend(q_BNTH: Array, k_BKTH: Array, v_BKTH: Array, layout: TreeLayout, plan: Plan) -> Array:
    return _forward(q_BNTH, k_BKTH, v_BKTH, layout, plan)[0]


def _forward(q_BNTH: Array, k_BKTH: Array, v_BKTH: Array, layout: TreeLayout, plan: Plan) -> tuple[Array, Any]:
    run = partial(_load_kernel(plan.kernel).forward, options=plan.options)
    arrays = (q_BNTH, k_BKTH, v_BKTH, layout)
    if plan.mesh is not None:
        run = _on_shards(run, plan.mesh, arrays, num_results=2)
    out_BNTH, lse_BNT = run(*arrays)
    out_BNTH, lse_BNT = (checkpoint_name(x, name) for x, name in zip((out_BNTH, lse_BNT), SAVED_NAMES, strict=True))
    return out_BNTH, (*arrays, out_BNTH, lse_BNT)


def _backward(plan: Plan, residuals: Any, dout_BNTH: Array) -> tuple[Any, ...]:
    q_BNTH, k_BKTH, v_BKTH, layout, out_BNTH, lse_BNT = residuals
    # sum over keys of weight x its gradient, from the result alone (FlashAttention-2, algorithm 2, line 4)
    delta_BNT = jnp.sum(dout_BNTH.astype(jnp.float32) * out_BNTH.astype(jnp.float32), axis=-1)
    run = partial(_load_kernel(plan.kernel).backward, options=plan.options)
    arrays = (q_BNTH, k_BKTH, v_BKTH, layout, lse_BNT, delta_BNT, dout_BNTH)
    if plan.mesh is not None:
        run = _on_shards(run, plan.mesh, arrays, num_results=3)
    no_gradient = jax.tree.map(lambda leaf: np.zeros(leaf.shape, jax.dtypes.float0), layout)
    return *run(*arrays), no_gradient


_attend.defvjp(_forward, _backward)


def _on_shards(run: Any, mesh: Mesh, arrays: tuple[Any, ...], num_results: int) -> Any:
    """`run` on each device's rows and heads: XLA cannot partition a kernel by itself, and need not here."""

    def spec(leaf: Array) -> PartitionSpec:
        rank = len(leaf.shape)  # 0: the window; 2: [B, T]; 3 and 4: [B, heads, ...]
        return PartitionSpec(*(BATCH_AXES, HEAD_AXIS)[: {0: 0, 2: 1}.get(rank, 2)])

    specs = jax.tree.map(spec, arrays)
    results = (PartitionSpec(BATCH_AXES, HEAD_AXIS),) * num_results
    return jax.shard_map(run, mesh=mesh, in_specs=specs, out_specs=results, check_vma=False)
