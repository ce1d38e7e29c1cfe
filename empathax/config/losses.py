"""Which preference losses exist and what each takes, declared once; and what does not fit together in its settings.

A declaration says in which form a loss takes log-probs, so that no caller can hand it sums for means, and which rows it
reads. The formulas are in objectives/; docs/objectives.md is the table for readers.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields

from empathax.config.options import DIVERGENCES, DpoOptions, LoraOptions
from empathax.errors import did_you_mean

# What a loss's function takes, one value per pair (see objectives/preference.py):
MARGIN = "margin"  # score of the chosen reply - score of the rejected one; scores are log-ratios to the reference
RATIOS = "ratios"  # both log-ratios
LOGPS = "logps"  # both log-probs under the policy, no reference
SORTED = "sorted"  # all log-probs of the whole batch, policy and reference, with the pairs' weights
NOTHING = "nothing"  # no part that is a mean over pairs
REPLIES = "replies"  # the log-ratio of one reply and its label, without a pair (see objectives/unpaired.py)

# The rows that a stage reads:
REPLY_ROWS = "replies"  # a prompt and the reply to learn
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
LOSSES: dict[str, Loss] = {
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


def rows_kind(options: DpoOptions) -> str:
    """PAIRED_ROWS, LABELED_ROWS or MISMATCHED_ROWS: what the losses read; of settings without a problem."""
    chosen = [LOSSES[name] for name in options.loss]
    if any(loss.estimates_kl for loss in chosen):
        return MISMATCHED_ROWS
    return LABELED_ROWS if any(loss.takes == REPLIES for loss in chosen) else PAIRED_ROWS


def reads_single_replies(options: DpoOptions) -> bool:
    """Whether the losses are of single replies with a label, not of pairs."""
    return rows_kind(options) != PAIRED_ROWS


def reference_kind(options: DpoOptions, lora: LoraOptions | None = None) -> str:
    """Where the reference is: "resident", "precomputed", "adapter_off" or "none"; of settings without a problem.

    That is `dpo.reference` with "auto" resolved. A reference beside an adapter (`lora`) is the model without it.
    """
    kind = options.reference
    if kind == "auto":
        kind = "resident" if any(LOSSES[name].needs_reference for name in options.loss) else "none"
    return "adapter_off" if kind == "resident" and lora is not None and lora.rank else kind


def loss_weights(options: DpoOptions) -> tuple[float, ...]:
    """The weight of each loss; 1 each where none is set."""
    return options.loss_weights or (1.0,) * len(options.loss)


def problems(options: DpoOptions) -> list[str]:
    """Everything that is wrong with the settings of stage dpo, in sentences."""
    found = list(_names(options.loss))
    if found:
        return found  # the rest is about losses that exist
    losses, defaults = [LOSSES[name] for name in options.loss], DpoOptions()
    changed = {field.name for field in fields(options) if getattr(options, field.name) != getattr(defaults, field.name)}
    return [
        *_weights(losses, options),
        *_unused(losses, changed, options),
        *_values(losses, options),
        *_divergence(losses, changed, options),
        *_discounts(losses, options),
        *_single_replies(losses, options),
        *_reference(losses, changed, options),
        *_batches(losses, options),
    ]


def unpair_problems(options: DpoOptions, unpair: bool) -> list[str]:
    """What is wrong with `data.unpair` for losses whose settings have no problem themselves."""
    if unpair and rows_kind(options) == PAIRED_ROWS:
        takers = _spelled(loss.name for loss in LOSSES.values() if loss.takes == REPLIES)
        found = f"dpo.loss = {_spelled(options.loss)}"
        return [f"data.unpair = True does not go with {found}, which compares pairs; it is for {takers}"]
    return []


def _names(names: Sequence[str]) -> Iterator[str]:
    if not names:
        yield f"dpo.loss = (): expected one or more of {', '.join(LOSSES)}"
    for name in names:
        if name not in LOSSES:
            near = did_you_mean(name, LOSSES)
            yield f"dpo.loss = {name!r} does not exist; expected one or more of {', '.join(LOSSES)}{near}"
    if len(set(names)) < len(names):
        yield f"dpo.loss = {_spelled(names)}: each loss may be named once; dpo.loss_weights weighs them"


def _weights(losses: Sequence[Loss], options: DpoOptions) -> Iterator[str]:
    weights = options.loss_weights
    if weights and len(weights) != len(losses):
        yield (
            f"dpo.loss_weights has {len(weights)} numbers for {len(losses)} losses ({_spelled(options.loss)}): "
            "give one each, or none for 1 each"
        )
    if any(not 0.0 < weight < float("inf") for weight in weights):
        yield f"dpo.loss_weights = {weights!r}: expected numbers > 0; leave out a loss that is not wanted"


def _unused(losses: Sequence[Loss], changed: set[str], options: DpoOptions) -> Iterator[str]:
    """Settings that other losses take; the beta is not among them, it is that of the rewards too."""
    used = {name for loss in losses for name in loss.settings}
    of_losses = {name for loss in LOSSES.values() for name in loss.settings} - {"beta"}
    for name in (field.name for field in fields(options) if field.name in of_losses):
        if name in changed and name not in used:
            takers = _spelled(loss.name for loss in LOSSES.values() if name in loss.settings)
            yield (
                f"dpo.{name} = {getattr(options, name)!r} does nothing: dpo.loss = {_spelled(options.loss)} does not "
                f"take it ({takers} do)"
            )


def _values(losses: Sequence[Loss], options: DpoOptions) -> Iterator[str]:
    names, smoothing = {loss.name for loss in losses}, options.label_smoothing
    if options.beta == 0.0 and any("beta" in loss.options for loss in losses):
        yield "dpo.beta = 0.0: expected a value > 0, the loss would not depend on the model"
    if "robust" in names and smoothing >= 0.5:
        yield f"dpo.label_smoothing = {smoothing!r}: 'robust' divides by 1 - 2 x this, expected less than 0.5"
    if "exo_pair" in names and smoothing == 0.0:
        yield "dpo.label_smoothing = 0.0: 'exo_pair' takes its logarithm, expected more than 0 (its paper has 1e-3)"
    if "alphapo" in names and options.alphapo_alpha == 0.0:
        yield "dpo.alphapo_alpha = 0.0: 'alphapo' without its alpha is 'simpo'; set one of the two"


def _divergence(losses: Sequence[Loss], changed: set[str], options: DpoOptions) -> Iterator[str]:
    divergence = options.f_divergence
    if "f_alpha" in changed and divergence != "alpha":
        yield f"dpo.f_alpha = {options.f_alpha!r} does nothing: dpo.f_divergence is {divergence!r}, not 'alpha'"
    if divergence == DIVERGENCES[0] or divergence not in DIVERGENCES:
        return
    others = [loss.name for loss in losses if loss.takes not in (MARGIN, NOTHING)]
    if others or all(loss.takes == NOTHING for loss in losses):
        takers = _spelled(loss.name for loss in LOSSES.values() if loss.takes == MARGIN)
        yield (
            f"dpo.f_divergence = {divergence!r} does not go with dpo.loss = {_spelled(others or options.loss)}: "
            f"its normaliser cancels only in the difference of two rewards, which {takers} are made of"
        )


def _single_replies(losses: Sequence[Loss], options: DpoOptions) -> Iterator[str]:
    single = [loss.name for loss in losses if loss.takes == REPLIES]
    if not single:
        return
    if others := [loss.name for loss in losses if loss.takes != REPLIES]:
        yield (
            f"dpo.loss = {_spelled(options.loss)}: {_spelled(single)} read single replies with a label, "
            f"{_spelled(others)} pairs; a stage reads one of the two"
        )
    if options.ld_alpha != 1.0:
        yield (
            f"dpo.ld_alpha = {options.ld_alpha!r} does not go with dpo.loss = {_spelled(single)}: LD-DPO discounts "
            "what is longer than a pair's shorter reply"
        )
    if options.use_weighting:
        yield f"dpo.use_weighting does not go with dpo.loss = {_spelled(single)}: WPO weighs pairs"
    if options.desirable_weight == options.undesirable_weight == 0.0:
        yield "dpo.desirable_weight and dpo.undesirable_weight are both 0.0: expected at least one above 0"


def _discounts(losses: Sequence[Loss], options: DpoOptions) -> Iterator[str]:
    free = [loss.name for loss in losses if loss.takes in (LOGPS, NOTHING)]
    tailless = [loss.name for loss in losses if loss.takes == LOGPS]
    if options.ld_alpha != 1.0 and (tailless or len(free) == len(losses)):
        yield (
            f"dpo.ld_alpha = {options.ld_alpha!r} does not go with dpo.loss = {_spelled(tailless or free)}: LD-DPO "
            "discounts log-ratios to a reference"
        )
    if not options.use_weighting:
        return
    if free:
        yield (
            f"dpo.use_weighting does not go with dpo.loss = {_spelled(free)}: WPO weighs pairs of a loss with a "
            "reference, and a mean over tokens has no pairs"
        )
    if batch := [loss.name for loss in losses if loss.whole_batch]:
        yield (
            f"dpo.use_weighting does not go with dpo.loss = {_spelled(batch)}: it sorts the pairs, so a pair's weight "
            "would fall on another pair"
        )


def _reference(losses: Sequence[Loss], changed: set[str], options: DpoOptions) -> Iterator[str]:
    reference, needing = options.reference, [loss.name for loss in losses if loss.needs_reference]
    if reference == "none" and needing:
        yield f"dpo.reference = 'none': {_spelled(needing)} need one; expected 'auto', 'resident' or 'precomputed'"
    if reference in ("resident", "precomputed", "adapter_off") and not needing:
        yield (
            f"dpo.reference = {reference!r}: dpo.loss = {_spelled(options.loss)} has no reference; expected 'auto' "
            "or 'none'"
        )
    if options.ld_alpha != 1.0 and reference == "precomputed":
        yield (
            f"dpo.ld_alpha = {options.ld_alpha!r}: a precomputed reference has one log-prob a reply, not one a "
            "token; set dpo.reference to 'resident'"
        )
    if options.ref_sync_steps and (reference == "precomputed" or not needing):
        yield (
            f"dpo.ref_sync_steps = {options.ref_sync_steps}: only a reference in memory can follow the policy; "
            "expected dpo.reference = 'resident' and a loss that has a reference"
        )
    if "ref_mixup_alpha" in changed and not options.ref_sync_steps:
        yield (
            f"dpo.ref_mixup_alpha = {options.ref_mixup_alpha!r} does nothing: dpo.ref_sync_steps is 0, the "
            "reference stays as it is"
        )


def _batches(losses: Sequence[Loss], options: DpoOptions) -> Iterator[str]:
    batch, steps = [loss.name for loss in losses if loss.whole_batch], options.accumulation_steps
    if batch and steps > 1:
        yield (
            f"dpo.accumulation_steps = {steps}: {_spelled(batch)} sort all pairs of a step, which micro-batches do not "
            "see; set it to 1 and raise dpo.rows_per_batch"
        )


def _spelled(names: Iterable[str]) -> str:
    return ", ".join(repr(name) for name in names)
