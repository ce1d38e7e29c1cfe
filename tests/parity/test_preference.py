"""Every preference loss against TRL 1.16's own code: value, rewards and gradient with respect to each token's log-prob.

TRL's trainers are called on stand-ins that hand them log-probs, ours through `make_loss` with such a scorer: what lies
between a model and its loss is in the test on both sides. A loss that TRL has and we lack fails it.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections import defaultdict
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from trl import DPOConfig, DPOTrainer, KTOConfig, KTOTrainer
from trl.experimental.cpo import CPOConfig, CPOTrainer
from trl.experimental.orpo import ORPOTrainer

from empathax.config import DpoOptions
from empathax.config.losses import DIVERGENCES, LOSSES, MARGIN, REPLIES
from empathax.data.batch import Batch
from tests.parity.known_logps import one_row, one_row_batch, our_loss

OF_CPO = {"sigmoid": "cpo", "hinge": "cpo_hinge", "ipo": "cpo_ipo", "simpo": "simpo", "alphapo": "alphapo"}
DIVERGENCE_NAMES = {
    "reverse_kl": "reverse_kl",
    "forward_kl": "forward_kl",
    "js": "js_divergence",
    "alpha": "alpha_divergence",
}
OURS: set[str] = set()  # losses that TRL lacks: by hand in tests/objectives/test_preference.py
# the others: test_kto.py
OF_PAIRS = {name: loss for name, loss in LOSSES.items() if loss.takes != REPLIES and name not in OURS}
OF_DPO = [name for name, loss in OF_PAIRS.items() if loss.needs_reference or name == "sft"]
# the settings that a loss cannot do without
NEEDED = {"exo_pair": {"label_smoothing": 1e-3}, "alphapo": {"alphapo_alpha": 0.25}}
PAIRS, LONGEST = 6, 9


@dataclasses.dataclass
class Case:
    """Log-probs of `PAIRS` pairs, replies of 1 to LONGEST tokens: [2 PAIRS, LONGEST], the chosen replies first."""

    logps: np.ndarray
    ref_logps: np.ndarray
    log_sum_squares: np.ndarray
    mask: np.ndarray

    @property
    def lengths(self) -> np.ndarray:
        return self.mask.sum(1)


def _case(kind: str, seed: int = 0) -> Case:
    """ "random": log-probs of ordinary replies; "extreme": log-ratios from -1e4 to 1e4."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, LONGEST + 1, 2 * PAIRS)
    mask = (np.arange(LONGEST) < lengths[:, None]).astype(np.float32)
    ref_logps = -rng.gamma(1.0, 2.0, mask.shape)
    ratios = rng.normal(size=mask.shape)
    if kind == "extreme":
        wanted = np.resize([1e4, -1e4, 300.0, -300.0, 30.0, -30.0, 0.0], 2 * PAIRS)
        ratios = np.repeat((wanted / lengths)[:, None], LONGEST, axis=1)
        ref_logps = np.minimum(ref_logps, ref_logps - ratios)
    squares = -rng.gamma(1.0, 1.0, mask.shape)
    # 64ths, so that sums over tokens are exact in float32, whatever their order
    ref_logps, ratios, squares = (np.round(64 * x) / 64 for x in (ref_logps, ratios, squares))
    ratios = np.minimum(ratios, -1 / 64 - ref_logps)  # a log-prob is below 0
    return Case(*(x.astype(np.float32) * mask for x in (ref_logps + ratios, ref_logps, squares)), mask)


def _batch(case: Case) -> Batch:
    return one_row_batch(
        case.mask,
        chosen_index_BP=one_row(np.arange(PAIRS)),
        rejected_index_BP=one_row(np.arange(PAIRS, 2 * PAIRS)),
        pair_weight_BP=one_row(np.ones(PAIRS), np.float32),
    )


class _Model(torch.nn.Module):
    """Stands for a model whose log-probs are known."""

    is_gradient_checkpointing = False

    def __init__(self, case: Case, logps: torch.Tensor) -> None:
        super().__init__()
        zeros = torch.zeros(case.mask.shape)
        self.outputs = SimpleNamespace(
            log_probs=logps,
            log_sum_sq_probs=torch.from_numpy(case.log_sum_squares),
            entropy=zeros,
            mean_logits=zeros,
            is_top1=zeros.bool(),
        )

    def forward(self, **_):
        return self.outputs


def _trl_dpo(case: Case, options: DpoOptions) -> tuple[dict[str, float], np.ndarray]:
    logps = torch.from_numpy(case.logps).requires_grad_()
    model = _Model(case, logps)
    accelerator = SimpleNamespace(device="cpu", gather=lambda x: x, gather_for_metrics=lambda x: x)
    trainer = SimpleNamespace(
        model=model,
        ref_model=_Model(case, torch.from_numpy(case.ref_logps if options.loss != ("sft",) else 0 * case.ref_logps)),
        accelerator=accelerator,
        args=SimpleNamespace(discopop_tau=options.discopop_tau, gradient_checkpointing_kwargs=None),
        aux_loss_enabled=False,
        precompute_ref_logps=False,
        loss_types=list(options.loss),
        loss_weights=list(options.loss_weights) or [1.0] * len(options.loss),
        beta=options.beta,
        label_smoothing=options.label_smoothing,
        ld_alpha=None if options.ld_alpha == 1.0 else options.ld_alpha,
        f_divergence_type=DIVERGENCE_NAMES[options.f_divergence],
        f_alpha_divergence_coef=options.f_alpha,
        use_weighting=options.use_weighting,
        _metrics={"train": defaultdict(list)},
        _total_train_tokens=0,
        _tp_size=1,
    )
    mask = torch.from_numpy(np.pad(case.mask, ((0, 0), (1, 0)))).long()
    inputs = {"input_ids": mask, "completion_mask": mask, "attention_mask": mask}
    loss = DPOTrainer._compute_loss(trainer, model, inputs, return_outputs=False)
    loss.backward()
    found = {name: values[-1] for name, values in trainer._metrics["train"].items()}
    values = {
        "loss": loss.item(),
        "reward_chosen": found["rewards/chosen"],
        "reward_rejected": found["rewards/rejected"],
        "reward_margin": found["rewards/margins"],
        "reward_accuracy": found["rewards/accuracies"],
    }
    if options.ld_alpha == 1.0:  # TRL logs the discounted ones
        values |= {"logp_chosen": found["logps/chosen"], "logp_rejected": found["logps/rejected"]}
    return values, np.where(case.mask > 0.0, logps.grad.numpy(), 0.0)


def _trl_reference_free(case: Case, options: DpoOptions) -> tuple[dict[str, float], np.ndarray]:
    """CPO's and ORPO's loss on the log-probs that their trainers hand them, with their likelihood term.

    TRL's ORPO takes this term over prompt and reply, its paper and CPO over the reply: that is compared.
    """
    (name,) = options.loss
    logps = torch.from_numpy(case.logps).requires_grad_()
    lengths = torch.from_numpy(case.lengths)
    replies = logps.sum(1) / (lengths if name in ("simpo", "alphapo", "orpo", "cpo_ipo") else 1.0)
    trainer = SimpleNamespace(
        beta=options.beta,
        label_smoothing=options.label_smoothing,
        alpha=options.alphapo_alpha,
        simpo_gamma=options.simpo_gamma,
        loss_type="simpo" if name == "alphapo" else {ours: theirs for theirs, ours in OF_CPO.items()}.get(name),
        accelerator=SimpleNamespace(device="cpu"),
    )
    nll = -logps[:PAIRS].sum() / lengths[:PAIRS].sum()
    if name == "orpo":
        losses, chosen, rejected, *_ = ORPOTrainer.odds_ratio_loss(trainer, replies[:PAIRS], replies[PAIRS:])
        loss = nll - losses.mean()
    else:
        losses, chosen, rejected = CPOTrainer.cpo_loss(trainer, replies[:PAIRS], replies[PAIRS:])
        loss = losses.mean() + (0.0 if name in ("simpo", "alphapo") else options.cpo_alpha * nll)
    loss.backward()
    values = {
        "loss": loss.item(),
        "reward_chosen": chosen.mean().item(),
        "reward_rejected": rejected.mean().item(),
        "reward_margin": (chosen - rejected).mean().item(),
        "reward_accuracy": (chosen > rejected).float().mean().item(),
    }
    return values, np.where(case.mask > 0.0, logps.grad.numpy(), 0.0)


def _check(kind: str, options: DpoOptions, monkeypatch) -> None:
    case = _case(kind)
    arrays = (case.logps, case.ref_logps, case.mask, _batch(case))
    values, grad = our_loss(*arrays, options, monkeypatch, case.log_sum_squares)
    theirs = _trl_dpo if set(options.loss) <= set(OF_DPO) else _trl_reference_free
    relu = torch.clamp_min  # TRL multiplies its result in place, which its backward pass does not allow
    monkeypatch.setattr(torch, "relu", lambda x: relu(x, 0.0).clone())
    wanted, wanted_grad = theirs(case, options)
    assert np.isfinite(wanted["loss"]) or kind == "extreme"
    largest = float(np.abs(case.logps.sum(1)).max())
    assert np.isfinite(grad).all(), "a gradient of ours is not finite"
    for name, value in wanted.items():
        assert np.isfinite(values[name]), name
        if np.isfinite(value):
            # a mean of rewards of both signs is as exact as the largest of them
            slack = 1e-6 * max(1.0, largest) if name.startswith(("reward", "logp")) else 1e-6
            assert values[name] == pytest.approx(value, rel=1e-6, abs=slack), name
    finite = np.isfinite(wanted_grad) & np.isfinite(wanted["loss"])
    np.testing.assert_allclose(grad[finite], wanted_grad[finite], rtol=1e-6, atol=1e-7)


def _single() -> list[DpoOptions]:
    """Each loss alone, with what it can take."""
    cases = []
    for name, loss in OF_PAIRS.items():
        base = DpoOptions(loss=(name,), beta=0.3, **NEEDED.get(name, {}))
        cases.append(base)
        if "label_smoothing" in loss.options and name != "sigmoid":  # TRL's sigmoid ignores it; see test_logps.py
            cases.append(dataclasses.replace(base, label_smoothing=0.2))
        if "alphapo_alpha" in loss.options:
            cases.append(dataclasses.replace(base, alphapo_alpha=-0.1))
        if "simpo_gamma" in loss.options:
            cases.append(dataclasses.replace(base, simpo_gamma=1.6, beta=2.0))
        if loss.nll == "cpo_alpha":
            cases.append(dataclasses.replace(base, cpo_alpha=0.3))
        if loss.needs_reference:
            cases.append(dataclasses.replace(base, ld_alpha=0.5))
        if loss.needs_reference and not loss.whole_batch:
            cases.append(dataclasses.replace(base, use_weighting=True))
        if loss.takes == MARGIN:
            cases += [dataclasses.replace(base, f_divergence=kind) for kind in DIVERGENCES[1:]]
            cases += [dataclasses.replace(base, f_divergence="alpha", f_alpha=alpha) for alpha in (0.0, 1.0, 1.7)]
    return cases


MIXTURES = [
    DpoOptions(loss=("sigmoid", "sft"), loss_weights=(1.0, 0.7)),  # RPO
    DpoOptions(loss=("sigmoid", "bco_pair", "sft"), loss_weights=(0.8, 0.2, 1.0)),  # MPO
    DpoOptions(loss=("sigmoid", "sft"), ld_alpha=0.5, f_divergence="js"),
    DpoOptions(loss=("hinge", "nca_pair"), use_weighting=True),
    DpoOptions(loss=tuple(name for name in OF_DPO if name != "exo_pair"), loss_weights=tuple(range(1, len(OF_DPO)))),
]


def _spelled(options: DpoOptions) -> str:
    changed = {n: v for n, v in vars(options).items() if v != getattr(DpoOptions(), n) and n not in ("loss", "beta")}
    return "+".join(options.loss)[:40] + "".join(f" {name}={value}" for name, value in changed.items())


@pytest.mark.parametrize("options", [*_single(), *MIXTURES], ids=_spelled)
@pytest.mark.parametrize("kind", ["random", "extreme"])
def test_a_loss_equals_trl(kind, options, monkeypatch):
    _check(kind, options, monkeypatch)


def test_trl_has_no_loss_that_we_lack():
    source = inspect.getsource(DPOTrainer._compute_loss)
    of_dpo = set(re.findall(r'loss_type == "(\w+)"', source))
    named = re.findall(r"`'(\w+)'`", DPOConfig.__dataclass_fields__["loss_type"].metadata["help"])
    assert len(of_dpo) >= 15
    assert set(named) <= of_dpo
    assert of_dpo <= LOSSES.keys()
    of_cpo = set(CPOConfig.__dataclass_fields__["loss_type"].metadata["choices"])
    assert of_cpo == OF_CPO.keys()
    assert set(OF_CPO.values()) | {"orpo"} <= LOSSES.keys()
    of_kto = set(KTOConfig.__dataclass_fields__["loss_type"].metadata["choices"])
    assert of_kto >= set(re.findall(r'loss_type == "(\w+)"', inspect.getsource(KTOTrainer._compute_loss)))
    assert of_kto == LOSSES.keys() - OF_PAIRS.keys()
    divergences = set(re.findall(r'f_divergence_type == "(\w+)"', source))
    assert divergences == set(DIVERGENCE_NAMES.values())
    assert DIVERGENCE_NAMES.keys() == set(DIVERGENCES)
