"""The n-grams of a whole set of replies, in the graph: sorted, so that equal ones stand side by side.

Axes: K places of all replies end to end, with -1 between them; R resamples; D dialogues.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int


class NgramCounts(NamedTuple):
    """Numbers of n-grams: of the most frequent one, and of all together."""

    most: Int[Array, ""]
    total: Int[Array, ""]


@functools.partial(jax.jit, static_argnames="n")
def distinct_ngrams(
    ids_K: Int[Array, " K"], owners_K: Int[Array, " K"], is_drawn_RD: Bool[Array, "R D"], n: int
) -> Int[Array, " R"]:
    """How many different n-grams the drawn dialogues have together, for each resample.

    `owners_K` says which of D dialogues each place belongs to.
    """
    type_K, is_ngram_K, owners_K = _sorted_ngrams(ids_K, owners_K, n)

    def count(is_drawn_D: Array) -> Array:
        is_drawn_K = (is_ngram_K & is_drawn_D[owners_K]).astype(jnp.int32)
        seen_K = jax.ops.segment_max(is_drawn_K, type_K, len(type_K), indices_are_sorted=True)
        return jnp.sum(jnp.maximum(seen_K, 0))  # a segment without members has the lowest integer

    return jax.lax.map(count, is_drawn_RD)


@functools.partial(jax.jit, static_argnames="n")
def count_ngrams(ids_K: Int[Array, " K"], n: int) -> NgramCounts:
    """How often the most frequent n-gram occurs, and how many n-grams there are."""
    type_K, is_ngram_K, _ = _sorted_ngrams(ids_K, jnp.zeros_like(ids_K), n)
    times_K = jax.ops.segment_sum(is_ngram_K.astype(jnp.int32), type_K, len(type_K), indices_are_sorted=True)
    return NgramCounts(jnp.max(times_K), jnp.sum(is_ngram_K, dtype=jnp.int32))


def _sorted_ngrams(ids_K: Array, owners_K: Array, n: int) -> tuple[Array, Array, Array]:
    """(number of the n-gram, whether it is one, its owner) of the n-grams that begin at each place, in sorted order.

    No n-gram reaches over a negative id: what begins there is none.
    """
    words = [jnp.roll(ids_K, -place).at[len(ids_K) - place :].set(-1) for place in range(n)]
    is_ngram_K = functools.reduce(jnp.minimum, words) >= 0
    words = [jnp.where(is_ngram_K, word_K, -1) for word_K in words]
    *words, owners_K = jax.lax.sort((*words, owners_K), num_keys=n, is_stable=False)
    is_new_K = functools.reduce(jnp.logical_or, (word_K != jnp.roll(word_K, 1) for word_K in words)).at[0].set(True)
    return jnp.cumsum(is_new_K) - 1, words[0] >= 0, owners_K
