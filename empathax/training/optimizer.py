"""Optimizers and learning-rate schedules, with the conventions of Hugging Face's Trainer."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax

from empathax.config import StageOptions
from empathax.training.param_groups import decay_mask, of_trained, scale_by_layer

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
    peak, final = options.learning_rate, options.final_lr_ratio

    def schedule(step: jax.Array | int) -> jax.Array:
        step = jnp.asarray(step, jnp.float32)
        progress = jnp.clip((step - warmup) / max(1, num_steps - warmup), 0.0, 1.0)
        decay = {
            "constant": jnp.ones_like(progress),
            "linear": final + (1.0 - final) * (1.0 - progress),
            "cosine": final + (1.0 - final) * 0.5 * (1.0 + jnp.cos(jnp.pi * progress)),
        }[options.schedule]
        return peak * jnp.where(step < warmup, step / max(1, warmup), decay)

    return schedule


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
