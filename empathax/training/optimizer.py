"""Optimizers and learning-rate schedules with the conventions of Hugging Face's Trainer; which parameters they change.

Parameters are named by patterns: globs over their whole paths in lower case, such as "embedding/*", "*norm*",
"layers/attention/*".
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from empathax.config import StageOptions
from empathax.errors import ConfigError, nearest, raise_all
from empathax.training.state import Tree

Schedule = Callable[[jax.Array | int], jax.Array]


def make_optimizer(options: StageOptions, num_steps: int) -> tuple[optax.GradientTransformation, Schedule]:
    """The update direction (float32, before the learning rate) and the learning rate of each step.

    The step multiplies the two, so that the rate follows the batches seen, also past skipped updates. Optimizer states
    are float32 whatever the parameters are, but for a first moment in `options.first_moment_dtype`. Weight decay is
    decoupled and leaves out what `options.no_decay` names. `options.freeze` is not updated: it has no state, and the
    directions are a tree without it.
    """
    directions = [_direction(options)]
    if options.weight_decay:
        mask = partial(decay_mask, excluded=options.no_decay)
        directions.append(optax.add_decayed_weights(options.weight_decay, mask=mask))
    tx = of_trained(optax.chain(*directions), options.freeze)
    if options.layerwise_decay != 1.0:
        tx = optax.chain(tx, scale_by_layer(options.layerwise_decay))
    return _in_float32(tx), make_schedule(options, num_steps)


def make_schedule(options: StageOptions, num_steps: int) -> Schedule:
    """Linear warm-up from 0 over ceil(num_steps * warmup_ratio) steps, then constant, linear or cosine decay to
    `final_lr_ratio` of the peak at step `num_steps`."""
    warmup = math.ceil(num_steps * options.warmup_ratio)
    decay = {  # of the share of the way from the end of the warm-up to the last step
        "constant": optax.constant_schedule(1.0),
        "linear": optax.linear_schedule(1.0, options.final_lr_ratio, 1),
        "cosine": optax.cosine_decay_schedule(1.0, 1, options.final_lr_ratio),
    }[options.schedule]
    pieces = [lambda step: step / max(1, warmup), lambda step: decay(step / max(1, num_steps - warmup))]
    joined = optax.join_schedules(pieces, [warmup])
    return lambda step: options.learning_rate * joined(jnp.asarray(step, jnp.float32))


def _direction(options: StageOptions) -> optax.GradientTransformation:
    if options.optimizer == "adamw":
        return _first_moment_in(options.first_moment_dtype, optax.scale_by_adam(options.b1, options.b2, options.eps))
    if options.optimizer == "lion":
        return _first_moment_in(options.first_moment_dtype, optax.scale_by_lion(options.b1, options.b2))
    # As the Trainer runs it: no momentum, no scaling by the parameter's size, an absolute learning rate.
    return optax.chain(optax.scale_by_factored_rms(), optax.clip_by_block_rms(1.0))


def _first_moment_in(dtype: str, tx: optax.GradientTransformation) -> optax.GradientTransformation:
    """Stores the field `mu` of the state in `dtype`; the arithmetic stays float32, rounded once a step."""

    def moved(state: Any, dtype: str) -> Any:
        return state._replace(mu=optax.tree.cast(state.mu, dtype))

    def update(grads: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        directions, state = tx.update(grads, moved(state, "float32"), params)
        return directions, moved(state, dtype)

    return optax.GradientTransformation(lambda params: moved(tx.init(params), dtype), update)


def _in_float32(tx: optax.GradientTransformation) -> optax.GradientTransformation:
    """States and arithmetic in float32 for parameters of any dtype."""

    def cast(tree: Any) -> Any:
        return jax.tree.map(lambda leaf: leaf.astype(jnp.float32), tree)

    return optax.GradientTransformation(
        init=lambda params: tx.init(cast(params)),
        update=lambda grads, state, params=None: tx.update(cast(grads), state, cast(params)),
    )


LAYERS, INPUT = "layers", "embedding"  # the first names of paths: stacked over the layers, [L, ...]; below them


def path_name(path: tuple[Any, ...]) -> str:
    """A leaf's path as patterns see it."""
    return jax.tree_util.keystr(path, simple=True, separator="/").lower()


def is_matched(path: tuple[Any, ...], patterns: Sequence[str]) -> bool:
    """Whether one of `patterns` fits the whole path."""
    return any(fnmatchcase(path_name(path), pattern.lower()) for pattern in patterns)


def split(params: Tree, frozen: Sequence[str]) -> tuple[Tree, Tree]:
    """(what is trained, what matches `frozen`): two trees of nested dicts without the other's leaves."""
    if not frozen:
        return params, {}
    return _part(params, (), lambda path: not is_matched(path, frozen)), _part(
        params, (), lambda path: is_matched(path, frozen)
    )


def merge(trained: Tree, frozen: Tree) -> Tree:
    """The tree that `split` took apart."""
    if not isinstance(trained, dict) or not frozen:
        return trained
    names = sorted(trained.keys() | frozen.keys())
    return {name: merge(trained[name], frozen.get(name, {})) if name in trained else frozen[name] for name in names}


def of_trained(tx: optax.GradientTransformation, frozen: Sequence[str]) -> optax.GradientTransformation:
    """`tx` with a state for the trained parameters alone; takes gradients of these and parameters of all."""
    if not frozen:
        return tx
    return optax.GradientTransformation(
        init=lambda params: tx.init(split(params, frozen)[0]),
        update=lambda grads, state, params=None: tx.update(grads, state, split(params, frozen)[0]),
    )


def decay_mask(params: Tree, excluded: Sequence[str]) -> Tree:
    """True for the parameters that weight decay shrinks: those that match none of `excluded`."""
    return jax.tree_util.tree_map_with_path(lambda path, _: not is_matched(path, excluded), params)


def scale_by_layer(decay: float) -> optax.GradientTransformation:
    """Update directions times decay^(L - 1 - l) for layer l of L, and decay^L for the embedding, also where it is the
    output's: discriminative fine-tuning (Howard and Ruder 2018, arXiv 1801.06146, section 3.2)."""

    def update(updates: Tree, state: Any, params: Tree | None = None) -> tuple[Tree, Any]:
        stacked = jax.tree.leaves((params or updates).get(LAYERS, {}))
        num_layers = stacked[0].shape[0] if stacked else 0

        def scaled(path: tuple[Any, ...], leaf: jax.Array) -> jax.Array:
            first = path_name(path[:1])
            if first == LAYERS:
                factors_L = decay ** np.arange(num_layers - 1, -1, -1.0)
                return leaf * jnp.asarray(factors_L, leaf.dtype).reshape(-1, *[1] * (leaf.ndim - 1))
            return leaf * decay**num_layers if first == INPUT else leaf

        return jax.tree_util.tree_map_with_path(scaled, updates), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def check_patterns(stage: str, options: StageOptions, abstract_params: Tree) -> None:
    """Raises a ConfigError for patterns that fit none of what `stage` trains, and where nothing is left to train."""
    paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(abstract_params)]
    problems = _unmatched(f"{stage}.freeze", options.freeze, paths)
    if options.no_decay != StageOptions().no_decay:  # not every family has biases
        problems += _unmatched(f"{stage}.no_decay", options.no_decay, paths)
    if all(is_matched(path, options.freeze) for path in paths):
        problems.append(f"{stage}.freeze = {options.freeze!r} leaves no parameter to train")
    raise_all(ConfigError, "parameters cannot be grouped", problems)


def _unmatched(setting: str, patterns: Sequence[str], paths: Sequence[tuple[Any, ...]]) -> list[str]:
    names = [path_name(path) for path in paths]
    problems = []
    for pattern in patterns:
        if not any(is_matched(path, [pattern]) for path in paths):
            near = nearest(pattern.lower().strip("*/"), names, cutoff=0.3) or names[0]
            problems.append(f"{setting}: {pattern!r} fits no parameter; a glob fits whole paths such as {near!r}")
    return problems


def _part(tree: Tree, path: tuple[Any, ...], keeps: Callable[[tuple[Any, ...]], bool]) -> Tree:
    """The leaves whose path `keeps` takes; {} where a part has none."""
    found = {}
    for name, child in tree.items():
        own = (*path, jax.tree_util.DictKey(name))
        part = _part(child, own, keeps) if isinstance(child, dict) else child if keeps(own) else {}
        if not isinstance(part, dict) or part:
            found[name] = part
    return found
