"""The arithmetic of one decoder layer, as pure functions of a parameter tree (see transformer.py) and activations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from empathax.models.architecture.model_config import ModelConfig
from empathax.models.attention.tree_layout import NO_WINDOW, Window
from empathax.models.lora.low_rank import add_adapters
from empathax.models.lora.quantized import product
from empathax.models.primitives import gated, matmul_few_rows, scaled_rms
from empathax.models.rope import apply_rope, rope_tables

Params = dict[str, Any]
Kept = TypeVar("Kept")
Tables = tuple[Array, Array]  # cosines and sines, [B, T, H / 2] float32
# (query [B, N, T, H], key [B, K, T, H], value [B, K, T, H]) -> (output [B, N, T, H], what the caller wants back)
Attend = Callable[[Array, Array, Array], tuple[Array, Kept]]


def embed(
    params: Params, config: ModelConfig, token_ids_BT: Int[Array, "*B"], compute_dtype: jnp.dtype
) -> Float[Array, "*B D"]:
    """Token embeddings in the compute dtype; an id outside the vocabulary gives NaN, never another token."""
    x_BTD = jnp.take(params["embedding"]["kernel"], token_ids_BT, axis=0, mode="fill").astype(compute_dtype)
    if config.embedding_scale == 1.0:
        return x_BTD
    return x_BTD * jnp.asarray(config.embedding_scale, compute_dtype)


class LayerKinds:
    """What differs between the layers of one model: window and rope. Scanned only where it does differ."""

    def __init__(self, config: ModelConfig, positions_BT: Int[Array, "B T"]):
        self._config = config
        self._wide = rope_tables(config.rope, positions_BT, config.head_dim)
        self._local = rope_tables(config.local_rope, positions_BT, config.head_dim) if config.local_rope else None

    @property
    def windows_L(self) -> Int[Array, " L"] | None:
        """The windows for `jax.lax.scan` to hand out; None if all layers have the same."""
        if len(set(self._config.windows)) == 1:
            return None
        return jnp.asarray([window or NO_WINDOW for window in self._config.windows], jnp.int32)

    def of_layer(self, index: int) -> tuple[int, Tables]:
        """The window and rope tables of layer `index`, where layers are not scanned."""
        window = self._config.windows[index]
        return window, self._local if self._local and window else self._wide

    def window_and_tables(self, window: Int[Array, ""] | None) -> tuple[Window, Tables]:
        """The window and rope tables of the layer that was handed `window`."""
        if window is None:
            return self.of_layer(0)
        if self._local is None:
            return window, self._wide
        is_local = window != NO_WINDOW
        cos, sin = (jnp.where(is_local, local, wide) for local, wide in zip(self._local, self._wide, strict=True))
        return window, (cos, sin)


def decoder_layer(
    layer: Params,
    config: ModelConfig,
    x_BTD: Float[Array, "B T D"],
    tables: Tables,
    attend: Attend[Kept],
) -> tuple[Float[Array, "B T D"], Kept]:
    """One layer: attention and MLP, each normed before (and, in Gemma 2 and 3, after) and added to the residual."""
    normed_BTD = rms_norm(layer["attention_norm"], config, x_BTD)
    q_BNTH, k_BKTH, v_BKTH = _project_qkv(layer["attention"], config, normed_BTD, tables)
    attended_BNTH, kept = attend(q_BNTH, k_BKTH, v_BKTH)
    attended_BTD = linear(layer["attention"]["output"], _merge_heads(attended_BNTH))
    if config.post_norms:
        attended_BTD = rms_norm(layer["post_attention_norm"], config, attended_BTD)
    x_BTD = x_BTD + attended_BTD

    mlp_BTD = _gated_mlp(layer["mlp"], config, rms_norm(layer["mlp_norm"], config, x_BTD))
    if config.post_norms:
        mlp_BTD = rms_norm(layer["post_mlp_norm"], config, mlp_BTD)
    return x_BTD + mlp_BTD, kept


def rms_norm(norm: Params, config: ModelConfig, x: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
    """x / rms(x) times scale (or 1 + scale) over the last axis, in float32."""
    scale_D = norm["scale"].astype(jnp.float32)
    return scaled_rms(x, 1.0 + scale_D if config.unit_offset_norm else scale_D, config.norm_eps)


def linear(weights: Params, x: Float[Array, "*B I"]) -> Float[Array, "*B O"]:
    """x @ kernel (+ adapters, + bias) in the dtype of x.

    The kernel may be in parts (`kv_cache.split_layers`) or in codes (lora/quantized.py).
    """
    out = matmul_few_rows(x, weights["parts"]) if "parts" in weights else product(weights, x)
    if "lora" in weights:
        out = add_adapters(out, weights, x)
    return out + weights["bias"].astype(x.dtype) if "bias" in weights else out


def _project_qkv(weights: Params, config: ModelConfig, x_BTD: Array, tables: Tables) -> tuple[Array, Array, Array]:
    q_BNTH = _split_heads(linear(weights["query"], x_BTD), config.num_heads)
    k_BKTH = _split_heads(linear(weights["key"], x_BTD), config.num_kv_heads)
    v_BKTH = _split_heads(linear(weights["value"], x_BTD), config.num_kv_heads)
    if config.qk_norm:
        q_BNTH = rms_norm(weights["query_norm"], config, q_BNTH)
        k_BKTH = rms_norm(weights["key_norm"], config, k_BKTH)
    return apply_rope(q_BNTH, *tables), apply_rope(k_BKTH, *tables), v_BKTH


def _split_heads(x_BTI: Array, num_heads: int) -> Array:
    B, T, width = x_BTI.shape
    return x_BTI.reshape(B, T, num_heads, width // num_heads).swapaxes(1, 2)


def _merge_heads(x_BNTH: Array) -> Array:
    B, N, T, H = x_BNTH.shape
    return x_BNTH.swapaxes(1, 2).reshape(B, T, N * H)


def _gated_mlp(weights: Params, config: ModelConfig, x_BTD: Array) -> Array:
    gate_BTF, up_BTF = linear(weights["gate"], x_BTD), linear(weights["up"], x_BTD)
    return linear(weights["down"], gated(config.activation, gate_BTF, up_BTF))
