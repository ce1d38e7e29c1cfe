"""Which preference losses exist and what each takes: declared once, for the check of the settings and for the losses.

A declaration says in which form a loss takes log-probs, so that no caller can hand it sums for means, and which rows it
reads. The formulas are in objectives/, what does not fit together in loss_checks.py; docs/objectives.md is the table
for readers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

# What a loss's function takes, one value per pair (see objectives/preference.py):
MARGIN = "margin"  # score of the chosen reply - score of the rejected one; scores are log-ratios to the reference
RATIOS = "ratios"  # both log-ratios
LOGPS = "logps"  # both log-probs under the policy, no reference
SORTED = "sorted"  # all log-probs of the whole batch, policy and reference, with the pairs' weights
NOTHING = "nothing"  # no part that is a mean over pairs
REPLIES = "replies"  # the log-ratio of one reply and its label, without a pair (see objectives/unpaired.py)

# The rows that a stage reads, by its losses:
PAIRED_ROWS = "pairs"  # a prompt with a chosen and a rejected reply
LABELED_ROWS = "labeled"  # a prompt and one reply with a label, desirable or not
MISMATCHED_ROWS = "mismatched"  # the same; each prompt also with another prompt's reply, for an estimate of the KL


@dataclass(frozen=True)
class Loss:
    """A preference loss, declared.

    Attributes:
        name: as in `dpo.loss`.
        takes: what its function is given: MARGIN, RATIOS, LOGPS, SORTED, NOTHING or REPLIES.
        reduction: whether these come from a reply's summed log-prob ("sum") or from it per token ("mean").
        options: the settings it uses; its function takes them as keywords.
        nll: weight of the chosen replies' negative log-likelihood per token that belongs to the loss: a number, or the
            name of the setting that holds it.
        estimates_kl: whether it needs an estimate of the KL divergence to the reference.
    """

    name: str
    takes: str
    reduction: str = "sum"
    options: tuple[str, ...] = ("beta",)
    nll: float | str = 0.0
    estimates_kl: bool = False

    @property
    def needs_reference(self) -> bool:
        """Whether it is defined by log-ratios to a reference."""
        return self.takes in (MARGIN, RATIOS, SORTED, REPLIES)

    @property
    def whole_batch(self) -> bool:
        """Whether a pair's loss depends on the other pairs of its batch."""
        return self.takes == SORTED

    @property
    def settings(self) -> tuple[str, ...]:
        """Every setting it uses, the one of its likelihood term included."""
        return (*self.options, self.nll) if isinstance(self.nll, str) else self.options


SMOOTHED = ("beta", "label_smoothing")
WEIGHTED = ("beta", "desirable_weight", "undesirable_weight")
LOSSES: Mapping[str, Loss] = {
    loss.name: loss
    for loss in (
        Loss("sigmoid", MARGIN, options=SMOOTHED),
        Loss("robust", MARGIN, options=SMOOTHED),
        Loss("hinge", MARGIN),
        Loss("ipo", MARGIN, "mean"),
        Loss("exo_pair", MARGIN, options=SMOOTHED),
        Loss("discopop", MARGIN, options=("beta", "discopop_tau")),
        Loss("sigmoid_norm", MARGIN, "mean"),
        Loss("nca_pair", RATIOS),
        Loss("bco_pair", RATIOS),
        Loss("sppo_hard", RATIOS),
        Loss("apo_zero", RATIOS),
        Loss("apo_down", RATIOS),
        Loss("aot", SORTED, options=SMOOTHED),
        Loss("aot_unpaired", SORTED, options=SMOOTHED),
        Loss("sft", NOTHING, options=(), nll=1.0),
        Loss("cpo", LOGPS, options=(*SMOOTHED, "alphapo_alpha"), nll="cpo_alpha"),
        Loss("cpo_hinge", LOGPS, options=("beta", "alphapo_alpha"), nll="cpo_alpha"),
        Loss("cpo_ipo", LOGPS, "mean", ("beta", "alphapo_alpha"), nll="cpo_alpha"),
        Loss("simpo", LOGPS, "mean", (*SMOOTHED, "simpo_gamma")),
        Loss("alphapo", LOGPS, "mean", (*SMOOTHED, "simpo_gamma", "alphapo_alpha")),
        Loss("orpo", LOGPS, "mean", nll=1.0),
        Loss("kto", REPLIES, options=WEIGHTED, estimates_kl=True),
        Loss("apo_zero_unpaired", REPLIES, options=WEIGHTED),
    )
}

DIVERGENCES = ("reverse_kl", "forward_kl", "js", "alpha")
REFERENCES = ("auto", "resident", "precomputed", "none")


def rows_kind(settings: Mapping[str, Any]) -> str:
    """PAIRED_ROWS, LABELED_ROWS or MISMATCHED_ROWS: what stage dpo reads; of settings without a problem."""
    chosen = [LOSSES[name] for name in settings["loss"]]
    if any(loss.estimates_kl for loss in chosen):
        return MISMATCHED_ROWS
    return LABELED_ROWS if any(loss.takes == REPLIES for loss in chosen) else PAIRED_ROWS


def reference_kind(settings: Mapping[str, Any]) -> str:
    """ "resident", "precomputed" or "none": `dpo.reference` with "auto" resolved; of settings without a problem."""
    chosen = settings["reference"]
    if chosen != "auto":
        return chosen
    return "resident" if any(LOSSES[name].needs_reference for name in settings["loss"]) else "none"


def loss_weights(settings: Mapping[str, Any]) -> tuple[float, ...]:
    """The weight of each loss; 1 each where none is set."""
    return tuple(settings["loss_weights"]) or (1.0,) * len(settings["loss"])
