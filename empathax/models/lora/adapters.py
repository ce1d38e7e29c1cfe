"""Adapters as a parameter tree of their own, and what they make of a model.

An adapter's tree has the nesting of the model's (transformer.py) where it adapts a product, stacked over layers alike:

    layers/attention/query/lora_a [L, D, R], lora_b [L, R, N*H]    (+ lora_magnitude [L, N*H] with DoRA)

`overlay` puts it beside the kernels, under "lora", where `layers.linear` finds it. The kernels do not change, so that a
model without its adapter is the base model to the last bit. A tree of several overlays holds several adapters.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, PRNGKeyArray

from empathax.config.lora import TARGETS, LoraSpec, module_name
from empathax.errors import ConfigError, raise_all
from empathax.models.lora.low_rank import direction_norms, merged_kernel
from empathax.models.lora.quantized import dense_kernel

Params = dict[str, Any]
FACTORS = ("lora_a", "lora_b", "lora_magnitude")


class Adapter(NamedTuple):
    """An adapter's tree (arrays on the host, where it comes from a file) and what it is."""

    tree: Params
    spec: LoraSpec

    def placed(self, base: Params) -> Params:
        """Its tree on the devices, laid out as an adapter on the (abstract) parameters `base`."""
        shapes = abstract_adapter(base, self.spec)
        return jax.tree.map(lambda values, leaf: jax.device_put(values, leaf.sharding), self.tree, shapes)


def abstract_adapter(base: Params, spec: LoraSpec) -> Params:
    """Shapes and dtypes of an adapter on the (abstract) parameters `base`, float32 whatever these are.

    Where `base` says how a kernel lies on a mesh, A lies like its inputs and B like its outputs; the rank is whole
    everywhere.
    """
    tree: Params = {}
    for target in spec.targets:
        kernel = _at(base, target)["kernel"]
        num_layers, width, outputs = kernel.shape
        rank = max(spec.rank_of(module_name(target, layer)) for layer in range(num_layers))
        factors: dict[str, tuple[tuple[int, ...], tuple[int | None, ...]]] = {
            "lora_a": ((num_layers, width, rank), (0, 1, None)),
            "lora_b": ((num_layers, rank, outputs), (0, None, 2)),
        }
        if spec.dora:
            factors["lora_magnitude"] = ((num_layers, outputs), (0, 2))
        leaves = {name: _like(kernel, shape, dims) for name, (shape, dims) in factors.items()}
        block, name = TARGETS[target]
        tree.setdefault("layers", {}).setdefault(block, {})[name] = leaves
    return tree


def check_rank(base: Params, spec: LoraSpec) -> None:
    """Raises a ConfigError for a rank above what a product's kernel can have: it would only take memory."""
    problems = []
    for target in spec.targets:
        _, width, outputs = _at(base, target)["kernel"].shape
        if spec.rank > min(width, outputs):
            problems.append(
                f"lora.rank = {spec.rank:,}: the kernel of {target} is {width:,} x {outputs:,}, so its rank is at most "
                f"{min(width, outputs):,}; lower lora.rank, or leave {target} out of lora.targets"
            )
    raise_all(ConfigError, "the adapters cannot be made", problems)


def init_adapter(base: Params, spec: LoraSpec, seed: int, shapes: Params | None = None) -> Params:
    """A new adapter as PEFT begins one: A uniform in +-1/sqrt(inputs), B zero, DoRA's magnitudes the kernels' norms.

    `shapes` is its abstract tree, for a `base` in codes.
    """
    shapes = shapes or abstract_adapter(base, spec)

    def create(base: Params) -> Params:
        def fill(path: tuple[Any, ...], leaf: jax.ShapeDtypeStruct) -> Array:
            *place, name = (key.key for key in path)
            if name == "lora_b":
                return jnp.zeros(leaf.shape, leaf.dtype)
            if name == "lora_magnitude":
                kernel = dense_kernel(_find(base, tuple(place)), _find(shapes, tuple(place))["lora_a"].shape[1])
                zeros = (jnp.zeros((*kernel.shape[:2], 1)), jnp.zeros((kernel.shape[0], 1, kernel.shape[2])))
                return direction_norms(kernel, *zeros, jnp.zeros(kernel.shape[0]))
            key = jax.random.fold_in(jax.random.key(seed), _number((place[1], place[2])))
            bound = 1.0 / math.sqrt(leaf.shape[1])
            uniform = jax.random.uniform(key, leaf.shape, leaf.dtype, -bound, bound)
            return uniform * _rank_mask(spec, (place[1], place[2]), leaf.shape)

        return jax.tree_util.tree_map_with_path(fill, shapes)

    return jax.jit(create, out_shardings=jax.tree.map(lambda leaf: leaf.sharding, shapes))(base)


def overlay(base: Params, adapter: Params, spec: LoraSpec, dropout: tuple[PRNGKeyArray, float] | None = None) -> Params:
    """`base` with `adapter` beside its kernels, above adapters that are there already; shares all arrays.

    `dropout` is a key, new in each step, and the rate.
    """

    def hang(weights: Params, factors: Params, place: tuple[str, ...]) -> Params:
        if "lora_a" not in factors:
            changed = {name: hang(weights[name], value, (*place, name)) for name, value in factors.items()}
            return {**weights, **changed}
        entry = {**factors, "scale": _scales(spec, place[1:], factors["lora_a"].shape[0])}
        if dropout and dropout[1]:
            entry |= _dropout(*dropout, place[1:], factors["lora_a"].shape[0])
        return {**weights, "lora": (*weights.get("lora", ()), entry)}

    return hang(base, adapter, ())


def merged(params: Params, *, donate: bool = False) -> Params:
    """The model with its adapters added into its kernels, each in one step; `donate` gives up the kernels' memory."""
    merge = _donating_merge if donate else _merge

    def visit(weights: Any) -> Any:
        if not isinstance(weights, dict):
            return weights
        if "lora" not in weights:
            return {name: visit(value) for name, value in weights.items()}
        rest = {name: value for name, value in weights.items() if name not in ("kernel", "lora")}
        return {"kernel": merge(weights["kernel"], weights["lora"]), **rest}

    return visit(params)


def with_adapters(params: Params, adapters: Sequence[Adapter]) -> Params:
    """The model with `adapters` merged in one after another; gives up the memory of the kernels that change."""
    for adapter in adapters:
        params = merged(overlay(params, adapter.placed(params), adapter.spec), donate=True)
    return params


def without_adapters(params: Params) -> Params:
    """The base model below all adapters; shares its arrays."""
    if not isinstance(params, dict):
        return params
    return {name: without_adapters(value) for name, value in params.items() if name != "lora"}


def adapters_of(params: Params) -> tuple[Params, ...]:
    """The adapters that `overlay` hung into `params`, the lowest first: trees like those that it was given."""
    found: list[Params] = []
    for place, entries in _overlaid(params, ()):
        for number, entry in enumerate(entries):
            if number == len(found):
                found.append({})
            parent = found[number]
            for name in place:
                parent = parent.setdefault(name, {})
            parent |= {name: entry[name] for name in FACTORS if name in entry}
    return tuple(found)


def _overlaid(weights: Any, place: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], tuple[Params, ...]]]:
    if isinstance(weights, dict):
        if "lora" in weights:
            yield place, weights["lora"]
        for name, value in weights.items():
            yield from _overlaid(value, (*place, name))


def _scales(spec: LoraSpec, target: tuple[str, ...], num_layers: int) -> np.ndarray:
    name = _target_name(target)
    return np.array([spec.scale_of(module_name(name, layer)) for layer in range(num_layers)], np.float32)


def _rank_mask(spec: LoraSpec, target: tuple[str, ...], shape: tuple[int, ...]) -> np.ndarray:
    """1 where a layer's A has columns: ranks may differ between layers."""
    name = _target_name(target)
    ranks = np.array([spec.rank_of(module_name(name, layer)) for layer in range(shape[0])])
    return (np.arange(shape[2]) < ranks[:, None, None]).astype(np.float32)


def _dropout(key: PRNGKeyArray, rate: float, target: tuple[str, ...], num_layers: int) -> Params:
    own = jax.random.fold_in(key, _number(target))
    return {"dropout_key": jax.random.split(own, num_layers), "dropout_rate": np.full(num_layers, rate, np.float32)}


def _number(target: tuple[str, ...]) -> int:
    """For random keys: a number of each target."""
    return list(TARGETS).index(_target_name(target))


def _target_name(target: tuple[str, ...]) -> str:
    return next(name for name, place in TARGETS.items() if place == target)


def _like(kernel: Any, shape: tuple[int, ...], dims: tuple[int | None, ...]) -> jax.ShapeDtypeStruct:
    """A float32 array of `shape` whose dimensions lie as those of `kernel` that `dims` names."""
    sharding = getattr(kernel, "sharding", None)
    if isinstance(sharding, NamedSharding):
        places = (*sharding.spec, *[None] * (len(kernel.shape) - len(sharding.spec)))
        spec = PartitionSpec(*(None if dim is None else places[dim] for dim in dims))
        sharding = NamedSharding(sharding.mesh, spec)
    return jax.ShapeDtypeStruct(shape, jnp.float32, sharding=sharding)


def _at(params: Params, target: str) -> Params:
    block, name = TARGETS[target]
    return params["layers"][block][name]


def _find(params: Params, place: tuple[str, ...]) -> Params:
    for name in place:
        params = params[name]
    return params


def _merge_one(kernel: Array, lora: tuple[Mapping[str, Any], ...]) -> Array:
    return merged_kernel({"kernel": kernel, "lora": lora})


_merge: Callable[..., Array] = jax.jit(_merge_one)
_donating_merge: Callable[..., Array] = jax.jit(_merge_one, donate_argnums=0)
