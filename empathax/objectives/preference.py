"""Direct Preference Optimization as sums over pairs that add up over any split of the data."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from empathax.errors import ConfigError
from empathax.objectives.sft import Sums


def dpo_loss(
    chosen_logps: Float[Array, "*p"],
    rejected_logps: Float[Array, "*p"],
    ref_chosen_logps: Float[Array, "*p"],
    ref_rejected_logps: Float[Array, "*p"],
    pair_weights: Float[Array, "*p"],
    *,
    beta: float,
    label_smoothing: float = 0.0,
    loss: str = "sigmoid",
) -> tuple[Float[Array, ""], Float[Array, ""], Sums]:
    """Rafailov et al. 2023, eq. 7, on summed log-probs; with `label_smoothing` eps the conservative loss cDPO,
    -(1 - eps) log sigmoid(margin) - eps log sigmoid(-margin), where margin = reward of chosen - reward of rejected.

    Returns (loss sum, number of pairs, metric sums). Raises ConfigError for a loss that does not exist.
    """
    if loss != "sigmoid":
        raise ConfigError(f"dpo.loss = {loss!r} does not exist; expected 'sigmoid'")
    reward_chosen = beta * (chosen_logps - ref_chosen_logps)
    reward_rejected = beta * (rejected_logps - ref_rejected_logps)
    margin = reward_chosen - reward_rejected
    pair_loss = -(1.0 - label_smoothing) * jax.nn.log_sigmoid(margin) - label_smoothing * jax.nn.log_sigmoid(-margin)
    per_pair = {
        "loss": pair_loss,
        "reward_chosen": reward_chosen,
        "reward_rejected": reward_rejected,
        "reward_margin": margin,
        "reward_accuracy": (margin > 0.0).astype(jnp.float32),  # a tie is not a win, as in TRL
        "logp_chosen": chosen_logps,
        "logp_rejected": rejected_logps,
        "pairs": jnp.ones_like(margin),
    }
    sums = {name: (value * pair_weights).sum() for name, value in per_pair.items()}
    return sums["loss"], sums["pairs"], sums


def take_pairs(
    logps_BS: Float[Array, "*b S"], chosen_index_BP: Int[Array, "*b P"], rejected_index_BP: Int[Array, "*b P"]
) -> tuple[Float[Array, "*b P"], Float[Array, "*b P"]]:
    """The log-probs of each pair's two replies."""
    chosen_logps_BP = jnp.take_along_axis(logps_BS, chosen_index_BP, axis=-1)
    return chosen_logps_BP, jnp.take_along_axis(logps_BS, rejected_index_BP, axis=-1)


def chosen_token_weight(
    weight_BM: Float[Array, "*b M"],
    sequence_index_BM: Int[Array, "*b M"],
    chosen_index_BP: Int[Array, "*b P"],
    pair_weight_BP: Float[Array, "*b P"],
) -> Float[Array, "*b M"]:
    """`weight_BM` on the tokens of chosen replies, 0 elsewhere; a reply chosen in several pairs counts once."""
    is_chosen_BMP = sequence_index_BM[..., :, None] == chosen_index_BP[..., None, :]
    in_pair_BM = (is_chosen_BMP & (pair_weight_BP[..., None, :] > 0.0)).any(axis=-1)
    return jnp.where(in_pair_BM, weight_BM, 0.0)
