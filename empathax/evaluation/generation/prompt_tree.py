"""Prompts of a batch read as one prefix tree: what they share (system prompt, earlier turns) is computed once."""

from __future__ import annotations

from collections.abc import Sequence

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from empathax.data.prefix_tree import PrefixTrie
from empathax.models.architecture.model_config import ModelConfig
from empathax.models.kv_cache import Cache, filled_cache
from empathax.models.layers import Params, rms_norm
from empathax.models.transformer import FLOAT32, ComputeOptions, all_layers

_SMALLEST = 128  # tokens; the block size of blockwise attention


@flax.struct.dataclass
class PromptTree:
    """B prompts in R rows of T tokens, B / R of them a row; a row is laid out as in data/batch.py.

    `path_BS` lists each prompt's tokens by their index in its row, left-padded to S slots.
    """

    token_ids_RT: Int[Array, "R T"]
    positions_RT: Int[Array, "R T"]
    subtree_end_RT: Int[Array, "R T"]
    path_BS: Int[Array, "B S"]
    lengths_B: Int[Array, " B"]  # tokens of each prompt, at least 1


def lay_out_prompts(prompts: Sequence[Sequence[int]], num_rows: int = 1) -> PromptTree:
    """Lays out non-empty prompts; sizes are rounded up so that few shapes, hence compilations, occur."""
    if len(prompts) % num_rows:
        raise ValueError(f"{len(prompts)} prompts do not divide into {num_rows} rows")
    arrays = [np.asarray(prompt, np.int32) for prompt in prompts]
    share = len(arrays) // num_rows
    rows = [_lay_out_row(arrays[start : start + share]) for start in range(0, len(arrays), share)]
    num_tokens = rounded_up(max(len(token_ids) for token_ids, *_ in rows))
    num_slots = rounded_up(max(map(len, arrays)))
    paths = [path for *_, row_paths in rows for path in row_paths]
    no_tokens = np.zeros(num_tokens, np.int32)
    alone = np.arange(1, num_tokens + 1, dtype=np.int32)  # a token that pads sees itself only
    return PromptTree(
        token_ids_RT=jnp.stack([_right_padded(row[0], no_tokens) for row in rows]),
        positions_RT=jnp.stack([_right_padded(row[1], no_tokens) for row in rows]),
        subtree_end_RT=jnp.stack([_right_padded(row[2], alone) for row in rows]),
        path_BS=jnp.stack([np.pad(path, (num_slots - len(path), 0)) for path in paths]),
        lengths_B=jnp.array([len(path) for path in paths], jnp.int32),
    )


def rounded_up(num_tokens: int) -> int:
    """The next of 128, 192, 256, 384, 512, 768, ...: at most a third is padding."""
    size = _SMALLEST
    while size < num_tokens:
        size *= 2
    three_quarters = size * 3 // 4
    return three_quarters if size > _SMALLEST and three_quarters >= num_tokens else size


def prefill_tree(
    params: Params,
    config: ModelConfig,
    prompts: PromptTree,
    num_new: int,
    compute: ComputeOptions = FLOAT32,
) -> tuple[Float[Array, "B D"], Cache]:
    """Reads the prompts into a new cache with room for `num_new` more tokens a row.

    Returns the hidden state of each prompt's last token, after the final norm, and the cache. The keys and values of
    shared tokens are computed once and copied to every prompt that has them.
    """
    x_RTD, (key_LBKSH, value_LBKSH) = all_layers(
        params,
        config,
        prompts.token_ids_RT,
        prompts.positions_RT,
        prompts.subtree_end_RT,
        compute,
        lambda new_RKTH: _along_paths(new_RKTH, prompts.path_BS),
    )
    last_BD = _along_paths(x_RTD[:, None], prompts.path_BS[:, -1:])[:, 0, 0]
    cache = filled_cache(key_LBKSH, value_LBKSH, prompts.lengths_B, num_new)
    return rms_norm(params["final_norm"], config, last_BD), cache


def _lay_out_row(prompts: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[np.ndarray]]:
    """(token ids, positions, subtree ends, each prompt's path) of one row."""
    trie = PrefixTrie()
    for prompt in prompts:
        trie.insert(prompt)
    nodes = trie.nodes()
    lengths = [len(node.token_ids) for node in nodes]
    positions = [np.arange(node.start, node.start + length) for node, length in zip(nodes, lengths, strict=True)]
    return (
        np.concatenate([node.token_ids for node in nodes]),
        np.concatenate(positions),
        np.repeat([node.offset + node.num_below for node in nodes], lengths),
        [trie.find(prompt, root) for root, prompt in enumerate(prompts)],
    )


def _right_padded(values: np.ndarray, padding: np.ndarray) -> np.ndarray:
    return np.concatenate([values, padding[len(values) :]]).astype(np.int32)


def _along_paths(x_RKTH: Float[Array, "R K T H"], path_BS: Int[Array, "B S"]) -> Float[Array, "B K S H"]:
    """The entries of each prompt's path, out of its row."""
    R, K, _, H = x_RKTH.shape
    B, S = path_BS.shape
    taken_RKCSH = jax.vmap(lambda x_KTH, path_CS: x_KTH[:, path_CS])(x_RKTH, path_BS.reshape(R, B // R, S))
    return taken_RKCSH.swapaxes(1, 2).reshape(B, K, S, H)
