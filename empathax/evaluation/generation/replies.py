"""Replies to any number of prompts, in batches of one compiled shape; prompts that begin alike share a batch.

Also the tokens that end a reply: the template's own, and those that a user adds.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from empathax.config import Config
from empathax.config.arguments import MAX_COUNT
from empathax.data.chat import ChatTemplate
from empathax.errors import ConfigError, DataError, raise_all
from empathax.evaluation.generation.decoding import DecodeOptions, Generated, generate
from empathax.evaluation.generation.prompt_tree import lay_out_prompts
from empathax.models.architecture.model_config import ModelConfig
from empathax.models.tokenizers.tokenizer import Tokenizer
from empathax.models.weights.memory import machine_memory
from empathax.parallel.rules import replicated

Prompts = Sequence[Sequence[int]]
_REPLY_BYTES, _USUAL_TOKENS = 100, 64  # a reply's text and indices on the host; most end long before the limit


def generate_replies(
    params: Any,
    model_config: ModelConfig,
    template: ChatTemplate,
    prompts: Prompts,
    config: Config,
    *,
    mesh: Mesh | None = None,
    on_progress: Callable[[int], None] | None = None,
) -> list[str]:
    """The text of a reply to each prompt (token ids, see `ChatTemplate.encode_prompt`), in the prompts' order.

    `config.eval` says how tokens are chosen and where replies end, how many tokens at most, and how many replies are
    made at once. With `num_samples` = n the n replies to a prompt stand one after another. A reply depends on
    (config.seed, the prompt's index, the sample's number) only. On a `mesh`, that of `params`, a batch's replies are
    split over its data axis. `on_progress` is told the number of replies done after each batch.

    Raises DataError for an empty prompt, or one that leaves no room for the reply, ConfigError for settings that cannot
    work.
    """
    stop_ids = stop_token_ids(template, config.eval.stop_tokens)
    check_memory(prompts, model_config, config)
    replies = [""] * (len(prompts) * config.eval.num_samples)
    answered = generate_ids(params, model_config, stop_ids, prompts, config, mesh=mesh)
    for num_done, (index, token_ids) in enumerate(answered, start=1):
        replies[index] = template.tokenizer.decode(token_ids, skip_special_tokens=True).strip()
        if on_progress and (num_done % config.eval.generation_batch == 0 or num_done == len(replies)):
            on_progress(num_done)
    return replies


def generate_ids(
    params: Any,
    model_config: ModelConfig,
    stop_ids: Sequence[int],
    prompts: Prompts,
    config: Config,
    *,
    mesh: Mesh | None = None,
    stream_ids: Sequence[int] | None = None,
) -> Iterator[tuple[int, list[int]]]:
    """(index, new token ids without the stop token) of every reply, in the order in which they are done.

    Sample j of prompt i has the index i * num_samples + j. Its random numbers come from (config.seed, the prompt's
    stream, j); prompt i has the stream i, or `stream_ids[i]` (0 to 2^31 - 1) where these are given. Replies end
    at `stop_ids` alone: `config.eval.stop_tokens` are a text's business, see `stop_token_ids`.
    """
    options, num_samples = DecodeOptions.of(config, stop_ids, mesh), config.eval.num_samples
    check_room(prompts, model_config, options.max_new_tokens)
    check_memory(prompts, model_config, config)
    num_shards = mesh.shape["data"] if mesh else 1
    streams = np.arange(len(prompts), dtype=np.int32) if stream_ids is None else np.array(stream_ids, np.int32)
    for indices in _batches(prompts, num_samples, config.eval.generation_batch, num_shards):
        row_ids, sample_ids = np.divmod(indices, num_samples)
        layout = lay_out_prompts([prompts[row] for row in np.where(row_ids < 0, row_ids.max(), row_ids)], num_shards)
        random_ids = np.where(row_ids < 0, row_ids, streams[row_ids])
        layout, random_ids, sample_ids = _placed((layout, random_ids, sample_ids), mesh)
        seed = np.int32(config.seed)
        generated = generate(params, model_config, layout, random_ids, seed, sample_ids, options=options)
        yield from _new_ids(indices, _fetched(generated, mesh))


def check_room(prompts: Prompts, model_config: ModelConfig, max_new_tokens: int) -> None:
    """Raises DataError for an empty prompt, or one after which `max_new_tokens` go beyond the model's positions."""
    for number, prompt in enumerate(prompts, start=1):
        if not len(prompt):
            raise DataError(f"prompt {number} of {len(prompts)} is empty: there is nothing to continue")
        if len(prompt) + max_new_tokens > model_config.max_positions:
            raise DataError(
                f"prompt {number} of {len(prompts)} has {len(prompt)} tokens; with {max_new_tokens} new ones it passes "
                f"the model's {model_config.max_positions} positions: shorten it, or generate fewer tokens"
            )


def check_memory(prompts: Prompts, model_config: ModelConfig, config: Config) -> None:
    """Raises a ConfigError for replies, or keys and values of a batch, that this machine cannot hold."""
    options, there = config.eval, machine_memory()
    num_replies = len(prompts) * options.num_samples
    batch = min(options.generation_batch, num_replies)
    slots = max(map(len, prompts), default=0) + options.max_new_tokens
    cache = 4 * batch * slots * model_config.num_layers * model_config.kv_dim  # keys and values in two bytes each
    kept = num_replies * (_REPLY_BYTES + 4 * min(options.max_new_tokens, _USUAL_TOKENS))
    if num_replies > MAX_COUNT or cache + kept > there:
        raise ConfigError(
            f"{num_replies:,} replies ({len(prompts):,} prompts x num_samples = {options.num_samples:,}), "
            f"{batch:,} at once, of up to {options.max_new_tokens:,} new tokens take {(cache + kept) / 2**30:,.1f} GiB "
            f"or more, and this machine has {there / 2**30:,.1f} GiB: lower num_samples, max_new_tokens or "
            "generation_batch (--batch-size)"
        )


def _batches(prompts: Prompts, num_samples: int, size: int, multiple: int) -> Iterator[np.ndarray]:
    """Indices of replies, `size` (rounded up to a multiple) at a time, -1 for a place that stays empty.

    Prompts in the order of their token ids: what begins alike, a prompt's samples first of all, meets in a batch and is
    computed once there.
    """
    order = sorted(range(len(prompts)), key=lambda row: tuple(prompts[row]))
    indices = np.add.outer(np.array(order, np.int32) * num_samples, np.arange(num_samples, dtype=np.int32)).ravel()
    size = -(-min(size, len(indices)) // multiple) * multiple
    for start in range(0, len(indices), size or 1):
        chosen = indices[start : start + size]
        yield np.pad(chosen, (0, size - len(chosen)), constant_values=-1)


def _placed(values: Any, mesh: Mesh | None) -> Any:
    """Arrays that begin with rows, split over the mesh's data axis; every process has them whole.

    Not over fsdp, as in training: every step would gather all weights for one token a row. Left whole there, rows are
    multiplied with the part of the weights that each device has.
    """
    return jax.device_put(values, NamedSharding(mesh, PartitionSpec("data"))) if mesh else values


def _fetched(generated: Generated, mesh: Mesh | None) -> Generated:
    """The whole of `generated` on every host."""
    return jax.device_get(_replicate(mesh)(generated) if mesh else generated)


@functools.cache
def _replicate(mesh: Mesh) -> Callable[[Generated], Generated]:
    return jax.jit(lambda generated: generated, out_shardings=replicated(mesh))


def _new_ids(indices: np.ndarray, generated: Generated) -> Iterator[tuple[int, list[int]]]:
    for place, index in enumerate(indices.tolist()):
        if index >= 0:
            length = int(generated.lengths_B[place]) - int(generated.stopped_B[place])
            yield index, generated.token_ids_BM[place, :length].tolist()


def stop_token_ids(template: ChatTemplate, extra: Sequence[str] = ()) -> tuple[int, ...]:
    """Ids of the template's stop tokens and of `extra`, sorted.

    An extra one is a token as the vocabulary spells it ("<|im_end|>"), or a text that is a single token ("\\n"). A
    reply ends at that token only, not where the same characters are part of another. Raises one ConfigError with every
    text that is none or several tokens.
    """
    problems: list[str] = []
    added = [_single_id(template.tokenizer, text, problems) for text in extra]
    raise_all(ConfigError, "replies cannot stop there", problems)
    return tuple(sorted({*template.stop_token_ids, *added}))


def _single_id(tokenizer: Tokenizer, text: str, problems: list[str]) -> int:
    by_name = tokenizer.token_to_id(text)
    if by_name is not None:
        return by_name
    ids = tokenizer.encode(text)
    unknown = tokenizer.token_to_id(tokenizer.unk_token) if tokenizer.unk_token else None
    if len(ids) == 1 and ids[0] != unknown:
        return ids[0]
    found = "not in the vocabulary" if unknown in ids else f"{len(ids)} tokens ({_in_words(tokenizer, ids)})"
    problems.append(f"stop token {text!r} is {found}: expected a single token; name one, or leave it out")
    return -1


def _in_words(tokenizer: Tokenizer, ids: Sequence[int]) -> str:
    shown = ", ".join(repr(tokenizer.id_to_token(token_id)) for token_id in ids[:6])
    return (shown or "none") + (", ..." if len(ids) > 6 else "")
