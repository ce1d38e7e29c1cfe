"""Decoding with a key/value cache: `prefill` reads left-padded prompts, `decode_step` adds one token to every row.

Both are pure and keep every shape, so `decode_step` runs inside `jax.lax.while_loop`:

    cache = init_cache(config, batch=B, length=T + max_new_tokens, dtype=jnp.float32)
    hidden_BD, cache = prefill(params, config, token_ids_BT, lengths_B, cache)
    next_id_B = jnp.argmax(project_logits(params, config, hidden_BD), axis=-1)
    hidden_BD, cache = decode_step(params, config, next_id_B, cache)

Prompts are left-padded: row b's tokens are token_ids_BT[b, T - lengths_B[b]:]. All rows then write the same slot at
the same step. Padding is never seen by a token, whatever its id.
"""

from __future__ import annotations

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from empathax.models.attention import Window, masked_attention
from empathax.models.attention import attention as tree_attention
from empathax.models.layers import LayerKinds, Params, decoder_layer, embed, rms_norm
from empathax.models.model_config import ModelConfig

_EMPTY = -1


@flax.struct.dataclass
class Cache:
    """Rotated keys and values of the S slots of each row; slots fill from 0, the same ones in every row."""

    key_LBKSH: Float[Array, "L B K S H"]
    value_LBKSH: Float[Array, "L B K S H"]
    position_BS: Int[Array, "B S"]  # position of the token in each slot; -1: padding or not yet filled
    next_position_B: Int[Array, " B"]  # position of the row's next token = its tokens so far
    num_filled: Int[Array, ""]  # the slot that the next token takes


def init_cache(config: ModelConfig, batch: int, length: int, dtype: jnp.dtype = jnp.float32) -> Cache:
    """An empty cache of `length` slots a row: padded prompt and every token to be added."""
    shape = (config.num_layers, batch, config.num_kv_heads, length, config.head_dim)
    return Cache(
        key_LBKSH=jnp.zeros(shape, dtype),
        value_LBKSH=jnp.zeros(shape, dtype),
        position_BS=jnp.full((batch, length), _EMPTY, jnp.int32),
        next_position_B=jnp.zeros((batch,), jnp.int32),
        num_filled=jnp.zeros((), jnp.int32),
    )


def prefill(
    params: Params,
    config: ModelConfig,
    token_ids_BT: Int[Array, "B T"],
    lengths_B: Int[Array, " B"],
    cache: Cache,
    *,
    compute_dtype: jnp.dtype = jnp.float32,
    attention: str = "auto",
) -> tuple[Float[Array, "B D"], Cache]:
    """Reads left-padded prompts into an empty cache; returns the hidden state of each prompt's last token.

    `lengths_B` counts the tokens of each prompt, at least 1; T must not exceed the cache's slots.
    """
    T, num_slots = token_ids_BT.shape[1], cache.position_BS.shape[1]
    if num_slots < T:
        raise ValueError(
            f"the prompts have {T} tokens but the cache {num_slots} slots: give init_cache a larger length"
        )
    offset_BT = jnp.arange(T, dtype=jnp.int32) - (T - lengths_B[:, None])
    is_token_BT = offset_BT >= 0
    positions_BT = jnp.maximum(offset_BT, 0)
    # padding is a tree of one token: it sees itself only, and no token sees it
    subtree_end_BT = jnp.where(is_token_BT, T, jnp.arange(1, T + 1, dtype=jnp.int32))
    kinds = LayerKinds(config, positions_BT)

    def layer_step(x_BTD: Array, scanned: tuple[Params, Array | None]) -> tuple[Array, tuple[Array, Array]]:
        layer, scanned_window = scanned
        window, tables = kinds.window_and_tables(scanned_window)

        def attend(q_BNTH: Array, k_BKTH: Array, v_BKTH: Array) -> tuple[Array, tuple[Array, Array]]:
            out_BNTH = tree_attention(
                q_BNTH,
                k_BKTH,
                v_BKTH,
                positions_BT=positions_BT,
                subtree_end_BT=subtree_end_BT,
                window=window,
                softcap=config.attention_softcap,
                scale=config.query_scale,
                implementation=attention,
            )
            return out_BNTH, (k_BKTH.astype(cache.key_LBKSH.dtype), v_BKTH.astype(cache.value_LBKSH.dtype))

        return decoder_layer(layer, config, x_BTD, tables, attend)

    x_BTD = embed(params, config, token_ids_BT, compute_dtype)
    x_BTD, (key_LBKTH, value_LBKTH) = jax.lax.scan(layer_step, x_BTD, (params["layers"], kinds.windows_L))
    cache = Cache(
        key_LBKSH=cache.key_LBKSH.at[:, :, :, :T].set(key_LBKTH),
        value_LBKSH=cache.value_LBKSH.at[:, :, :, :T].set(value_LBKTH),
        position_BS=cache.position_BS.at[:, :T].set(jnp.where(is_token_BT, positions_BT, _EMPTY)),
        next_position_B=lengths_B.astype(jnp.int32),
        num_filled=jnp.asarray(T, jnp.int32),
    )
    return rms_norm(params["final_norm"], config, x_BTD[:, -1]), cache


def decode_step(
    params: Params,
    config: ModelConfig,
    token_ids_B: Int[Array, " B"],
    cache: Cache,
    *,
    compute_dtype: jnp.dtype = jnp.float32,
) -> tuple[Float[Array, "B D"], Cache]:
    """Appends one token to every row; returns its hidden state after the final norm.

    The caller counts steps: a step beyond the cache's last slot would overwrite it. With dynamic rope, cached keys
    keep the rotation of the step that wrote them, as in transformers' `generate`.
    """
    slot = cache.num_filled
    positions_B1 = cache.next_position_B[:, None]
    position_BS = jax.lax.dynamic_update_slice(cache.position_BS, positions_B1, (0, slot))
    kinds = LayerKinds(config, positions_B1)

    def layer_step(
        carry: tuple[Array, Array, Array], scanned: tuple[Params, Array | None, Array]
    ) -> tuple[tuple[Array, Array, Array], None]:
        x_B1D, key_LBKSH, value_LBKSH = carry
        layer, scanned_window, index = scanned
        window, tables = kinds.window_and_tables(scanned_window)
        mask_B1S = _visible(position_BS, cache.next_position_B, window)[:, None]

        def attend(q_BN1H: Array, k_BK1H: Array, v_BK1H: Array) -> tuple[Array, tuple[Array, Array]]:
            keys = _write(key_LBKSH, k_BK1H, index, slot)
            values = _write(value_LBKSH, v_BK1H, index, slot)
            k_BKSH, v_BKSH = (_layer_of(stack, index).astype(q_BN1H.dtype) for stack in (keys, values))
            out = masked_attention(q_BN1H, k_BKSH, v_BKSH, mask_B1S, config.attention_softcap, config.query_scale)
            return out, (keys, values)

        x_B1D, (key_LBKSH, value_LBKSH) = decoder_layer(layer, config, x_B1D, tables, attend)
        return (x_B1D, key_LBKSH, value_LBKSH), None

    x_B1D = embed(params, config, token_ids_B[:, None], compute_dtype)
    scanned = (params["layers"], kinds.windows_L, jnp.arange(config.num_layers))
    # the cache is carried, not scanned: scan would copy it whole at every step
    carry, _ = jax.lax.scan(layer_step, (x_B1D, cache.key_LBKSH, cache.value_LBKSH), scanned)
    x_B1D, key_LBKSH, value_LBKSH = carry
    cache = Cache(
        key_LBKSH=key_LBKSH,
        value_LBKSH=value_LBKSH,
        position_BS=position_BS,
        next_position_B=cache.next_position_B + 1,
        num_filled=slot + 1,
    )
    return rms_norm(params["final_norm"], config, x_B1D[:, 0]), cache


def _visible(position_BS: Array, position_B: Array, window: Window) -> Array:
    is_filled_BS = position_BS != _EMPTY
    if isinstance(window, int) and window == 0:
        return is_filled_BS
    return is_filled_BS & (position_B[:, None] - position_BS < window)


def _write(stack_LBKSH: Array, new_BK1H: Array, layer: Array, slot: Array) -> Array:
    start = (layer, 0, 0, slot, 0)
    return jax.lax.dynamic_update_slice(stack_LBKSH, new_BK1H[None].astype(stack_LBKSH.dtype), start)


def _layer_of(stack_LBKSH: Array, layer: Array) -> Array:
    return jax.lax.dynamic_index_in_dim(stack_LBKSH, layer, axis=0, keepdims=False)
