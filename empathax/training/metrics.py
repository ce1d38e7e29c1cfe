"""Metric sums to the numbers of a report: batches add up exactly, means are taken once, over everything."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

# metric -> (sum, count): the metric is the quotient of the two totals.
TOKEN_MEANS = {"token_accuracy": ("correct", "tokens"), "entropy": ("entropy", "tokens")}
PAIR_MEANS = {
    name: (name, "pairs")
    for name in (
        "loss",
        "reward_accuracy",
        "reward_margin",
        "reward_chosen",
        "reward_rejected",
        "logp_chosen",
        "logp_rejected",
    )
}
COUNTS = ("tokens", "pairs", "trained_tokens", "replies", "replies_chosen", "replies_rejected")
# of single replies with a label: chosen = desirable
REPLY_MEANS = {name: (name, "replies") for name in ("loss", "kl")} | {
    f"{kind}_{side}": (f"{kind}_{side}", f"replies_{side}")
    for kind in ("reward", "logp")
    for side in ("chosen", "rejected")
}


def total(parts: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """Adds the sums of several batches, in float64 with exact rounding: no order or split of batches shows.

    Takes arrays on the device or numbers; fetches all of them at once. Raises ValueError if their names differ.
    """
    fetched = [dict(part) for part in jax.device_get(list(parts))]
    names = fetched[0].keys() if fetched else ()
    for part in fetched:
        if part.keys() != names:
            raise ValueError(f"metric sums of different kinds: {sorted(part)} and {sorted(names)}")
    return {name: _exact_sum(float(part[name]) for part in fetched) for name in names}


def finalize(sums: Mapping[str, Any]) -> dict[str, float]:
    """Sums to means under the names of docs/metrics.md; a metric whose count is zero was not measured and is left out.

    `perplexity` is exp(total nll / total tokens). Where there are pairs, `loss` is per pair, and the token metrics are
    those of the chosen replies; a likelihood term of the loss is added to it, as a mean over tokens. Of single replies
    with a label `loss` is per reply, and the chosen ones are the desirable ones.
    """
    values = {name: float(value) for name, value in sums.items()}
    kept = {name: pair for name, pair in _means(values).items() if values[pair[1]] != 0.0}
    result = {name: values[numerator] / values[count] for name, (numerator, count) in kept.items()}
    if values.get("tokens"):
        with np.errstate(over="ignore"):
            result["perplexity"] = float(np.exp(np.float64(values["nll"] / values["tokens"])))
    return _completed(result)


def measured(values: Mapping[str, float]) -> dict[str, float]:
    """Without the means over the desirable or undesirable replies of a step that has none of them."""
    empty = [side for side in ("chosen", "rejected") if values.get(f"replies_{side}") == 0.0]
    names = {f"{kind}_{side}" for kind in ("reward", "logp") for side in empty}
    names |= {"reward_margin"} if empty else set()
    names |= {"perplexity", *TOKEN_MEANS} if "chosen" in empty else set()
    return {name: value for name, value in values.items() if name not in names}


def in_graph(sums: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    """The same numbers inside a compiled step, with the counts; a count of zero gives NaN."""
    result = {name: sums[numerator] / sums[count] for name, (numerator, count) in _means(sums).items()}
    result["perplexity"] = jnp.exp(sums["nll"] / sums["tokens"])
    result = _completed(result)
    counts = {name: sums[name] for name in COUNTS if name in sums}
    return result | counts


def _means(sums: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    means = TOKEN_MEANS if "tokens" in sums else {}
    if "replies" in sums:
        return means | {name: pair for name, pair in REPLY_MEANS.items() if name in sums}
    means = means | (PAIR_MEANS if "pairs" in sums else {"loss": ("nll", "tokens")})
    return means | ({"loss_nll": ("loss_nll", "loss_nll_tokens")} if "loss_nll" in sums else {})


def _completed(means: dict[str, Any]) -> dict[str, Any]:
    """`loss` as the sum of its part over pairs, also kept as `loss_pairs`, and of its likelihood term, if any; the
    margin between single replies, which has no mean of its own."""
    if "loss_nll" in means:
        means = means | {"loss_pairs": means["loss"], "loss": means["loss"] + means["loss_nll"]}
    if "reward_margin" not in means and {"reward_chosen", "reward_rejected"} <= means.keys():
        means = means | {"reward_margin": means["reward_chosen"] - means["reward_rejected"]}
    return means


def _exact_sum(values: Iterable[float]) -> float:
    values = list(values)
    return math.fsum(values) if all(map(math.isfinite, values)) else sum(values)
