"""The decoder: its parameters declared with Flax NNX, its forward pass a pure function of their plain tree.

Parameter tree (layers stacked along a leading axis L; kernels are [in, out], the two vocabulary kernels [V, D]):

    embedding/kernel [V, D]
    layers/attention_norm/scale [L, D]
    layers/attention/query/kernel [L, D, N*H]      (+ bias [L, N*H] with attention_bias)
    layers/attention/key/kernel, value/kernel [L, D, K*H]    (+ bias [L, K*H])
    layers/attention/output/kernel [L, N*H, D]     (+ bias [L, D] with output_bias)
    layers/attention/query_norm/scale, key_norm/scale [L, H]    (with qk_norm)
    layers/post_attention_norm/scale, post_mlp_norm/scale [L, D]    (with post_norms)
    layers/mlp_norm/scale [L, D]
    layers/mlp/gate/kernel, up/kernel [L, D, F]; down/kernel [L, F, D]    (+ bias with mlp_bias)
    final_norm/scale [D]
    output/kernel [V, D]    (unless tied_embeddings)

The file declares these parameters, then computes with them: `hidden_states` for training and scoring, `all_layers`
where keys and values are wanted too. On a mesh, rows of activations are split over the axes data and fsdp.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int

from empathax.models.architecture.model_config import ModelConfig
from empathax.models.attention.dispatch import attention
from empathax.models.attention.flash import BATCH_AXES
from empathax.models.attention.tree_layout import TreeLayout
from empathax.models.layers import LayerKinds, Params, decoder_layer, embed, rms_norm
from empathax.models.primitives import matmul_few_rows
from empathax.models.remat import rematerialized


@dataclass(frozen=True)
class ComputeOptions:
    """How a forward pass is computed. Hashable, so it can be a static argument of a jitted function."""

    dtype: Any = jnp.float32  # of activations and of the kernels' copies in products
    remat: str = "none"  # what the backward pass keeps of each layer, one of REMAT_POLICIES: see remat.py
    attention: str = "auto"  # one of ATTENTION_IMPLEMENTATIONS: see attention/dispatch.py
    mesh: Mesh | None = None  # where rows and heads are split; None: XLA decides


FLOAT32 = ComputeOptions()


Declare = Callable[[tuple[int, ...], tuple[str, ...], str], nnx.Param]  # (shape, logical axes, initializer)


def declarer(initializer_range: float, rngs: nnx.Rngs, param_dtype: jnp.dtype) -> Declare:
    """What makes parameters: normal with `initializer_range` for standard deviation, "zeros" or "ones"."""

    def declare(shape: tuple[int, ...], axes: tuple[str, ...], init: str) -> nnx.Param:
        if init == "normal":
            # in float32 first: the same model in every dtype
            value = (jax.random.normal(rngs.params(), shape) * initializer_range).astype(param_dtype)
        else:
            value = jnp.full(shape, float(init == "ones"), param_dtype)
        return nnx.Param(value, logical_axes=axes)

    return declare


class Linear(nnx.Module):
    """One kernel per layer, [L, in, out], and perhaps a bias, [L, out]."""

    def __init__(self, shape: tuple[int, ...], axes: tuple[str, ...], use_bias: bool, declare: Declare):
        self.kernel = declare(shape, axes, "normal")
        if use_bias:
            self.bias = declare((shape[0], shape[-1]), (axes[0], axes[-1]), "zeros")


class RmsNorm(nnx.Module):
    """The scale of an RMS norm; at first it changes nothing."""

    def __init__(self, shape: tuple[int, ...], axes: tuple[str, ...], config: ModelConfig, declare: Declare):
        self.scale = declare(shape, axes, "zeros" if config.unit_offset_norm else "ones")


class Table(nnx.Module):
    """A kernel whose rows are looked up, [V, D] for a vocabulary."""

    def __init__(self, shape: tuple[int, ...], axes: tuple[str, ...], declare: Declare):
        self.kernel = declare(shape, axes, "normal")


class Attention(nnx.Module):
    """Query, key, value and output projections of all layers."""

    def __init__(self, config: ModelConfig, declare: Declare):
        L, D, query, kv = config.num_layers, config.model_dim, config.query_dim, config.kv_dim
        self.query = Linear((L, D, query), ("layer", "embed", "heads"), config.attention_bias, declare)
        self.key = Linear((L, D, kv), ("layer", "embed", "kv_heads"), config.attention_bias, declare)
        self.value = Linear((L, D, kv), ("layer", "embed", "kv_heads"), config.attention_bias, declare)
        self.output = Linear((L, query, D), ("layer", "heads", "embed"), config.output_bias, declare)
        if config.qk_norm:
            self.query_norm = RmsNorm((L, config.head_dim), ("layer", "head_dim"), config, declare)
            self.key_norm = RmsNorm((L, config.head_dim), ("layer", "head_dim"), config, declare)


class Mlp(nnx.Module):
    """Gate, up and down projections of all layers."""

    def __init__(self, config: ModelConfig, declare: Declare):
        L, D, F = config.num_layers, config.model_dim, config.ff_dim
        self.gate = Linear((L, D, F), ("layer", "embed", "ff"), config.mlp_bias, declare)
        self.up = Linear((L, D, F), ("layer", "embed", "ff"), config.mlp_bias, declare)
        self.down = Linear((L, F, D), ("layer", "ff", "embed"), config.mlp_bias, declare)


class Layers(nnx.Module):
    """All decoder layers, stacked."""

    def __init__(self, config: ModelConfig, declare: Declare):
        shape, axes = (config.num_layers, config.model_dim), ("layer", "embed")
        self.attention_norm = RmsNorm(shape, axes, config, declare)
        self.attention = Attention(config, declare)
        self.mlp_norm = RmsNorm(shape, axes, config, declare)
        self.mlp = Mlp(config, declare)
        if config.post_norms:
            self.post_attention_norm = RmsNorm(shape, axes, config, declare)
            self.post_mlp_norm = RmsNorm(shape, axes, config, declare)


class Transformer(nnx.Module):
    """Every parameter of a model, each declared once with shape, initializer and logical axes."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs, param_dtype: jnp.dtype = jnp.float32):
        declare = declarer(config.initializer_range, rngs, param_dtype)
        vocabulary = (config.vocab_size, config.model_dim), ("vocab", "embed")
        self.config = config
        self.embedding = Table(*vocabulary, declare)
        self.layers = Layers(config, declare)
        self.final_norm = RmsNorm((config.model_dim,), ("embed",), config, declare)
        if not config.tied_embeddings:
            self.output = Table(*vocabulary, declare)

    def __call__(
        self,
        token_ids_BT: Int[Array, "B T"],
        positions_BT: Int[Array, "B T"],
        subtree_end_BT: Int[Array, "B T"],
        compute: ComputeOptions = FLOAT32,
    ) -> Float[Array, "B T V"]:
        """Float32 logits: see `logits`."""
        params = nnx.to_pure_dict(nnx.state(self, nnx.Param))
        return logits(params, self.config, token_ids_BT, positions_BT, subtree_end_BT, compute)


def init_params(
    config: ModelConfig, seed: int, param_dtype: jnp.dtype = jnp.float32, shardings: Params | None = None
) -> Params:
    """Random parameters, created straight into `shardings` (a tree like `abstract_params`) if given."""
    return jax.jit(_initializer(config, jnp.dtype(param_dtype)), out_shardings=shardings)(seed)


@functools.cache  # one function per model, so that jit compiles it once
def _initializer(config: ModelConfig, param_dtype: jnp.dtype) -> Callable[[int], Params]:
    def create(seed: int) -> Params:
        model = Transformer(config, rngs=nnx.Rngs(jax.random.key(seed)), param_dtype=param_dtype)
        return nnx.to_pure_dict(nnx.state(model, nnx.Param))

    return create


def abstract_params(config: ModelConfig, param_dtype: jnp.dtype = jnp.float32) -> Params:
    """The parameter tree as `jax.ShapeDtypeStruct`s; allocates nothing."""
    return nnx.to_pure_dict(_abstract_state(config, param_dtype))


def placed(abstract: Any, shardings: Any) -> Any:
    """Shapes and dtypes with their shardings: a tree of the same structure, or one sharding for all."""
    if isinstance(shardings, jax.sharding.Sharding):
        return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=shardings), abstract)
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), abstract, shardings
    )


def logical_axes(config: ModelConfig) -> Params:
    """The parameter tree with each leaf the tuple of its axes' names (one of LOGICAL_AXES per dimension)."""
    state = _abstract_state(config, jnp.float32)
    return nnx.to_pure_dict(state, extract_fn=lambda variable: variable.get_metadata("logical_axes"))


def _abstract_state(config: ModelConfig, param_dtype: jnp.dtype) -> nnx.State:
    model = nnx.eval_shape(lambda: Transformer(config, rngs=nnx.Rngs(0), param_dtype=param_dtype))
    return nnx.state(model, nnx.Param)


def hidden_states(
    params: Params,
    config: ModelConfig,
    token_ids_BT: Int[Array, "B T"],
    positions_BT: Int[Array, "B T"],
    subtree_end_BT: Int[Array, "B T"],
    compute: ComputeOptions = FLOAT32,
) -> Float[Array, "B T D"]:
    """Hidden states after the final norm, of rows laid out as prefix trees (see data/batch.py), in `compute.dtype`."""
    nothing = lambda new_BKTH: None  # noqa: E731
    x_BTD, _ = all_layers(params, config, token_ids_BT, positions_BT, subtree_end_BT, compute, nothing)
    return rms_norm(params["final_norm"], config, x_BTD)


def all_layers(
    params: Params,
    config: ModelConfig,
    token_ids_BT: Int[Array, "B T"],
    positions_BT: Int[Array, "B T"],
    subtree_end_BT: Int[Array, "B T"],
    compute: ComputeOptions,
    keep: Callable[[Array], Array | None],
) -> tuple[Float[Array, "B T D"], tuple[Any, Any]]:
    """Hidden states before the final norm, and the rotated keys and the values of all layers, stacked.

    `keep` makes of each layer's keys and of its values, both [B, K, T, H], what is stacked; None keeps nothing.
    """
    kinds = LayerKinds(config, positions_BT)

    def layer_step(x_BTD: Array, scanned: tuple[Params, Array | None]) -> tuple[Array, tuple[Any, Any]]:
        layer, scanned_window = scanned
        window, tables = kinds.window_and_tables(scanned_window)

        def attend(q_BNTH: Array, k_BKTH: Array, v_BKTH: Array) -> tuple[Array, tuple[Any, Any]]:
            out_BNTH = attention(
                q_BNTH,
                k_BKTH,
                v_BKTH,
                TreeLayout(positions_BT, subtree_end_BT, window),
                softcap=config.attention_softcap,
                scale=config.query_scale,
                implementation=compute.attention,
                mesh=compute.mesh,
            )
            return out_BNTH, (keep(k_BKTH), keep(v_BKTH))

        x_BTD, kept = decoder_layer(layer, config, x_BTD, tables, attend)
        return split_rows(x_BTD, compute.mesh), kept

    x_BTD = split_embedded(embed(params, config, token_ids_BT, compute.dtype), compute.mesh)
    run_layer = rematerialized(layer_step, compute.remat, compute.mesh)
    return jax.lax.scan(run_layer, x_BTD, (params["layers"], kinds.windows_L))


def output_projection(params: Params, config: ModelConfig) -> Float[Array, "V D"]:
    """The vocabulary kernel: the embedding if tied. `config.final_softcap` is the caller's to apply."""
    return params["embedding" if config.tied_embeddings else "output"]["kernel"]


def project_logits(params: Params, config: ModelConfig, hidden: Float[Array, "*B D"]) -> Float[Array, "*B V"]:
    """Float32 logits of hidden states, final soft-cap included; for few positions only (decoding, tests)."""
    if "output_parts" in params:  # of kv_cache.split_layers
        out = matmul_few_rows(hidden, params["output_parts"])
    else:
        kernel_VD = output_projection(params, config).astype(hidden.dtype)
        out = jnp.einsum("...d,vd->...v", hidden, kernel_VD, preferred_element_type=jnp.float32)
    return config.final_softcap * jnp.tanh(out / config.final_softcap) if config.final_softcap else out


def logits(
    params: Params,
    config: ModelConfig,
    token_ids_BT: Int[Array, "B T"],
    positions_BT: Int[Array, "B T"],
    subtree_end_BT: Int[Array, "B T"],
    compute: ComputeOptions = FLOAT32,
) -> Float[Array, "B T V"]:
    """Float32 logits at every token: for small inputs, they are [B, T, V]."""
    hidden_BTD = hidden_states(params, config, token_ids_BT, positions_BT, subtree_end_BT, compute)
    return project_logits(params, config, hidden_BTD)


def split_rows(x_BTD: Float[Array, "B T D"], mesh: Mesh | None) -> Float[Array, "B T D"]:
    """`x_BTD` with its rows split over the mesh, if they divide; unchanged without a mesh.

    Left to itself the compiler takes over how the embedding is split: every device then computes a part of the model's
    dimension for all rows, and passes activations, even logits, around instead of weights.
    """
    return _constrained(x_BTD, mesh, (BATCH_AXES, (), ()))


def split_embedded(x_BTD: Float[Array, "B T D"], mesh: Mesh | None) -> Float[Array, "B T D"]:
    """What was just looked up in the embedding, with its rows split over the mesh.

    It comes as the embedding is split: a part of D, for the rows of all devices along fsdp. One all-to-all then splits
    rows instead. The compiler does not find that way by itself and would gather every row on every device.
    """
    data, fsdp = BATCH_AXES
    return split_rows(_constrained(x_BTD, mesh, ((data,), (), (fsdp,))), mesh)


def _constrained(x: Array, mesh: Mesh | None, places: tuple[tuple[str, ...], ...]) -> Array:
    if mesh is None or mesh.size == 1:
        return x
    parts = [math.prod(mesh.shape[axis] for axis in place) for place in places]
    if any(size % count for size, count in zip(x.shape, parts, strict=True)):
        return x
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, PartitionSpec(*places)))
