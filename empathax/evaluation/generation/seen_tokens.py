"""Which tokens a row has already seen, in its prompt or its reply, and their penalty."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from empathax.evaluation.generation.prompt_tree import PromptTree


def seen_in_prompts(prompts: PromptTree, vocab_size: int) -> Bool[Array, "B V"]:
    """Whether each token stands in each row's prompt; the padding before a prompt counts for nothing."""
    (R, _), (B, S) = prompts.token_ids_RT.shape, prompts.path_BS.shape
    take = jax.vmap(lambda token_ids_T, path_CS: token_ids_T[path_CS])
    token_ids_BS = take(prompts.token_ids_RT, prompts.path_BS.reshape(R, B // R, S)).reshape(B, S)
    is_token_BS = jnp.arange(S) >= S - prompts.lengths_B[:, None]
    nothing_BV = jnp.zeros((B, vocab_size), bool)
    return nothing_BV.at[jnp.arange(B)[:, None], jnp.where(is_token_BS, token_ids_BS, vocab_size)].set(
        True, mode="drop"
    )


def mark_seen(seen_BV: Bool[Array, "B V"], token_id_B: Int[Array, " B"]) -> Bool[Array, "B V"]:
    """`seen_BV` with one more token a row."""
    return seen_BV.at[jnp.arange(token_id_B.size), token_id_B].set(True)


def penalise_seen(logits_BV: Float[Array, "B V"], seen_BV: Bool[Array, "B V"], penalty: float) -> Float[Array, "B V"]:
    """Logits with those of seen tokens divided by `penalty` where positive, multiplied where negative.

    The repetition penalty of Keskar et al. 2019 (section 4.1), in transformers' form: the paper's own divides always,
    which would make a token with a negative logit likelier. How often a token was seen does not matter.
    """
    penalised_BV = jnp.where(logits_BV < 0, logits_BV * penalty, logits_BV / penalty)
    return jnp.where(seen_BV, penalised_BV, logits_BV)
