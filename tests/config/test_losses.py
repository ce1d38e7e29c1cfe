"""Settings of stage dpo that do not fit together: refused by name, all at once, before anything is read."""

import re
from pathlib import Path

import pytest

from empathax.config import DpoOptions, default_config, from_config_dict
from empathax.config.losses import LOSSES, loss_weights, reference_kind
from empathax.errors import ConfigError
from empathax.objectives.preference import check_options

FITTING = {"exo_pair": {"label_smoothing": 1e-3}, "alphapo": {"alphapo_alpha": 0.25}}


def _config(**changes):
    source = default_config().to_dict()
    source["dpo"] |= changes
    return from_config_dict(source).dpo


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_can_be_named(name):
    options = _config(loss=name, **FITTING.get(name, {}))
    assert options.loss == (name,)
    assert reference_kind(options) == ("resident" if LOSSES[name].needs_reference else "none")


def test_mixtures_and_their_weights():
    options = _config(loss="sigmoid, bco_pair,sft", loss_weights=(0.8, 0.2, 1))
    assert options.loss == ("sigmoid", "bco_pair", "sft")
    assert loss_weights(options) == options.loss_weights == (0.8, 0.2, 1.0)
    assert loss_weights(_config(loss="sigmoid,sft")) == (1.0, 1.0)
    assert reference_kind(_config(loss="simpo,sft")) == "none"
    assert reference_kind(_config(reference="precomputed")) == "precomputed"


MISUSE = [
    ({"loss": "simgoid"}, "dpo.loss = 'simgoid' does not exist", "did you mean 'sigmoid'"),
    ({"loss": ()}, "dpo.loss = ()", "expected one or more of sigmoid"),
    ({"loss": "hinge,hinge"}, "each loss may be named once"),
    ({"loss": "sigmoid,sft", "loss_weights": (1.0,)}, "1 numbers for 2 losses ('sigmoid', 'sft')"),
    ({"loss_weights": (1.0, 0.5)}, "2 numbers for 1 losses"),
    ({"loss_weights": (-1.0,)}, "expected numbers > 0"),
    ({"loss_weights": ("much",)}, "dpo.loss_weights = ('much',): expected a tuple of numbers"),
    ({"beta": 0.0}, "dpo.beta = 0.0: expected a value > 0"),
    ({"loss": "hinge", "label_smoothing": 0.1}, "dpo.label_smoothing = 0.1 does nothing", "'hinge' does not take it"),
    ({"loss": "ipo", "label_smoothing": 0.1}, "'ipo' does not take it"),
    ({"loss": "robust", "label_smoothing": 0.5}, "'robust' divides by"),
    ({"loss": "exo_pair"}, "dpo.label_smoothing = 0.0: 'exo_pair' takes its logarithm"),
    ({"loss": "alphapo"}, "'alphapo' without its alpha is 'simpo'"),
    ({"simpo_gamma": 1.0}, "dpo.simpo_gamma = 1.0 does nothing", "('simpo', 'alphapo' do)"),
    ({"loss": "simpo", "cpo_alpha": 0.5}, "dpo.cpo_alpha = 0.5 does nothing"),
    ({"discopop_tau": 0.1}, "('discopop' do)"),
    ({"loss": "simpo", "alphapo_alpha": 0.1}, "dpo.alphapo_alpha = 0.1 does nothing"),
    ({"f_divergence": "tv"}, "dpo.f_divergence = 'tv': expected one of 'reverse_kl'"),
    ({"loss": "sigmoid,bco_pair", "f_divergence": "js"}, "does not go with dpo.loss = 'bco_pair'"),
    ({"loss": "sft", "f_divergence": "js"}, "does not go with dpo.loss = 'sft'"),
    ({"f_divergence": "js", "f_alpha": 0.3}, "dpo.f_alpha = 0.3 does nothing: dpo.f_divergence is 'js'"),
    ({"loss": "simpo", "ld_alpha": 0.5}, "dpo.ld_alpha = 0.5 does not go with dpo.loss = 'simpo'"),
    ({"loss": "sft", "ld_alpha": 0.5}, "dpo.ld_alpha = 0.5 does not go with dpo.loss = 'sft'"),
    ({"ld_alpha": 0.5, "reference": "precomputed"}, "one log-prob a reply, not one a token"),
    ({"loss": "aot", "use_weighting": True}, "dpo.use_weighting does not go with dpo.loss = 'aot': it sorts"),
    ({"loss": "sigmoid,sft", "use_weighting": True}, "dpo.use_weighting does not go with dpo.loss = 'sft'"),
    ({"loss": "orpo", "use_weighting": True}, "dpo.use_weighting does not go with dpo.loss = 'orpo'"),
    ({"loss": "simpo", "reference": "resident"}, "dpo.reference = 'resident': dpo.loss = 'simpo' has no reference"),
    ({"loss": "orpo", "reference": "precomputed"}, "dpo.loss = 'orpo' has no reference"),
    ({"reference": "none"}, "dpo.reference = 'none': 'sigmoid' need one"),
    ({"loss": "aot", "accumulation_steps": 4}, "'aot' sort all pairs of a step, which micro-batches do not see"),
    ({"ref_sync_steps": 8, "reference": "precomputed"}, "only a reference in memory can follow the policy"),
    ({"loss": "simpo", "ref_sync_steps": 8}, "only a reference in memory can follow the policy"),
    ({"ref_mixup_alpha": 0.9}, "dpo.ref_sync_steps is 0"),
    ({"loss": "kto,sigmoid"}, "'kto' read single replies with a label, 'sigmoid' pairs"),
    ({"loss": "apo_zero_unpaired,sft"}, "'apo_zero_unpaired' read single replies with a label, 'sft' pairs"),
    ({"loss": "kto", "ld_alpha": 0.5}, "dpo.ld_alpha = 0.5 does not go with dpo.loss = 'kto'"),
    ({"loss": "kto", "use_weighting": True}, "dpo.use_weighting does not go with dpo.loss = 'kto'"),
    ({"loss": "kto", "f_divergence": "js"}, "dpo.f_divergence = 'js' does not go with dpo.loss = 'kto'"),
    ({"loss": "kto", "reference": "none"}, "dpo.reference = 'none': 'kto' need one"),
    ({"loss": "kto", "desirable_weight": 0.0, "undesirable_weight": 0.0}, "expected at least one above 0"),
    ({"desirable_weight": 2.0}, "dpo.desirable_weight = 2.0 does nothing", "('kto', 'apo_zero_unpaired' do)"),
]


@pytest.mark.parametrize(("changes", "sentences"), [(changes, sentences) for changes, *sentences in MISUSE])
def test_misuse_is_refused_by_name(changes, sentences):
    with pytest.raises(ConfigError) as caught:
        _config(**changes)
    for sentence in sentences:
        assert sentence in str(caught.value)
    assert "problems" not in str(caught.value)  # one mistake, one sentence


def test_pairs_are_taken_apart_for_losses_of_single_replies_only():
    source = default_config()
    source.data.unpair = True
    with pytest.raises(ConfigError, match=r"data.unpair = True does not go with dpo.loss = 'sigmoid'"):
        from_config_dict(source)
    source.dpo.loss = ("kto",)
    assert from_config_dict(source).data.unpair


def test_all_problems_at_once():
    with pytest.raises(ConfigError, match="4 problems") as caught:
        _config(loss="simpo,aot", loss_weights=(1.0,), f_divergence="js", use_weighting=True)
    assert "'simpo'" in str(caught.value)


def test_options_made_in_code_are_checked_where_they_are_used():
    with pytest.raises(ConfigError, match=re.escape("dpo.loss = 'ppo' does not exist")):
        check_options(DpoOptions(loss=("ppo",)))


def test_the_table_in_the_docs_is_the_declaration():
    text = (Path(__file__).parents[2] / "docs" / "objectives.md").read_text()
    rows = [
        [cell.strip() for cell in line.split("|")[1:-1]]
        for line in text.splitlines()
        if line.startswith("| `") and "dpo.loss" not in line
    ]
    table = {row[0].strip("`"): row for row in rows if len(row) == 6}
    assert list(table) == list(LOSSES)
    for name, (_, formula, _, reference, reduction, _) in table.items():
        loss = LOSSES[name]
        assert reference == ("yes" if loss.needs_reference else "no"), name
        assert reduction == loss.reduction, name
        assert ("NLL" in formula) == bool(loss.nll), name
