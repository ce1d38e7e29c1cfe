"""Losses of single replies against TRL 1.16's KTOTrainer: value, rewards, KL and gradient by token.

The trainer is called on stand-ins that hand it log-probs, ours through `make_loss` with such a scorer.
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from trl import KTOTrainer
from trl.data_utils import unpair_preference_dataset

from empathax.config import DataOptions, DpoOptions
from empathax.config.losses import LABELED_ROWS
from empathax.data.batch import Batch, LabeledReplies
from empathax.data.sources import load_splits
from tests.parity.known_logps import one_row, one_row_batch, our_loss

REPLIES, LONGEST = 8, 9
LABELS = np.array([1, 0, 1, 1, 0, 0, 1, 0], bool)


@dataclasses.dataclass
class Case:
    """Log-probs [2 REPLIES, LONGEST] of REPLIES replies and of as many mismatched ones after them."""

    logps: np.ndarray
    ref_logps: np.ndarray
    mask: np.ndarray


def _case(kind: str, shift: float = 0.0, seed: int = 0) -> Case:
    """ "random": log-probs of ordinary replies; "extreme": log-ratios from -1e4 to 1e4. `shift`: of mismatched ones."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, LONGEST + 1, 2 * REPLIES)
    mask = (np.arange(LONGEST) < lengths[:, None]).astype(np.float32)
    ref_logps, ratios = -rng.gamma(1.0, 2.0, mask.shape) - 3.0, rng.normal(size=mask.shape)
    if kind == "extreme":
        wanted = np.resize([1e4, -1e4, 300.0, -300.0, 30.0, -30.0, 0.0], 2 * REPLIES)
        ratios = np.repeat((wanted / lengths)[:, None], LONGEST, axis=1)
        ref_logps = np.minimum(ref_logps, ref_logps - ratios)
    ratios[REPLIES:] += shift
    ref_logps, ratios = (np.round(64 * x) / 64 for x in (ref_logps, ratios))  # sums over tokens are exact in float32
    ratios = np.minimum(ratios, -1 / 64 - ref_logps)
    return Case(*(x.astype(np.float32) * mask for x in (ref_logps + ratios, ref_logps)), mask)


def _batch(case: Case) -> Batch:
    replies = LabeledReplies(
        index_BR=one_row(np.arange(REPLIES)),
        desirable_BR=one_row(LABELS, np.float32),
        weight_BR=one_row(np.ones(REPLIES), np.float32),
        mismatched_index_BR=one_row(REPLIES + np.arange(REPLIES)),
        mismatched_weight_BR=one_row(np.ones(REPLIES), np.float32),
    )
    return one_row_batch(case.mask, replies=replies)


class _Model(torch.nn.Module):
    """Stands for a model whose log-probs of the replies, and of the mismatched ones, are known."""

    is_gradient_checkpointing = False

    def __init__(self, case: Case, logps: torch.Tensor) -> None:
        super().__init__()
        zeros = torch.zeros(REPLIES, LONGEST)
        own, mismatched = logps[:REPLIES], logps[REPLIES:]
        self.outputs = [
            SimpleNamespace(log_probs=values, entropy=zeros, mean_logits=zeros) for values in (own, mismatched)
        ]

    def forward(self, input_ids, **_):
        return self.outputs[int(input_ids[0, 0])]


def _trl(case: Case, options: DpoOptions) -> tuple[dict[str, float], np.ndarray]:
    logps = torch.from_numpy(case.logps).requires_grad_()
    model = _Model(case, logps)
    trainer = SimpleNamespace(
        model=model,
        ref_model=_Model(case, torch.from_numpy(case.ref_logps)),
        accelerator=SimpleNamespace(device="cpu", gather_for_metrics=lambda x: x),
        args=SimpleNamespace(gradient_checkpointing_kwargs=None),
        aux_loss_enabled=False,
        precompute_ref_logps=False,
        calculate_KL=options.loss == ("kto",),
        loss_type=options.loss[0],
        beta=options.beta,
        desirable_weight=options.desirable_weight,
        undesirable_weight=options.undesirable_weight,
        _metrics={"train": defaultdict(list)},
        _total_train_tokens=0,
        _tp_size=1,
    )
    trainer._compute_kl_logps = lambda *args: KTOTrainer._compute_kl_logps(trainer, *args)
    mask = torch.from_numpy(np.pad(case.mask, ((0, 0), (1, 0)))).long()
    inputs = {"label": torch.from_numpy(LABELS)}
    for prefix, own, first_token in (("", mask[:REPLIES], 0), ("KL_", mask[REPLIES:], 1)):
        ids = torch.full_like(own, first_token)  # by which the stand-in knows them
        inputs |= {f"{prefix}input_ids": ids, f"{prefix}completion_mask": own, f"{prefix}attention_mask": own}
    loss = KTOTrainer._compute_loss(trainer, model, inputs, return_outputs=False)
    loss.backward()
    found = {name: values[-1] for name, values in trainer._metrics["train"].items()}
    names = {
        "reward_chosen": "rewards/chosen", "reward_rejected": "rewards/rejected", "reward_margin": "rewards/margins",
        "logp_chosen": "logps/chosen", "logp_rejected": "logps/rejected",
    }  # fmt: skip
    names |= {"kl": "kl"} if options.loss == ("kto",) else {}
    values = {"loss": loss.item()} | {ours: found[theirs] for ours, theirs in names.items()}
    return values, np.where(case.mask > 0.0, logps.grad.numpy(), 0.0)


@pytest.mark.parametrize("name", ["kto", "apo_zero_unpaired"])
@pytest.mark.parametrize("weights", [(1.0, 1.0), (1.33, 0.5)])
@pytest.mark.parametrize(("kind", "shift"), [("random", -1.0), ("random", 1.0), ("extreme", 0.0)])
def test_a_loss_equals_trl(name, weights, kind, shift, monkeypatch):
    options = DpoOptions(loss=(name,), beta=0.3, desirable_weight=weights[0], undesirable_weight=weights[1])
    case = _case(kind, shift)
    values, grad = our_loss(case.logps, case.ref_logps, case.mask, _batch(case), options, monkeypatch)
    wanted, wanted_grad = _trl(case, options)
    largest = float(np.abs(case.logps.sum(1)).max())
    for metric, value in wanted.items():
        slack = 1e-6 if metric == "loss" else 1e-6 * max(1.0, largest)
        assert values[metric] == pytest.approx(value, rel=1e-6, abs=slack), metric
    assert np.isfinite(grad).all()
    np.testing.assert_allclose(grad, wanted_grad, rtol=1e-6, atol=1e-7)
    if name == "kto" and kind == "random":
        assert (wanted["kl"] > 0.0) == (shift > 0.0)  # both sides of the clamp are in the test


def test_pairs_are_taken_apart_as_trl_does(tmp_path):
    from datasets import Dataset

    rows = [{"prompt": f"p{n}", "chosen": f" a{n}", "rejected": f" b{n}"} for n in range(5)]
    path = tmp_path / "pairs.jsonl"
    Dataset.from_list(rows).to_json(path)
    wanted = {
        (row["prompt"], row["completion"], row["label"]) for row in unpair_preference_dataset(Dataset.from_list(rows))
    }
    options = DataOptions(path=str(path), eval_fraction=0.0, unpair=True)
    pairs = load_splits(options, LABELED_ROWS).train
    found = {
        (row.prompt, reply, label) for row in pairs for reply, label in ((row.chosen, True), (row.rejected, False))
    }
    assert found == wanted
