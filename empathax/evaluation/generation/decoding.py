"""Generation inside one compiled function: prefill, then decode steps until every row has stopped."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Int, Key

from empathax.config import Config
from empathax.evaluation.generation.prompt_tree import PromptTree, prefill_tree
from empathax.evaluation.generation.sampling import (
    Sampling,
    mark_seen,
    next_token,
    row_keys,
    sampling_from,
    seen_in_prompts,
)
from empathax.models.architecture.model_config import ModelConfig
from empathax.models.kv_cache import Cache, decode_step, split_layers
from empathax.models.transformer import FLOAT32, ComputeOptions, output_projection, project_logits
from empathax.parallel.mesh import compute_dtype, platform_of

Params = dict[str, Any]


@dataclass(frozen=True)
class DecodeOptions:
    """How replies are decoded; hashable, a compile-time constant.

    `platform` ("cpu", "tpu", "gpu") is where it will run: a CPU's decode loop takes weights in another layout
    (`split_layers`).
    """

    max_new_tokens: int
    stop_ids: tuple[int, ...]
    platform: str
    sampling: Sampling = field(default_factory=Sampling)
    compute: ComputeOptions = FLOAT32

    @classmethod
    def of(cls, config: Config, stop_ids: Sequence[int], mesh: Mesh | None = None) -> DecodeOptions:
        """What `config` asks for on `mesh`. Raises a ConfigError for sampling that cannot work."""
        return cls(
            max_new_tokens=config.eval.max_new_tokens,
            stop_ids=tuple(stop_ids),
            platform=platform_of(mesh),
            sampling=sampling_from(config.eval),
            # rows of prompts do not always divide into blocks, and lie on no mesh: the kernels are for the steps
            compute=ComputeOptions(
                compute_dtype(config.model, mesh),
                attention="dense" if config.model.attention == "dense" else "auto",
            ),
        )


@flax.struct.dataclass
class Generated:
    """New tokens of B rows."""

    token_ids_BM: Int[Array, "B M"]  # 0 after a row's end
    lengths_B: Int[Array, " B"]  # tokens of each row, its stop token included
    stopped_B: Bool[Array, " B"]  # whether the row ended with a stop token


@flax.struct.dataclass
class _Loop:
    """What the decode loop carries."""

    step: Int[Array, ""]  # tokens already written
    generated: Generated
    done_B: Bool[Array, " B"]
    last_id_B: Int[Array, " B"]  # the newest token, not yet in the cache
    seen_BV: Bool[Array, "B V"] | None  # tokens of prompt and reply; None without a repetition penalty
    cache: Cache


@functools.partial(jax.jit, static_argnames=("config", "options"))
def generate(
    params: Params,
    config: ModelConfig,
    prompts: PromptTree,
    row_ids_B: Int[Array, " B"],
    seed: Int[Array, ""] | int = 0,
    sample_ids_B: Int[Array, " B"] | None = None,
    *,
    options: DecodeOptions,
) -> Generated:
    """Continues each prompt until one of `options.stop_ids` or `options.max_new_tokens`.

    A row's random numbers come from (seed, row_ids_B, sample_ids_B, its own step), so neither its place in the batch
    nor its neighbours change what it says; samples are numbered from 0, all are 0 if left out. Rows with a negative id
    are padding: they generate nothing and nobody waits for them.
    """
    dtype, sampling = options.compute.dtype, options.sampling
    keys_B = row_keys(seed, row_ids_B, sample_ids_B)
    split_params = split_layers(params, config, dtype, options.platform)

    def extend(loop: _Loop, hidden_BD: Array) -> _Loop:
        logits_BV = project_logits(split_params, config, hidden_BD)
        new_id_B = next_token(logits_BV, _step_keys(keys_B, loop.step), sampling, loop.seen_BV)
        return _append(loop, new_id_B, options.stop_ids)

    def body(loop: _Loop) -> _Loop:
        hidden_BD, cache = decode_step(split_params, config, loop.last_id_B, loop.cache, compute_dtype=dtype)
        return extend(dataclasses.replace(loop, cache=cache), hidden_BD)

    hidden_BD, cache = prefill_tree(params, config, prompts, options.max_new_tokens - 1, options.compute)
    penalised = sampling.repetition_penalty != 1
    seen_BV = seen_in_prompts(prompts, output_projection(params, config).shape[0]) if penalised else None
    loop = extend(_start(cache, row_ids_B, options.max_new_tokens, seen_BV), hidden_BD)
    running = lambda loop: (loop.step < options.max_new_tokens) & ~jnp.all(loop.done_B)  # noqa: E731
    return jax.lax.while_loop(running, body, loop).generated


def _start(cache: Cache, row_ids_B: Int[Array, " B"], max_new_tokens: int, seen_BV: Bool[Array, "B V"] | None) -> _Loop:
    zeros_B = jnp.zeros_like(row_ids_B, jnp.int32)
    generated = Generated(
        token_ids_BM=jnp.zeros((row_ids_B.size, max_new_tokens), jnp.int32),
        lengths_B=zeros_B,
        stopped_B=zeros_B > 0,
    )
    return _Loop(
        step=jnp.int32(0),
        generated=generated,
        done_B=row_ids_B < 0,
        last_id_B=zeros_B,
        seen_BV=seen_BV,
        cache=cache,
    )


def _append(loop: _Loop, new_id_B: Int[Array, " B"], stop_ids: tuple[int, ...]) -> _Loop:
    """Writes each running row's new token at `loop.step`; a stop token is written too and ends its row."""
    new_id_B = jnp.where(loop.done_B, 0, new_id_B)
    stops_B = ~loop.done_B & jnp.isin(new_id_B, jnp.array(stop_ids, jnp.int32))
    old = loop.generated
    generated = Generated(
        token_ids_BM=jax.lax.dynamic_update_slice(old.token_ids_BM, new_id_B[:, None], (0, loop.step)),
        lengths_B=old.lengths_B + ~loop.done_B,
        stopped_B=old.stopped_B | stops_B,
    )
    return _Loop(
        step=loop.step + 1,
        generated=generated,
        done_B=loop.done_B | stops_B,
        last_id_B=new_id_B,
        seen_BV=None if loop.seen_BV is None else mark_seen(loop.seen_BV, new_id_B),
        cache=loop.cache,
    )


def _step_keys(keys_B: Key[Array, " B"], step: Array | int) -> Key[Array, " B"]:
    return jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys_B, step)
