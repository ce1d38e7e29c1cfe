"""Held-out pairs, or single replies with a label, as a model and its reference see them: metrics of log-probs."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float32

from empathax.config import DpoOptions
from empathax.data.dataset import Dataset
from empathax.objectives.pairs import Pairs
from empathax.objectives.preference import preference_loss, reads_single_replies, reference_kind
from empathax.objectives.unpaired import Replies, unpaired_loss
from empathax.training import metrics

Logps = Float32[np.ndarray, " sequences"]
Values = Sequence[float] | Logps
SIDES = ("chosen", "rejected")


def has_pairs(dataset: Dataset) -> bool:
    """Whether every held-out example has a chosen and a rejected reply, also where these are trained apart."""
    return all(len(example.sequence_ids) == 2 for example in dataset.eval_examples)


def by_pair(dataset: Dataset, values: Values) -> Float32[np.ndarray, "2 P"]:
    """Values by sequence id as those of the (chosen, rejected) replies of each held-out pair."""
    ids = np.asarray([example.sequence_ids for example in dataset.eval_examples])
    return np.asarray(values, np.float32)[ids].T


def by_side(dataset: Dataset, values: Values) -> dict[str, tuple[tuple[str, ...], Float32[np.ndarray, " N"]]]:
    """ "chosen" and "rejected" -> (dialogue, value) of each such reply; a single one is on the side of its label."""
    found: dict[str, tuple[list[str], list[int]]] = {side: ([], []) for side in SIDES}
    for example in dataset.eval_examples:
        for sequence_id, label in zip(example.sequence_ids, example.labels or (True, False), strict=True):
            owners, ids = found[SIDES[not label]]
            owners.append(example.dialogue_id)
            ids.append(sequence_id)
    return {side: (tuple(owners), np.asarray(values, np.float32)[ids]) for side, (owners, ids) in found.items()}


def reward_metrics(dataset: Dataset, logps: Values, ref_logps: Values, beta: float) -> dict[str, float]:
    """Rewards, their margin, log-probs, and of pairs the accuracy. Rewards are beta x log-ratio, whatever the loss."""
    if has_pairs(dataset):
        values = objective_metrics(dataset, logps, ref_logps, DpoOptions(beta=beta))
    else:
        values = objective_metrics(dataset, logps, ref_logps, DpoOptions(loss=("apo_zero_unpaired",), beta=beta))
    return {name: value for name, value in values.items() if name != "loss"}


def objective_metrics(dataset: Dataset, logps: Values, ref_logps: Values, options: DpoOptions) -> dict[str, float]:
    """The same as the losses of `options` see them, with their mean; an estimate of the KL is that of all replies."""
    if not reads_single_replies(options):
        lengths = dataset.eval.reply_lengths()
        sums = pair_sums(*(by_pair(dataset, values) for values in (logps, ref_logps, lengths)), options)
        return metrics.finalize(metrics.total([sums]))
    found = metrics.finalize(metrics.total([_reply_sums(_replies(dataset, logps, ref_logps), options)]))
    if has_pairs(dataset):
        found["reward_accuracy"] = reward_metrics(dataset, logps, ref_logps, options.beta)["reward_accuracy"]
    return found


@partial(jax.jit, static_argnames="options")
def pair_sums(
    logps_2P: jax.Array, ref_logps_2P: jax.Array, lengths_2P: jax.Array, options: DpoOptions
) -> dict[str, jax.Array]:
    """Metric sums over pairs from the log-probs and lengths of their (chosen, rejected) replies.

    Of whole replies and unweighted: `ld_alpha` and `use_weighting` are for training.
    """
    if reference_kind(options) == "none":
        ref_logps_2P = jnp.zeros_like(ref_logps_2P)
    lengths_2P = jnp.asarray(lengths_2P, jnp.float32)
    pairs = Pairs(
        chosen=logps_2P[0],
        rejected=logps_2P[1],
        ref_chosen=ref_logps_2P[0],
        ref_rejected=ref_logps_2P[1],
        weight=jnp.ones_like(logps_2P[0]),
        chosen_tokens=lengths_2P[0],
        rejected_tokens=lengths_2P[1],
    )
    return preference_loss(pairs, options)[2]


@partial(jax.jit, static_argnames="options")
def _reply_sums(replies: Replies, options: DpoOptions) -> dict[str, jax.Array]:
    return unpaired_loss(replies, options)[2]


def _replies(dataset: Dataset, logps: Values, ref_logps: Values) -> Replies:
    """Of log-probs by sequence id; that of a mismatched reply is its own reply's plus the number of replies."""
    labels = np.asarray([label for example in dataset.eval_examples for label in example.labels], np.float32)
    num_replies = len(labels)
    lengths = dataset.eval.reply_lengths()[num_replies:]
    is_there = np.pad(lengths > 0, (0, num_replies - len(lengths)))

    def parts(values: Values) -> tuple[np.ndarray, np.ndarray]:
        mismatched = np.zeros(num_replies, np.float32)
        mismatched[is_there] = np.asarray(values, np.float32)[num_replies:][is_there[: len(lengths)]]
        return np.asarray(values, np.float32)[:num_replies], mismatched

    (own, mismatched), (ref_own, ref_mismatched) = parts(logps), parts(ref_logps)
    arrays = (own, ref_own, labels, np.ones_like(own), mismatched, ref_mismatched, is_there.astype(np.float32))
    return Replies(*map(jnp.asarray, arrays))
