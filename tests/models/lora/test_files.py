"""Adapters in PEFT's format: written and read again, added up, and refused with every reason at once."""

import json

import jax
import numpy as np
import pytest
import safetensors.numpy

from empathax.config.lora import LoraSpec
from empathax.errors import WeightsError
from empathax.models.architecture.presets import preset
from empathax.models.lora.adapters import Adapter, abstract_adapter, with_adapters
from empathax.models.lora.files import CONFIG_NAME, WEIGHTS_NAME, joined, read_adapter, write_adapter
from empathax.models.transformer import abstract_params, logits
from empathax.models.weights.source import adapted_model, resolve_model

MODEL = preset("tiny-llama")
IDS = np.arange(3, 11)[None]
ROWS = (IDS, np.arange(8)[None], np.full((1, 8), 8))


@jax.jit
def _logits(params):
    return logits(params, MODEL, *ROWS)


def _adapter(spec, seed=0):
    rng = np.random.default_rng(seed)
    shapes = abstract_adapter(abstract_params(MODEL), spec)
    return Adapter(jax.tree.map(lambda leaf: 0.1 * rng.normal(size=leaf.shape).astype(np.float32), shapes), spec)


def _written(directory, adapter):
    directory.mkdir()
    write_adapter(directory, adapter, "random:tiny-llama")
    return directory


def _changed(directory, **settings):
    path = directory / CONFIG_NAME
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))


@pytest.mark.parametrize("dora", [False, True])
def test_reading_what_was_written_gives_every_bit_back(tmp_path, dora):
    adapter = _adapter(LoraSpec(4, 8.0, rslora=True, dora=dora, targets=("q_proj", "down_proj")))
    again = read_adapter(_written(tmp_path / "a", adapter), MODEL)
    assert again.spec == adapter.spec
    jax.tree.map(np.testing.assert_array_equal, again.tree, adapter.tree)


def test_ranks_that_differ_are_cut_and_padded(tmp_path):
    spec = LoraSpec(4, 8.0, targets=("k_proj",), rank_pattern={"layers.1.self_attn.k_proj": 2})
    directory = _written(tmp_path / "a", _adapter(spec))
    tensors = safetensors.numpy.load_file(directory / WEIGHTS_NAME)
    ranks = {name.split(".")[4]: values.shape[0] for name, values in tensors.items() if "lora_A" in name}
    assert ranks == {"0": 4, "1": 2}
    a = read_adapter(directory, MODEL).tree["layers"]["attention"]["key"]["lora_a"]
    assert not a[1, :, 2:].any()
    assert a[0].all()


def test_adapters_add_up_to_one_with_their_scales_in_it(tmp_path):
    adapters = [_adapter(LoraSpec(4, 8.0)), _adapter(LoraSpec(2, 6.0, rslora=True, targets=("q_proj", "up_proj")), 1)]
    base = resolve_model("random:tiny-llama")
    wanted = with_adapters(base.load_params(), adapters)
    sum_of_them = _written(tmp_path / "sum", joined(adapters))
    found = with_adapters(base.load_params(), [read_adapter(sum_of_them, MODEL)])
    np.testing.assert_allclose(_logits(found), _logits(wanted), atol=1e-5)
    apart = [_written(tmp_path / str(number), adapter) for number, adapter in enumerate(adapters)]
    stacked = adapted_model(base, list(map(str, apart)))
    np.testing.assert_allclose(_logits(stacked.load_params()), _logits(wanted), atol=1e-5)
    assert stacked.fingerprint() != base.fingerprint() != adapted_model(base, [str(apart[0])]).fingerprint()


def test_magnitudes_do_not_add_up(tmp_path):
    adapter = _adapter(LoraSpec(2, 2.0, dora=True, targets=("q_proj",)))
    with pytest.raises(WeightsError, match="do not add up"):
        joined([adapter, adapter])
    directory = str(_written(tmp_path / "a", adapter))
    with pytest.raises(WeightsError, match="merge one into the model"):
        adapted_model(resolve_model("random:tiny-llama"), [directory, directory])


def test_every_tensor_that_does_not_fit_is_named(tmp_path):
    directory = _written(tmp_path / "a", _adapter(LoraSpec(4, 8.0, targets=("q_proj",))))
    tensors = safetensors.numpy.load_file(directory / WEIGHTS_NAME)
    own = "base_model.model.model.layers.0.self_attn.q_proj."
    tensors[own + "lora_A.weight"] = np.zeros((4, 7), np.float32)
    del tensors[own.replace("0", "1") + "lora_B.weight"]
    tensors["base_model.model.lm_head.lora_A.weight"] = np.zeros((4, 64), np.float32)
    safetensors.numpy.save_file(tensors, directory / WEIGHTS_NAME)
    with pytest.raises(WeightsError) as caught:
        read_adapter(directory, MODEL)
    for part in (
        f"{own}lora_A.weight: found [4, 7], expected [4, 64]",
        "layers.1.self_attn.q_proj.lora_B.weight: found nothing, expected [64, 4]",
        "lm_head.lora_A.weight: found in the file, but no product",
    ):
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"peft_type": "LOHA"}, "peft_type = 'LOHA': expected 'LORA'"),
        ({"bias": "all"}, "trained biases are not supported"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"init_lora_weights": "pissa_niter_4"}, "changes the base weights too"),
        ({"r": "eight"}, "r = 'eight'"),
        ({"rank_pattern": {"(": 2}}, "no regular expression"),
    ],
)
def test_settings_that_are_not_supported_are_refused_by_name(tmp_path, settings, reason):
    directory = _written(tmp_path / "a", _adapter(LoraSpec(2, 2.0, targets=("q_proj",))))
    _changed(directory, **settings)
    with pytest.raises(WeightsError, match=reason):
        read_adapter(directory, MODEL)


def test_a_directory_without_an_adapter_and_one_with_nan(tmp_path):
    with pytest.raises(WeightsError, match=r"holds no adapter: expected adapter_config\.json"):
        read_adapter(tmp_path, MODEL)
    adapter = _adapter(LoraSpec(2, 2.0, targets=("q_proj",)))
    adapter.tree["layers"]["attention"]["query"]["lora_b"][1, 0, 0] = np.nan
    with pytest.raises(WeightsError, match="layers/attention/query/lora_b: found 1 NaN"):  # nor written
        _written(tmp_path / "a", adapter)
    directory = _written(tmp_path / "b", _adapter(LoraSpec(2, 2.0, targets=("q_proj",))))
    tensors = safetensors.numpy.load_file(directory / "adapter_model.safetensors")
    next(iter(tensors.values()))[0, 0] = np.inf
    safetensors.numpy.save_file(tensors, directory / "adapter_model.safetensors", metadata={"format": "pt"})
    with pytest.raises(WeightsError, match=r"layers/attention/query/lora_[ab]: found 1 NaN or infinite values"):
        read_adapter(directory, MODEL)


def _renamed(directory, prefix):
    """The same adapter as a model with a vision tower names its modules."""
    tensors = safetensors.numpy.load_file(directory / WEIGHTS_NAME)
    renamed = {name.replace("base_model.model.model.", f"base_model.model.{prefix}"): tensors[name] for name in tensors}
    safetensors.numpy.save_file(renamed, directory / WEIGHTS_NAME)
    return renamed


@pytest.mark.parametrize("prefix", ["model.language_model.", "language_model.model."])
def test_a_decoder_beside_a_vision_tower(tmp_path, prefix):
    """Its patterns are over its own names; the tower's layers are not the decoder's."""
    module = "layers.0.self_attn.q_proj"
    adapter = _adapter(LoraSpec(4, 8.0, targets=("q_proj",)))
    directory = _written(tmp_path / "a", adapter)
    renamed = _renamed(directory, prefix)
    _changed(directory, alpha_pattern={f"{prefix}{module}": 64, rf"{prefix}layers\.1\.self_attn\.q_proj": 32})
    found = read_adapter(directory, MODEL)
    jax.tree.map(np.testing.assert_array_equal, found.tree, adapter.tree)
    assert [found.spec.scale_of(f"model.layers.{n}.self_attn.q_proj") for n in (0, 1)] == [16.0, 8.0]
    tower = f"base_model.model.vision_tower.vision_model.encoder.{module}.lora_A.weight"
    safetensors.numpy.save_file(renamed | {tower: np.ones((4, 64), np.float32)}, directory / WEIGHTS_NAME)
    with pytest.raises(WeightsError, match=r"vision_tower.*found in the file, but no product of this model takes it"):
        read_adapter(directory, MODEL)
