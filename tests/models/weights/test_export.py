"""Export: what is written, that it is all or nothing, and that reading it gives every bit back."""

import json
import os
import signal
import subprocess
import sys

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from empathax.errors import CheckpointError, ConfigError
from empathax.models.architecture.presets import PRESETS
from empathax.models.tokenizers.tokenizer import Tokenizer, byte_tokenizer
from empathax.models.weights import export
from empathax.models.weights.export import export_model
from empathax.models.weights.source import resolve_model


def export_preset(name, out_dir, **options):
    model = resolve_model(f"random:{name}")
    params = model.load_params()
    return params, export_model(params, model.config, byte_tokenizer(), out_dir, **options)


@pytest.mark.parametrize("name", PRESETS)
def test_reading_an_export_gives_every_bit_back(tmp_path, name):
    params, directory = export_preset(name, tmp_path / "out")
    again = resolve_model(directory)
    assert again.config == PRESETS[name]
    jax.tree.map(np.testing.assert_array_equal, again.load_params(), params)


def test_the_files_are_those_of_a_hub_model(tmp_path):
    _, directory = export_preset("tiny-gemma3", tmp_path / "out")
    assert {path.name for path in directory.iterdir()} == {
        "config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json",
        "special_tokens_map.json", "chat_template.jinja",
    }  # fmt: skip
    config = json.loads((directory / "config.json").read_text())
    assert config["architectures"] == ["Gemma3ForCausalLM"]
    assert json.loads((directory / "generation_config.json").read_text()) == {
        "bos_token_id": 1, "pad_token_id": 0, "eos_token_id": [2],
    }  # fmt: skip
    tokenizer = json.loads((directory / "tokenizer_config.json").read_text())
    assert (tokenizer["tokenizer_class"], tokenizer["eos_token"]) == ("PreTrainedTokenizerFast", "<|im_end|>")
    with safetensors.safe_open(directory / "model.safetensors", "numpy") as file:
        assert file.metadata() == {"format": "pt"}
        assert file.get_slice("model.layers.0.mlp.down_proj.weight").get_shape() == [64, 128]


def test_shards_and_their_index_agree(tmp_path):
    limit = 100_000
    params, directory = export_preset("tiny-mistral", tmp_path / "out", max_shard_bytes=limit)
    index = json.loads((directory / "model.safetensors.index.json").read_text())
    files = sorted(path.name for path in directory.glob("*.safetensors"))
    assert len(files) > 3
    assert files[0] == f"model-00001-of-{len(files):05d}.safetensors"
    found = {}
    for name in files:
        tensors = safetensors.numpy.load_file(directory / name)
        assert len(tensors) == 1 or sum(value.nbytes for value in tensors.values()) <= limit
        found |= dict.fromkeys(tensors, name)
    assert found == index["weight_map"]
    assert index["metadata"]["total_size"] == sum(leaf.nbytes for leaf in jax.tree.leaves(params))


def test_bfloat16_rounds_to_nearest_even(tmp_path):
    params, directory = export_preset("tiny-llama", tmp_path / "out", dtype="bfloat16")
    assert json.loads((directory / "config.json").read_text())["torch_dtype"] == "bfloat16"
    stored = safetensors.numpy.load_file(directory / "model.safetensors")["model.norm.weight"]
    assert stored.dtype == ml_dtypes.bfloat16
    again = resolve_model(directory).load_params(jnp.bfloat16)
    jax.tree.map(lambda ours, full: np.testing.assert_array_equal(ours, full.astype(jnp.bfloat16)), again, params)


def test_parameters_spread_over_devices(tmp_path):
    model = resolve_model("random:tiny-llama")
    whole = model.load_params()
    mesh = Mesh(np.array(jax.devices()[:4]).reshape(2, 2), ("a", "b"))
    specs = {3: PartitionSpec(None, "a", "b"), 2: PartitionSpec(None, "a"), 1: PartitionSpec()}
    spread = jax.tree.map(lambda leaf: jax.device_put(leaf, NamedSharding(mesh, specs[leaf.ndim])), whole)
    directory = export_model(spread, model.config, byte_tokenizer(), tmp_path / "out")
    jax.tree.map(np.testing.assert_array_equal, resolve_model(directory).load_params(), whole)


def test_a_target_that_must_not_be_touched(tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("keep")
    with pytest.raises(ConfigError, match="exists and is not empty"):
        export_preset("tiny-llama", tmp_path / "full")
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["mine.txt"]
    (tmp_path / "file").write_text("x")
    with pytest.raises(ConfigError, match="is a file"):
        export_preset("tiny-llama", tmp_path / "file")
    with pytest.raises(ConfigError, match="cannot be written"):
        export_preset("tiny-llama", tmp_path / "file" / "below")
    with pytest.raises(ConfigError, match="export dtype 'int8'"):
        export_preset("tiny-llama", tmp_path / "new", dtype="int8")


def test_an_empty_target_is_filled(tmp_path):
    (tmp_path / "out").mkdir()
    _, directory = export_preset("tiny-llama", tmp_path / "out")
    assert (directory / "config.json").is_file()


def test_a_full_disk_leaves_nothing_behind(tmp_path, monkeypatch):
    def full(self, directory):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Tokenizer, "save", full)
    with pytest.raises(CheckpointError, match="No space left on device") as caught:
        export_preset("tiny-llama", tmp_path / "out")
    assert caught.value.exit_code == 5
    assert list(tmp_path.iterdir()) == []


KILLED = """
import os, signal, sys
os.environ["JAX_PLATFORMS"] = "cpu"
from empathax.models.weights import export
from empathax.models.weights.source import resolve_model
write = export._write_shard
def write_and_die(file, *rest):
    write(file, *rest)
    os.kill(os.getpid(), signal.SIGKILL)
export._write_shard = write_and_die
model = resolve_model("random:tiny-llama")
export.export_model(model.load_params(), model.config, model.tokenizer(), sys.argv[1])
"""


def test_a_killed_export_leaves_nothing_under_the_final_name(tmp_path):
    target = tmp_path / "out"
    child = subprocess.run([sys.executable, "-c", KILLED, str(target)], capture_output=True, check=False)
    assert child.returncode == -signal.SIGKILL
    assert not target.exists()
    export_preset("tiny-llama", target)
    assert (target / "model.safetensors").is_file()


def test_only_one_layer_is_on_the_host_at_a_time(tmp_path, monkeypatch):
    largest = 0
    as_array = np.asarray

    def measured(value, *rest):
        nonlocal largest
        largest = max(largest, getattr(value, "nbytes", 0))
        return as_array(value, *rest)

    model = resolve_model("random:tiny-gemma3")
    params = model.load_params()
    monkeypatch.setattr(export.np, "asarray", measured)
    export_model(params, model.config, byte_tokenizer(), tmp_path / "out")
    assert largest == params["embedding"]["kernel"].nbytes < params["layers"]["mlp"]["up"]["kernel"].nbytes
    assert os.listdir(tmp_path) == ["out"]
