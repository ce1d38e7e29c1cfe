"""Decoding with a key/value cache: `decode_step` adds one token to every row.

It is pure and keeps every shape, so it runs inside `jax.lax.while_loop`. evaluation/generation has both sides of it:
`prefill_tree` reads prompts into a cache, `generate` is the loop.

Prompts are left-padded: row b's tokens are in the slots from S - lengths_B[b] to S - 1. All rows then write the same
slot at the same step. Padding is never seen by a token.
"""

from __future__ import annotations

import os

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from empathax.models.architecture.model_config import ModelConfig
from empathax.models.attention.dispatch import masked_attention
from empathax.models.attention.tree_layout import Window
from empathax.models.layers import LayerKinds, Params, decoder_layer, embed, rms_norm
from empathax.models.lora.low_rank import merged_kernel
from empathax.models.primitives import split_kernel, split_rows
from empathax.models.transformer import output_projection

_EMPTY = -1
_PART = 256  # outputs of a kernel that are worth a core of their own


@flax.struct.dataclass
class Cache:
    """Rotated keys and values of the S slots of each row; slots fill from 0, the same ones in every row.

    One array a layer: of a stack of layers, each step would copy what it reads. Keys lie as a step's product with the
    queries reads them, slots last.
    """

    keys: tuple[Float[Array, "B K H S"], ...]  # by layer
    values: tuple[Float[Array, "B K S H"], ...]
    position_BS: Int[Array, "B S"]  # position of the token in each slot; -1: padding or not yet filled
    next_position_B: Int[Array, " B"]  # position of the row's next token = its tokens so far
    num_filled: Int[Array, ""]  # the slot that the next token takes


def filled_cache(
    key_LBKSH: Float[Array, "L B K S H"],
    value_LBKSH: Float[Array, "L B K S H"],
    lengths_B: Int[Array, " B"],
    num_new: int,
) -> Cache:
    """A cache that holds left-padded prompts in its first S slots, with room for `num_new` more tokens a row.

    `lengths_B` counts the tokens of each prompt, at least 1.
    """
    _, B, K, S, H = key_LBKSH.shape
    dtype, length = key_LBKSH.dtype, S + num_new
    keys = [jnp.zeros((B, K, H, length), dtype).at[..., :S].set(new) for new in key_LBKSH.swapaxes(3, 4)]
    values = [jnp.zeros((B, K, length, H), dtype).at[:, :, :S].set(new) for new in value_LBKSH]
    offset_BS = jnp.arange(S, dtype=jnp.int32) - (S - lengths_B[:, None])
    return Cache(
        keys=tuple(keys),
        values=tuple(values),
        position_BS=jnp.full((B, length), _EMPTY, jnp.int32).at[:, :S].set(jnp.maximum(offset_BS, _EMPTY)),
        next_position_B=lengths_B.astype(jnp.int32),
        num_filled=jnp.int32(S),
    )


def decode_step(
    params: Params,
    config: ModelConfig,
    token_ids_B: Int[Array, " B"],
    cache: Cache,
    *,
    compute_dtype: jnp.dtype = jnp.float32,
) -> tuple[Float[Array, "B D"], Cache]:
    """Appends one token to every row; returns its hidden state after the final norm.

    `params` may come from `split_layers`. The caller counts steps: a step beyond the cache's last slot would overwrite
    it. With dynamic rope, cached keys keep the rotation of the step that wrote them, as in transformers' `generate`.
    """
    slot = cache.num_filled
    positions_B1 = cache.next_position_B[:, None]
    position_BS = jax.lax.dynamic_update_slice(cache.position_BS, positions_B1, (0, slot))
    kinds = LayerKinds(config, positions_B1)

    x_B1D = embed(params, config, token_ids_B[:, None], compute_dtype)
    keys, values = [], []
    # layers one by one, not scanned: a scan copies each layer's weights and cache out of their stacks at every step
    for index in range(config.num_layers):
        window, tables = kinds.of_layer(index)
        mask_B1S = _visible(position_BS, cache.next_position_B, window)[:, None]

        def attend(
            q_BN1H: Array, k_BK1H: Array, v_BK1H: Array, *, index: int = index, mask_B1S: Array = mask_B1S
        ) -> tuple[Array, tuple[Array, Array]]:
            k_BKHS = _write(cache.keys[index], k_BK1H.swapaxes(2, 3), (0, 0, 0, slot))
            v_BKSH = _write(cache.values[index], v_BK1H, (0, 0, slot, 0))
            seen_k_BKSH, seen_v_BKSH = k_BKHS.swapaxes(2, 3).astype(q_BN1H.dtype), v_BKSH.astype(q_BN1H.dtype)
            softcap, scale = config.attention_softcap, config.query_scale
            return masked_attention(q_BN1H, seen_k_BKSH, seen_v_BKSH, mask_B1S, softcap, scale), (k_BKHS, v_BKSH)

        layer = _layer(params["layers"], index)
        x_B1D, (k_BKHS, v_BKSH) = decoder_layer(layer, config, x_B1D, tables, attend)
        keys.append(k_BKHS)
        values.append(v_BKSH)
    cache = Cache(
        keys=tuple(keys),
        values=tuple(values),
        position_BS=position_BS,
        next_position_B=cache.next_position_B + 1,
        num_filled=slot + 1,
    )
    return rms_norm(params["final_norm"], config, x_B1D[:, 0]), cache


def split_layers(params: Params, config: ModelConfig, compute_dtype: jnp.dtype, platform: str) -> Params:
    """Parameters for many calls of `decode_step` and `project_logits` in one loop, if `platform` is "cpu".

    A tree for each layer: the CPU backend copies a layer's weights out of their stack wherever they are used. So they
    are copied once, before the loop; in float32 as `matmul_few_rows` takes them, a part for each core, and the
    vocabulary kernel with them. Elsewhere a slice costs nothing, and the copy would need its memory.
    """
    if platform != "cpu":
        return params
    layers = tuple(_layer(params["layers"], index) for index in range(config.num_layers))
    if compute_dtype != jnp.float32:
        return {**params, "layers": layers}
    kernel_VD = output_projection(params, config)
    output_parts = split_rows(kernel_VD, _num_parts(kernel_VD.shape[0]))
    return {**params, "layers": tuple(map(_in_parts, layers)), "output_parts": output_parts}


def _in_parts(weights: Params) -> Params:
    """The same layer, each kernel, its adapters added in, as the parts that `linear` takes."""
    if "kernel" not in weights:
        return {name: _in_parts(value) if isinstance(value, dict) else value for name, value in weights.items()}
    kernel = merged_kernel(weights) if "lora" in weights else weights["kernel"]
    parts = split_kernel(kernel, _num_parts(kernel.shape[1]))
    return {"parts": parts, **{name: value for name, value in weights.items() if name not in ("kernel", "lora")}}


def _num_parts(num_outputs: int) -> int:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(cores, num_outputs // _PART))


def _layer(layers: Params | tuple[Params, ...], index: int) -> Params:
    if isinstance(layers, tuple):
        return layers[index]
    return jax.tree.map(lambda stack: stack[index], layers)


def _visible(position_BS: Array, position_B: Array, window: Window) -> Array:
    is_filled_BS = position_BS != _EMPTY
    if isinstance(window, int) and window == 0:
        return is_filled_BS
    return is_filled_BS & (position_B[:, None] - position_BS < window)


def _write(slots: Array, new: Array, start: tuple[Array | int, ...]) -> Array:
    return jax.lax.dynamic_update_slice(slots, new.astype(slots.dtype), start)
