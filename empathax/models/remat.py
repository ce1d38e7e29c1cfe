"""What the backward pass keeps of each layer's forward pass, and where: policies of jax.checkpoint by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import Mesh

from empathax.config.options import REMAT_POLICIES
from empathax.errors import ConfigError
from empathax.models.attention.flash import SAVED_NAMES

HOST_MEMORY = "pinned_host"
_INPUT_NAME = "layer_input"


def rematerialized(layer_step: Callable[..., Any], remat: str, mesh: Mesh | None = None) -> Callable[..., Any]:
    """`layer_step(x, scanned)` for jax.lax.scan, with `remat` saying what is kept for the backward pass:

    "none" everything; "full" the layer's input; "attention" also attention's result and log-sum-exp, so that it does
    not run again; "dots" also the results of the weight matmuls; "offload" and "offload_dots" keep what "full" and
    "dots" do, in the host's memory. Raises ConfigError for another name, and for "offload..." if the devices of `mesh`
    (None: of this process) cannot reach the host's memory.
    """
    if remat not in REMAT_POLICIES:
        raise ConfigError(f"remat {remat!r} does not exist: choose one of {', '.join(map(repr, REMAT_POLICIES))}")
    if remat == "none":
        return layer_step
    offloads = remat.startswith("offload")
    if offloads:
        _check_host_memory(remat, jax.devices()[0] if mesh is None else mesh.devices.flat[0])

    def named_step(x: jax.Array, scanned: Any) -> Any:
        return layer_step(checkpoint_name(x, _INPUT_NAME) if offloads else x, scanned)

    # within a scan the loop itself keeps XLA from undoing the recomputation
    return jax.checkpoint(named_step, policy=_policy(remat), prevent_cse=False)


def _policy(remat: str) -> Callable[..., Any]:
    keep = jax.checkpoint_policies
    attention = keep.save_only_these_names(*SAVED_NAMES)
    on_device = {
        "full": keep.nothing_saveable,
        "attention": attention,
        "dots": keep.save_from_both_policies(keep.dots_with_no_batch_dims_saveable, attention),
    }
    if remat in on_device:
        return on_device[remat]
    where = {"offload_src": "device", "offload_dst": HOST_MEMORY}
    names = [_INPUT_NAME] if remat == "offload" else [_INPUT_NAME, *SAVED_NAMES]
    named = keep.save_and_offload_only_these_names(
        names_which_can_be_saved=[], names_which_can_be_offloaded=names, **where
    )
    if remat == "offload":
        return named
    dots = keep.offload_dot_with_no_batch_dims(**where)
    return lambda primitive, *args, **params: (
        named(primitive, *args, **params) if "name" in params else dots(primitive, *args, **params)
    )


def _check_host_memory(remat: str, device: jax.Device) -> None:
    try:
        memories = [memory.kind for memory in device.addressable_memories()]
    except (NotImplementedError, jax.errors.JaxRuntimeError):
        return
    if memories and HOST_MEMORY not in memories:  # hardware that is not attached may say nothing
        raise ConfigError(
            f"model.remat = {remat!r} keeps activations in the host's memory ({HOST_MEMORY}), which devices of kind "
            f"{device.device_kind!r} do not reach (they have {', '.join(memories)}): choose "
            f"{remat.removeprefix('offload').strip('_') or 'full'!r}"
        )
