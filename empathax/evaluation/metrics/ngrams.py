"""The n-grams of a whole set of replies, in the graph: sorted, so that equal ones stand side by side.

Axes: K places of all replies end to end, with -1 between them; R resamples; D dialogues.
"""

from __future__ import annotations

import functools

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int


@flax.struct.dataclass
class SortedNgrams:
    """The n-grams that begin at each place, in sorted order."""

    type_K: Int[Array, " K"]  # equal n-grams have equal numbers, in rising order
    is_ngram_K: Bool[Array, " K"]  # False where an n-gram would reach over the end of a reply
    owners_K: Int[Array, " K"]


@functools.partial(jax.jit, static_argnames="n")
def sort_ngrams(ids_K: Int[Array, " K"], owners_K: Int[Array, " K"], n: int) -> SortedNgrams:
    """The n-grams of ids from 0, negative between replies; `owners_K` says whose each place is."""
    words = [jnp.roll(ids_K, -place).at[len(ids_K) - place :].set(-1) for place in range(n)]
    is_ngram_K = functools.reduce(jnp.minimum, words) >= 0
    words = [jnp.where(is_ngram_K, word_K, -1) for word_K in words]
    *words, owners_K = jax.lax.sort((*words, owners_K), num_keys=n, is_stable=False)
    is_new_K = functools.reduce(jnp.logical_or, (word_K != jnp.roll(word_K, 1) for word_K in words)).at[0].set(True)
    return SortedNgrams(jnp.cumsum(is_new_K) - 1, words[0] >= 0, owners_K)


@jax.jit
def count_distinct(ngrams: SortedNgrams, is_drawn_RD: Bool[Array, "R D"]) -> Int[Array, " R"]:
    """How many different n-grams the drawn dialogues, which are the owners, have together in each resample."""

    def count(is_drawn_D: Array) -> Array:
        is_drawn_K = (ngrams.is_ngram_K & is_drawn_D[ngrams.owners_K]).astype(jnp.int32)
        seen_K = jax.ops.segment_max(is_drawn_K, ngrams.type_K, len(is_drawn_K), indices_are_sorted=True)
        return jnp.sum(jnp.maximum(seen_K, 0))  # a segment without members has the lowest integer

    return jax.lax.map(count, is_drawn_RD)


@jax.jit
def most_frequent(ngrams: SortedNgrams) -> tuple[Int[Array, ""], Int[Array, ""]]:
    """(How often the most frequent n-gram occurs, how many n-grams there are.)"""
    is_ngram_K = ngrams.is_ngram_K.astype(jnp.int32)
    times_K = jax.ops.segment_sum(is_ngram_K, ngrams.type_K, len(is_ngram_K), indices_are_sorted=True)
    return jnp.max(times_K), jnp.sum(is_ngram_K)
