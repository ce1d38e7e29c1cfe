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
    those of the chosen replies.
    """
    values = {name: float(value) for name, value in sums.items()}
    kept = {name: pair for name, pair in _means(values).items() if values[pair[1]] != 0.0}
    result = {name: values[numerator] / values[count] for name, (numerator, count) in kept.items()}
    if values.get("tokens"):
        with np.errstate(over="ignore"):
            result["perplexity"] = float(np.exp(np.float64(values["nll"] / values["tokens"])))
    return result


def in_graph(sums: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    """The same numbers inside a compiled step, with the counts; a count of zero gives NaN."""
    result = {name: sums[numerator] / sums[count] for name, (numerator, count) in _means(sums).items()}
    result["perplexity"] = jnp.exp(sums["nll"] / sums["tokens"])
    counts = {name: sums[name] for name in ("tokens", "pairs", "trained_tokens") if name in sums}
    return result | counts


def _means(sums: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    token_means = TOKEN_MEANS if "tokens" in sums else {}
    return token_means | (PAIR_MEANS if "pairs" in sums else {"loss": ("nll", "tokens")})


def _exact_sum(values: Iterable[float]) -> float:
    values = list(values)
    return math.fsum(values) if all(map(math.isfinite, values)) else sum(values)
