"""Encoders of the BERT family: parameters declared with Flax NNX, the forward pass a pure function of their tree.

BERT (Devlin et al. 2019, post-norm layers, learned positions) and RoBERTa (the same with other positions). Layers are
stacked along a leading axis L; kernels are [in, out], tables [rows, D]:

    embedding/word/kernel [V, D], position/kernel [positions, D], segment/kernel [segments, D], norm/{scale, bias} [D]
    layers/attention/{query, key, value, output}/{kernel [L, D, D], bias [L, D]}
    layers/attention_norm/{scale, bias}, layers/mlp_norm/{scale, bias} [L, D]
    layers/mlp/up/{kernel [L, D, F], bias}, layers/mlp/down/{kernel [L, F, D], bias}

Training may keep the first layers apart, in lower_layers/... of the same form: what is not trained costs no backward.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from empathax.models.attention.tree_layout import MASKED
from empathax.models.layers import linear
from empathax.models.primitives import ACTIVATIONS, scaled_rms
from empathax.models.transformer import Declare, Linear, Table, declarer

Params = dict[str, Any]


@dataclass(frozen=True)
class EncoderConfig:
    """An encoder's shape. Hashable, so it can be a static argument of a jitted function."""

    family: str  # "bert" or "roberta": names tensors and special tokens
    vocab_size: int
    num_layers: int
    model_dim: int
    ff_dim: int
    num_heads: int
    num_positions: int  # rows of the position table
    num_segments: int
    norm_eps: float
    activation: str  # of models/primitives.py
    position_offset: int = 0  # row of the first token's position: RoBERTa starts after its padding id
    initializer_range: float = 0.02

    @property
    def max_tokens(self) -> int:
        """The longest input."""
        return self.num_positions - self.position_offset


class LayerNorm(nnx.Module):
    """Scale and bias of a layer norm."""

    def __init__(self, shape: tuple[int, ...], axes: tuple[str, ...], declare: Declare):
        self.scale = declare(shape, axes, "ones")
        self.bias = declare(shape, axes, "zeros")


class EncoderEmbedding(nnx.Module):
    """Word, position and segment embeddings, and the norm of their sum."""

    def __init__(self, config: EncoderConfig, declare: Declare):
        self.word = Table((config.vocab_size, config.model_dim), ("vocab", "embed"), declare)
        self.position = Table((config.num_positions, config.model_dim), ("position", "embed"), declare)
        self.segment = Table((config.num_segments, config.model_dim), ("segment", "embed"), declare)
        self.norm = LayerNorm((config.model_dim,), ("embed",), declare)


class EncoderAttention(nnx.Module):
    """Query, key, value and output projections of all layers."""

    def __init__(self, config: EncoderConfig, declare: Declare):
        shape = (config.num_layers, config.model_dim, config.model_dim)
        self.query = Linear(shape, ("layer", "embed", "heads"), True, declare)
        self.key = Linear(shape, ("layer", "embed", "heads"), True, declare)
        self.value = Linear(shape, ("layer", "embed", "heads"), True, declare)
        self.output = Linear(shape, ("layer", "heads", "embed"), True, declare)


class EncoderMlp(nnx.Module):
    """Up and down projections of all layers."""

    def __init__(self, config: EncoderConfig, declare: Declare):
        L, D, F = config.num_layers, config.model_dim, config.ff_dim
        self.up = Linear((L, D, F), ("layer", "embed", "ff"), True, declare)
        self.down = Linear((L, F, D), ("layer", "ff", "embed"), True, declare)


class EncoderLayers(nnx.Module):
    """All encoder layers, stacked."""

    def __init__(self, config: EncoderConfig, declare: Declare):
        shape, axes = (config.num_layers, config.model_dim), ("layer", "embed")
        self.attention = EncoderAttention(config, declare)
        self.attention_norm = LayerNorm(shape, axes, declare)
        self.mlp = EncoderMlp(config, declare)
        self.mlp_norm = LayerNorm(shape, axes, declare)


class Encoder(nnx.Module):
    """Every parameter of an encoder, each declared once with shape, initializer and logical axes."""

    def __init__(self, config: EncoderConfig, *, rngs: nnx.Rngs, param_dtype: jnp.dtype = jnp.float32):
        declare = declarer(config.initializer_range, rngs, param_dtype)
        self.config = config
        self.embedding = EncoderEmbedding(config, declare)
        self.layers = EncoderLayers(config, declare)


def abstract_encoder(config: EncoderConfig, param_dtype: jnp.dtype = jnp.float32) -> Params:
    """The parameter tree as `jax.ShapeDtypeStruct`s; allocates nothing."""
    model = nnx.eval_shape(lambda: Encoder(config, rngs=nnx.Rngs(0), param_dtype=param_dtype))
    return nnx.to_pure_dict(nnx.state(model, nnx.Param))


def token_states(
    params: Params,
    config: EncoderConfig,
    token_ids_BT: Int[Array, "B T"],
    mask_BT: Bool[Array, "B T"],
    segment_ids_BT: Int[Array, "B T"] | None = None,
    *,
    compute_dtype: jnp.dtype = jnp.float32,
) -> Float[Array, "B T D"]:
    """The last layer's state of every token, in the compute dtype; norms and softmax are float32.

    `mask_BT` is true at real tokens, which come first in each row; states elsewhere mean nothing. Segment ids
    are 0 if not given, and ignored by encoders with one segment. Rows are at most `config.max_tokens` long.
    """
    x_BTD = _embed(params["embedding"], config, token_ids_BT, segment_ids_BT, compute_dtype)

    def layer_step(x_BTD: Array, layer: Params) -> tuple[Array, None]:
        attended_BTD = _attention(layer["attention"], config, x_BTD, mask_BT)
        x_BTD = _layer_norm(layer["attention_norm"], config, x_BTD + attended_BTD)
        hidden_BTF = ACTIVATIONS[config.activation](linear(layer["mlp"]["up"], x_BTD))
        return _layer_norm(layer["mlp_norm"], config, x_BTD + linear(layer["mlp"]["down"], hidden_BTF)), None

    for stack in ("lower_layers", "layers"):
        if stack in params:
            x_BTD, _ = jax.lax.scan(layer_step, x_BTD, params[stack])
    return x_BTD


def mean_pooled(x_BTD: Float[Array, "B T D"], mask_BT: Bool[Array, "B T"]) -> Float[Array, "B D"]:
    """The mean state of the tokens in the mask, in float32; zeros for a row without any."""
    weights_BT = mask_BT.astype(jnp.float32)
    total_BD = jnp.einsum("btd,bt->bd", x_BTD.astype(jnp.float32), weights_BT)
    return total_BD / jnp.maximum(weights_BT.sum(axis=1, keepdims=True), 1.0)


def normalised(x: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
    """x at Euclidean length 1, in float32; zeros stay zeros."""
    x = x.astype(jnp.float32)
    return x * jax.lax.rsqrt(jnp.maximum(jnp.sum(x * x, axis=-1, keepdims=True), 1e-24))


def _embed(
    weights: Params, config: EncoderConfig, token_ids_BT: Array, segment_ids_BT: Array | None, compute_dtype: jnp.dtype
) -> Array:
    num_tokens = token_ids_BT.shape[1]
    if num_tokens > config.max_tokens:
        raise ValueError(f"rows of {num_tokens} tokens, but the encoder has positions for {config.max_tokens}")
    segments = jnp.zeros_like(token_ids_BT) if segment_ids_BT is None else segment_ids_BT
    segments = jnp.minimum(segments, config.num_segments - 1)
    x_BTD = jnp.take(weights["word"]["kernel"], token_ids_BT, axis=0, mode="fill")
    x_BTD += weights["position"]["kernel"][config.position_offset : config.position_offset + num_tokens]
    x_BTD += jnp.take(weights["segment"]["kernel"], segments, axis=0, mode="fill")
    return _layer_norm(weights["norm"], config, x_BTD).astype(compute_dtype)


def _layer_norm(norm: Params, config: EncoderConfig, x: Array) -> Array:
    wide = x.astype(jnp.float32)
    # a mean as a product: the CPU backend's plain reductions take several times as long
    mean = jnp.einsum("...d,d->...", wide, jnp.full(x.shape[-1], 1.0 / x.shape[-1]))
    normed = scaled_rms(wide - mean[..., None], norm["scale"], config.norm_eps)  # of centred values: a layer norm
    return (normed + norm["bias"]).astype(x.dtype)


def _attention(weights: Params, config: EncoderConfig, x_BTD: Array, mask_BT: Array) -> Array:
    B, T, D = x_BTD.shape
    split = lambda name: linear(weights[name], x_BTD).reshape(B, T, config.num_heads, -1)  # noqa: E731
    q_BTNH, k_BSNH, v_BSNH = split("query"), split("key"), split("value")
    scores_BNTS = jnp.einsum("btnh,bsnh->bnts", q_BTNH, k_BSNH, preferred_element_type=jnp.float32)
    scores_BNTS = scores_BNTS * (D // config.num_heads) ** -0.5
    scores_BNTS = jnp.where(mask_BT[:, None, None, :], scores_BNTS, MASKED)
    shares_BNTS = jax.nn.softmax(scores_BNTS, axis=-1).astype(x_BTD.dtype)
    mixed_BTD = jnp.einsum("bnts,bsnh->btnh", shares_BNTS, v_BSNH).reshape(B, T, D)
    return linear(weights["output"], mixed_BTD)
