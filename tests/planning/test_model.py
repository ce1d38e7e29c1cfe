"""Architectures without weights: known ones against their published parameter counts, others from where they are."""

import json

import jax
import pytest

from empathax.errors import WeightsError
from empathax.models.architecture.hf_config import from_hf_config
from empathax.models.transformer import abstract_params
from empathax.planning.model import KNOWN_MODELS, find_model

# Numbers of weights that the models' safetensors indices and model cards state.
PUBLISHED = {
    "meta-llama/Meta-Llama-3-8B-Instruct": 8_030_261_248,
    "meta-llama/Meta-Llama-3-70B-Instruct": 70_553_706_496,
    "meta-llama/Llama-3.2-1B-Instruct": 1_235_814_400,
    "meta-llama/Llama-3.2-3B-Instruct": 3_212_749_824,
    "mistralai/Mistral-7B-Instruct-v0.2": 7_241_732_096,
    "mistralai/Mistral-7B-Instruct-v0.3": 7_248_023_552,
    "google/gemma-7b-it": 8_537_680_896,
    "google/gemma-2b-it": 2_506_172_416,
}


def _num_parameters(config) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(abstract_params(config)))


@pytest.mark.parametrize("name", PUBLISHED)
def test_known_models_have_their_published_size(name):
    assert _num_parameters(from_hf_config(KNOWN_MODELS[name])) == PUBLISHED[name]


@pytest.mark.parametrize("name", KNOWN_MODELS)
def test_every_known_model_is_a_valid_architecture(name):
    config = from_hf_config(KNOWN_MODELS[name])
    assert config.num_heads % config.num_kv_heads == 0


def test_without_the_hub_a_known_model_is_taken_from_the_table():
    model = find_model("meta-llama/Meta-Llama-3-8B-Instruct")  # HF_HUB_OFFLINE is set for tests
    assert model.config.num_layers == 32
    assert "not reached" in model.origin
    assert model.tokenizer is None


def test_an_unknown_model_says_how_to_go_on():
    with pytest.raises(WeightsError, match=r"some/model.*--model-config=FILE"):
        find_model("some/model")


def test_a_config_file_describes_any_model(tmp_path):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(KNOWN_MODELS["google/gemma-2b-it"]))
    assert find_model("some/model", str(path)).config.num_kv_heads == 1
    with pytest.raises(WeightsError, match="does not exist"):
        find_model("some/model", str(tmp_path / "absent.json"))


def test_local_models_bring_their_tokenizer():
    model = find_model("random:tiny-llama")
    assert model.tokenizer is not None
    assert model.config.vocab_size == 512
