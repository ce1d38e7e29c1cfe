"""What a training step changes: parameters, optimizer state and counters."""

from __future__ import annotations

from functools import partial
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Int

Tree = Any  # nested dicts of arrays, of ShapeDtypeStructs or of shardings
# fields of optax's FactoredState: which dimension is averaged, in the order of size
_AVERAGED = {"v_row": -1, "v_col": -2}


class TrainState(flax.struct.PyTreeNode):
    """The donated argument of a train step. `step` counts batches seen, skipped ones included."""

    step: Int[Array, ""]
    params: Tree
    opt_state: Tree
    nonfinite_streak: Int[Array, ""]  # updates skipped in a row, up to now
    nonfinite_total: Int[Array, ""]
    ref_params: Tree | None = (
        None  # a reference that follows the policy (dpo.ref_sync_steps), a part of the run's state
    )
    mean_params: Tree | None = None  # running mean of the parameters (ema_decay), float32

    @property
    def result(self) -> Tree:
        """The parameters to evaluate and to keep: the running mean where there is one, in the parameters' dtypes."""
        if self.mean_params is None:
            return self.params
        return jax.tree.map(lambda mean, param: mean.astype(param.dtype), self.mean_params, self.params)


def init_state(
    params: Tree,
    tx: optax.GradientTransformation,
    shardings: TrainState | None = None,
    *,
    moving_reference: bool = False,
    running_mean: bool = False,
) -> TrainState:
    """A state at step 0 that takes over `params`: the first step donates them, so keep a copy of any you still need.

    With `moving_reference` it holds a copy of them as the reference to begin with, with `running_mean` one as the mean.
    """
    new = partial(_new_state, tx=tx, moving_reference=moving_reference, running_mean=running_mean)
    return jax.jit(new, out_shardings=shardings)(params)


def abstract_state(
    abstract_params: Tree,
    tx: optax.GradientTransformation,
    *,
    moving_reference: bool = False,
    running_mean: bool = False,
) -> TrainState:
    """Shapes and dtypes of the state, for sharding rules, checkpoints and compiling without the arrays."""
    new = partial(_new_state, tx=tx, moving_reference=moving_reference, running_mean=running_mean)
    return jax.eval_shape(new, abstract_params)


def state_shardings(abstract: TrainState, param_shardings: Tree) -> TrainState:
    """Shardings of the whole state: optimizer arrays lie like the parameter they belong to, the rest is replicated.

    An optimizer array belongs to the parameter whose path ends its own path, if the shapes are equal too, or if it is
    one of Adafactor's factored moments: the parameter's shape and sharding without the dimension that is averaged.
    """
    replicated = NamedSharding(jax.tree.leaves(param_shardings)[0].mesh, PartitionSpec())
    shapes = jax.tree.map(lambda leaf: leaf.shape, abstract.params)
    known = jax.tree_util.tree_leaves_with_path(shapes, is_leaf=lambda value: isinstance(value, tuple))
    by_path = {
        _names(path): (shape, sharding)
        for (path, shape), sharding in zip(known, jax.tree.leaves(param_shardings), strict=True)
    }

    def shard(path: tuple[Any, ...], leaf: jax.ShapeDtypeStruct) -> NamedSharding:
        names = _names(path)
        for start in range(len(names)):
            shape, sharding = by_path.get(names[start:], (None, replicated))
            if shape is not None and names[start - 1] in _AVERAGED and len(leaf.shape) == len(shape) - 1:
                shape, sharding = _without_dim(shape, sharding, int(np.argsort(shape)[_AVERAGED[names[start - 1]]]))
            if shape == leaf.shape:
                return sharding
        return replicated

    return jax.tree_util.tree_map_with_path(shard, abstract)


def _without_dim(shape: tuple[int, ...], sharding: NamedSharding, dim: int) -> tuple[tuple[int, ...], NamedSharding]:
    places = (*sharding.spec, *[None] * (len(shape) - len(sharding.spec)))
    spec = PartitionSpec(*places[:dim], *places[dim + 1 :])
    return shape[:dim] + shape[dim + 1 :], NamedSharding(sharding.mesh, spec)


def _new_state(
    params: Tree, tx: optax.GradientTransformation, moving_reference: bool, running_mean: bool
) -> TrainState:
    zero = jnp.zeros((), jnp.int32)
    return TrainState(
        step=zero,
        params=params,
        opt_state=tx.init(params),
        nonfinite_streak=zero,
        nonfinite_total=zero,
        ref_params=jax.tree.map(jnp.copy, params) if moving_reference else None,
        mean_params=jax.tree.map(lambda leaf: jnp.array(leaf, jnp.float32), params) if running_mean else None,
    )


def _names(path: tuple[Any, ...]) -> tuple[str, ...]:
    return tuple(jax.tree_util.keystr((key,), simple=True) for key in path)
