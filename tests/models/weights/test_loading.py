"""Safetensors -> parameter tree: values, layout, shardings, memory, and all that a file can get wrong."""

import dataclasses
import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from empathax.errors import WeightsError
from empathax.models.architecture.hf_config import to_hf_config
from empathax.models.architecture.presets import PRESETS, preset
from empathax.models.transformer import abstract_params
from empathax.models.weights import loading
from empathax.models.weights.names import Naming, gguf_naming, stored_parameters
from empathax.models.weights.source import resolve_model

# Written from the models' own files, not from the name table: (our leaf, tensor name, is it transposed)
LLAMA = [
    ("embedding/kernel", "model.embed_tokens.weight", False),
    ("layers/attention_norm/scale", "model.layers.{}.input_layernorm.weight", False),
    ("layers/attention/query/kernel", "model.layers.{}.self_attn.q_proj.weight", True),
    ("layers/attention/key/kernel", "model.layers.{}.self_attn.k_proj.weight", True),
    ("layers/attention/value/kernel", "model.layers.{}.self_attn.v_proj.weight", True),
    ("layers/attention/output/kernel", "model.layers.{}.self_attn.o_proj.weight", True),
    ("layers/mlp_norm/scale", "model.layers.{}.post_attention_layernorm.weight", False),
    ("layers/mlp/gate/kernel", "model.layers.{}.mlp.gate_proj.weight", True),
    ("layers/mlp/up/kernel", "model.layers.{}.mlp.up_proj.weight", True),
    ("layers/mlp/down/kernel", "model.layers.{}.mlp.down_proj.weight", True),
    ("final_norm/scale", "model.norm.weight", False),
]
GEMMA3 = [entry for entry in LLAMA if entry[0] != "layers/mlp_norm/scale"] + [
    ("layers/attention/query_norm/scale", "model.layers.{}.self_attn.q_norm.weight", False),
    ("layers/attention/key_norm/scale", "model.layers.{}.self_attn.k_norm.weight", False),
    ("layers/post_attention_norm/scale", "model.layers.{}.post_attention_layernorm.weight", False),
    ("layers/mlp_norm/scale", "model.layers.{}.pre_feedforward_layernorm.weight", False),
    ("layers/post_mlp_norm/scale", "model.layers.{}.post_feedforward_layernorm.weight", False),
]
QWEN2 = [
    *LLAMA,
    ("layers/attention/query/bias", "model.layers.{}.self_attn.q_proj.bias", False),
    ("layers/attention/key/bias", "model.layers.{}.self_attn.k_proj.bias", False),
    ("layers/attention/value/bias", "model.layers.{}.self_attn.v_proj.bias", False),
]
FILES = {
    "tiny-llama": LLAMA,
    "tiny-mistral": [*LLAMA, ("output/kernel", "lm_head.weight", False)],
    "tiny-gemma3": GEMMA3,
    "tiny-qwen2": QWEN2,
}


def leaf(tree, path):
    for key in path.split("/"):
        tree = tree[key]
    return tree


def random_tensors(name, dtype=np.float32, seed=0):
    """The tensors of a file for preset `name`, random, under their Hugging Face names."""
    rng, shapes, tensors = np.random.default_rng(seed), abstract_params(preset(name)), {}
    for path, tensor_name, transposed in FILES[name]:
        shape = leaf(shapes, path).shape
        stacked = path.startswith("layers/")
        for layer in range(shape[0] if stacked else 1):
            inner = shape[1:] if stacked else shape
            values = rng.standard_normal(inner[::-1] if transposed else inner).astype(dtype)
            tensors[tensor_name.format(layer)] = values
    return tensors


def write_model(directory, name, tensors):
    directory.mkdir(exist_ok=True)
    (directory / "config.json").write_text(json.dumps(to_hf_config(preset(name))))
    safetensors.numpy.save_file(tensors, directory / "model.safetensors")
    return resolve_model(directory)


def check_values(params, name, tensors):
    for path, tensor_name, transposed in FILES[name]:
        ours = np.asarray(leaf(params, path))
        for layer in range(len(ours)) if path.startswith("layers/") else [None]:
            value = ours if layer is None else ours[layer]
            stored = tensors[tensor_name.format(layer)]
            np.testing.assert_array_equal(value, stored.T if transposed else stored, err_msg=tensor_name)


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("naming", [Naming("hf"), gguf_naming("llama")], ids=["hf", "gguf"])
def test_the_name_table_covers_the_tree_once(name, naming):
    config = preset(name)
    stored = list(stored_parameters(config, naming))
    expected = {jax.tree_util.keystr(path, simple=True, separator="/"): leaf.shape
                for path, leaf in jax.tree_util.tree_leaves_with_path(abstract_params(config))}  # fmt: skip
    assert {"/".join(entry.path) for entry in stored} == expected.keys()
    names = [name for entry in stored for name in entry.names]
    assert len(names) == len(set(names))
    for entry in stored:
        assert len(entry.names) == (expected["/".join(entry.path)][0] if entry.stacked else 1)


@pytest.mark.parametrize("name", FILES)
def test_every_value_lands_in_its_place(tmp_path, name):
    tensors = random_tensors(name)
    params = write_model(tmp_path, name, tensors).load_params()
    assert jax.tree.structure(params) == jax.tree.structure(abstract_params(preset(name)))
    check_values(params, name, tensors)


def test_bfloat16_keeps_every_bit(tmp_path):
    tensors = random_tensors("tiny-llama", ml_dtypes.bfloat16)
    params = write_model(tmp_path, "tiny-llama", tensors).load_params(jnp.bfloat16)
    kernel = np.asarray(params["layers"]["mlp"]["up"]["kernel"][1])
    stored = tensors["model.layers.1.mlp.up_proj.weight"]
    np.testing.assert_array_equal(kernel.view(np.uint16), stored.T.view(np.uint16))
    wide = resolve_model(tmp_path).load_params(jnp.float32)["layers"]["mlp"]["up"]["kernel"]
    assert wide.dtype == jnp.float32
    np.testing.assert_array_equal(np.asarray(wide[1]), stored.T.astype(np.float32))


def test_float16_is_read_exactly(tmp_path):
    tensors = random_tensors("tiny-qwen2", np.float16)
    check_values(write_model(tmp_path, "tiny-qwen2", tensors).load_params(), "tiny-qwen2", tensors)


@pytest.mark.parametrize("piece_bytes", [1, 1 << 30])
def test_pieces_of_any_size_give_the_same_arrays(tmp_path, monkeypatch, piece_bytes):
    monkeypatch.setattr(loading, "_PIECE_BYTES", piece_bytes)
    tensors = random_tensors("tiny-mistral")
    check_values(write_model(tmp_path, "tiny-mistral", tensors).load_params(), "tiny-mistral", tensors)


def test_each_device_reads_its_own_slice_only(tmp_path, monkeypatch):
    tensors = random_tensors("tiny-mistral")
    source = write_model(tmp_path, "tiny-mistral", tensors)
    mesh = Mesh(np.array(jax.devices()[:4]).reshape(2, 2), ("fsdp", "tensor"))
    specs = {"query": (None, "fsdp", "tensor"), "down": (None, "tensor", "fsdp")}
    shardings = jax.tree_util.tree_map_with_path(
        lambda path, leaf: NamedSharding(
            mesh,
            PartitionSpec(*next((spec for key, spec in specs.items() if key in str(path) and leaf.ndim == 3), ())),
        ),
        abstract_params(source.config),
    )
    largest: dict[str, int] = {}
    read = source._weights.read

    def recorded(name, index):
        values = read(name, index)
        largest[name] = max(values.size, largest.get(name, 0))
        return values

    monkeypatch.setattr(source._weights, "read", recorded)
    params = source.load_params(shardings=shardings)
    check_values(params, "tiny-mistral", tensors)
    query = params["layers"]["attention"]["query"]["kernel"]
    assert query.sharding.spec == PartitionSpec(None, "fsdp", "tensor")
    assert query.addressable_shards[0].data.shape == (2, 32, 32)
    assert largest["model.layers.0.self_attn.q_proj.weight"] == 64 * 64 // 4
    assert largest["model.layers.1.mlp.down_proj.weight"] == 64 * 128 // 4


def test_a_vocabulary_split_over_devices(tmp_path):
    tensors = random_tensors("tiny-llama")
    source = write_model(tmp_path, "tiny-llama", tensors)
    mesh = Mesh(np.array(jax.devices()), ("tensor",))
    shardings = jax.tree.map(lambda leaf: NamedSharding(mesh, PartitionSpec()), abstract_params(source.config))
    shardings["embedding"]["kernel"] = NamedSharding(mesh, PartitionSpec("tensor"))
    check_values(source.load_params(shardings=shardings), "tiny-llama", tensors)


def test_all_problems_come_in_one_error(tmp_path):
    tensors = random_tensors("tiny-llama")
    del tensors["model.layers.1.mlp.up_proj.weight"], tensors["model.norm.weight"]
    tensors["model.layers.0.self_attn.k_proj.weight"] = np.zeros((64, 64), np.float32)
    tensors["model.layers.0.self_attn.v_proj.weight"] = np.zeros((32, 64), np.int8)
    tensors["model.layers.0.self_attn.q_proj.weight.absmax"] = np.zeros(4, np.float32)
    with pytest.raises(WeightsError) as caught:
        write_model(tmp_path, "tiny-llama", tensors).load_params()
    text = str(caught.value)
    assert "5 problems" in text
    assert "model.layers.1.mlp.up_proj.weight: found nothing, expected shape [128, 64]" in text
    assert "model.norm.weight: found nothing, expected shape [64]" in text
    assert "model.layers.0.self_attn.k_proj.weight: found shape [64, 64], expected [32, 64]" in text
    assert "model.layers.0.self_attn.v_proj.weight: found type I8" in text
    assert "q_proj.weight.absmax: found in the file, but the config has no place for it" in text


def test_the_same_problem_of_many_layers_is_one_line(tmp_path):
    tensors = {name: value for name, value in random_tensors("tiny-gemma3").items() if "q_norm" not in name}
    with pytest.raises(WeightsError, match=r"layers\.0\.self_attn\.q_norm.*layers\.5\.self_attn\.q_norm.*6 tensors"):
        write_model(tmp_path, "tiny-gemma3", tensors).check()


def test_weights_of_another_family(tmp_path):
    with pytest.raises(WeightsError, match=r"q_norm\.weight .*no place for it"):
        write_model(tmp_path / "a", "tiny-llama", random_tensors("tiny-gemma3")).check()
    tensors = {"transformer.h.0.attn.c_attn.weight": np.zeros((4, 4), np.float32)}
    with pytest.raises(WeightsError, match=r"holds none of the .* tensors of a llama model: found transformer\.h\.0"):
        write_model(tmp_path / "b", "tiny-llama", tensors).check()


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_values_that_are_not_finite_are_counted_by_tensor(tmp_path, bad):
    tensors = random_tensors("tiny-llama")
    tensors["model.layers.1.mlp.down_proj.weight"][3, 5:8] = bad
    tensors["model.embed_tokens.weight"][7, 0] = bad
    source = write_model(tmp_path, "tiny-llama", tensors)
    with pytest.raises(WeightsError) as caught:
        source.load_params()
    assert caught.value.exit_code == 4
    assert "model.layers.1.mlp.down_proj.weight: found 3 NaN or infinite" in str(caught.value)
    assert "model.embed_tokens.weight: found 1 NaN or infinite" in str(caught.value)


def test_a_tied_models_head_must_equal_its_embedding(tmp_path):
    tensors = random_tensors("tiny-llama")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].copy()
    write_model(tmp_path / "a", "tiny-llama", tensors).check()
    tensors["lm_head.weight"][500, 1] += 1
    with pytest.raises(WeightsError, match=r"lm_head\.weight: differs from model\.embed_tokens\.weight"):
        write_model(tmp_path / "b", "tiny-llama", tensors).check()


@pytest.mark.parametrize("prefix", ["model.language_model.", "language_model.model.", ""])
def test_decoders_inside_other_models(tmp_path, prefix):
    tensors = random_tensors("tiny-gemma3")
    inner = {prefix + name.removeprefix("model."): value for name, value in tensors.items()}
    inner |= {
        "model.vision_tower.vision_model.embeddings.position_embedding.weight": np.zeros((4, 4), np.float32),
        "multi_modal_projector.mm_soft_emb_norm.weight": np.zeros(4, np.float32),
    }
    check_values(write_model(tmp_path, "tiny-gemma3", inner).load_params(), "tiny-gemma3", tensors)


def test_vision_tensors_do_not_belong_in_a_llama_file(tmp_path):
    tensors = random_tensors("tiny-llama") | {"vision_tower.x": np.zeros(4, np.float32)}
    with pytest.raises(WeightsError, match=r"vision_tower\.x: found in the file"):
        write_model(tmp_path, "tiny-llama", tensors).check()


def test_known_leftovers_are_ignored(tmp_path):
    tensors = random_tensors("tiny-llama")
    tensors |= {f"model.layers.{n}.self_attn.rotary_emb.inv_freq": np.zeros(8, np.float32) for n in range(2)}
    write_model(tmp_path, "tiny-llama", tensors).check()


MEASURE = """
import os, resource, sys
os.environ["JAX_PLATFORMS"] = "cpu"
import jax
from empathax.models.weights.source import resolve_model
peaks = []
for path in sys.argv[1:]:
    params = jax.block_until_ready(resolve_model(path).load_params())
    peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
print(peaks[-1] - peaks[0], sum(leaf.nbytes for leaf in jax.tree.leaves(params)))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in other units elsewhere")
def test_peak_memory_is_the_model_and_one_piece(tmp_path, monkeypatch):
    sizes = {"vocab_size": 16384, "num_layers": 8, "model_dim": 512, "ff_dim": 1536, "num_heads": 32, "num_kv_heads": 8}
    monkeypatch.setitem(PRESETS, "big", dataclasses.replace(preset("tiny-llama"), windows=(0,) * 8, **sizes))
    monkeypatch.setitem(FILES, "big", LLAMA)
    write_model(tmp_path / "tiny", "tiny-llama", random_tensors("tiny-llama"))
    write_model(tmp_path / "big", "big", random_tensors("big"))
    command = [sys.executable, "-c", MEASURE, str(tmp_path / "tiny"), str(tmp_path / "big")]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    growth, num_bytes = map(int, out.split())
    assert 100e6 < num_bytes < 200e6
    assert growth < 1.5 * num_bytes, f"loading {num_bytes / 1e6:.0f} MB took {growth / 1e6:.0f} MB"
