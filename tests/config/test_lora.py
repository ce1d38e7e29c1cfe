"""What config.lora may say: names of targets, and what does not go together, each refused by name."""

import math

import pytest

from empathax.config import from_config_dict
from empathax.config.lora import PRESETS, LoraSpec, module_name, spec_of
from empathax.config.losses import reference_kind
from empathax.errors import ConfigError


def _config(**sections):
    return from_config_dict({"lora": {"rank": 8}, **sections})


@pytest.mark.parametrize(
    ("sections", "reason"),
    [
        ({"lora": {"rank": 8, "targets": ("qproj",)}}, "lora.targets = 'qproj' does not exist.*did you mean 'q_proj'"),
        ({"lora": {"rank": 8, "targets": ()}}, r"lora.targets = \(\): expected some of attention, mlp, all-linear"),
        ({"lora": {"rank": 8, "alpha": 0.0}}, "lora.alpha = 0.0"),
        ({"lora": {"dora": True}}, "lora.dora = True does nothing: lora.rank is 0"),
        ({"lora": {}, "dpo": {"reference": "adapter_off"}}, "there is no adapter"),
        ({"lora": {}, "model": {"quantization": "nf4"}}, "quantized weights cannot be trained"),
        ({"dpo": {"reference": "resident"}}, "expected 'auto', 'adapter_off' or 'precomputed'"),
        ({"dpo": {"ref_sync_steps": 5}}, "dpo.ref_sync_steps = 5: a mix of two adapters' factors"),
        ({"lora": {"rank": 8, "dora": True, "after_sft": "keep"}}, "a second DoRA adapter"),
        ({"model": {"quantization": "nf4"}}, "lora.after_sft = 'merge': weights in nf4"),
        (
            {"lora": {"rank": 8, "path": "sft_adapter"}, "model": {"quantization": "nf4"}, "stages": ("dpo",)},
            "lora.after_sft = 'merge': weights in nf4",
        ),
        ({"dpo": {"loss": ("simpo",), "reference": "adapter_off"}}, "has no reference"),
    ],
)
def test_misuse_is_refused_by_name(sections, reason):
    with pytest.raises(ConfigError, match=reason):
        _config(**sections)


@pytest.mark.parametrize("stage", ["sft", "dpo"])
def test_one_stage_has_nothing_to_merge(stage):
    assert _config(model={"quantization": "nf4"}, stages=(stage,)).lora.after_sft == "merge"


@pytest.mark.parametrize(
    ("sections", "kind"),
    [
        ({}, "adapter_off"),
        ({"dpo": {"reference": "adapter_off"}}, "adapter_off"),
        ({"dpo": {"reference": "precomputed"}}, "precomputed"),
        ({"dpo": {"loss": ("simpo",)}}, "none"),
        ({"lora": {}}, "resident"),
    ],
)
def test_with_adapters_the_base_is_the_reference(sections, kind):
    config = _config(**sections)
    assert reference_kind(config.dpo, config.lora) == kind


@pytest.mark.parametrize(
    ("targets", "names"),
    [
        (("attention",), PRESETS["attention"]),
        (("mlp", "q_proj"), ("q_proj", *PRESETS["mlp"])),
        (("down_proj", "v_proj"), ("v_proj", "down_proj")),
        (("all-linear",), PRESETS["attention"] + PRESETS["mlp"]),
    ],
)
def test_presets_and_names_of_targets(targets, names):
    assert spec_of(_config(lora={"rank": 2, "targets": targets}).lora).targets == names


def test_scales_and_patterns_are_pefts():
    spec = LoraSpec(8, 16.0, rank_pattern={"layers.1.self_attn.q_proj": 2}, alpha_pattern={"down_proj": 4.0})
    assert spec.rank_of(module_name("q_proj", 1)) == 2
    assert spec.rank_of(module_name("q_proj", 11)) == 8
    assert spec.scale_of(module_name("q_proj", 1)) == 8.0
    assert spec.scale_of(module_name("down_proj", 0)) == 0.5
    assert LoraSpec(8, 16.0, rslora=True).scale_of(module_name("k_proj", 0)) == pytest.approx(16 / math.sqrt(8))
