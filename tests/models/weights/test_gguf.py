"""GGUF files: header, unpacking, llama.cpp's row order and norms, and what a damaged or unknown file says."""

import builtins
import struct

import gguf
import numpy as np
import pytest

from empathax.errors import WeightsError
from empathax.models.rope import inverse_frequencies
from empathax.models.transformer import abstract_params
from empathax.models.weights.gguf import GGUF_TYPES, GgufFile
from empathax.models.weights.source import resolve_model

WHOLE = (slice(None), slice(None))
D, F, N, K, H, V, L = 64, 96, 4, 2, 16, 40, 2  # a small Llama


def write_gguf(path, tensors, architecture="llama", fields=(), types=(), theta=10_000.0):
    """A model file with more metadata `fields`; `types` are the quantizations of single tensors."""
    writer = gguf.GGUFWriter(path, architecture)
    sizes = {"context_length": 256, "embedding_length": D, "block_count": L, "feed_forward_length": F}
    sizes |= {"attention.head_count": N, "attention.head_count_kv": K, "attention.key_length": H}
    for key, value in sizes.items():
        writer.add_uint32(f"{architecture}.{key}", value)
    writer.add_float32(f"{architecture}.attention.layer_norm_rms_epsilon", 1e-5)
    writer.add_float32(f"{architecture}.rope.freq_base", theta)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list([f"t{number}" for number in range(V)])
    for key, value in fields:
        writer.add_key_value(key, value, gguf.GGUFValueType.get_type(value))
    for name, values in tensors.items():
        kind = dict(types).get(name)
        data = values if kind is None or values.dtype == np.uint8 else gguf.quants.quantize(values, kind)
        writer.add_tensor(name, data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def llama_tensors(seed=0):
    rng = np.random.default_rng(seed)
    shapes = {"token_embd.weight": (V, D), "output_norm.weight": (D,)}
    for n in range(L):
        shapes |= {f"blk.{n}.{name}.weight": shape for name, shape in {
            "attn_norm": (D,), "attn_q": (N * H, D), "attn_k": (K * H, D), "attn_v": (K * H, D),
            "attn_output": (D, N * H), "ffn_norm": (D,), "ffn_gate": (F, D), "ffn_up": (F, D), "ffn_down": (D, F),
        }.items()}  # fmt: skip
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def permuted(weights, num_heads):
    """As llama.cpp's convert_hf_to_gguf.py writes query and key (LlamaModel.permute)."""
    rows = weights.reshape(num_heads, 2, weights.shape[0] // num_heads // 2, *weights.shape[1:])
    return rows.swapaxes(1, 2).reshape(weights.shape)


def test_the_header_is_what_the_gguf_package_reads(tmp_path):
    fields = [("general.name", "né"), ("tokenizer.ggml.scores", [0.5, -1.0]), ("llama.x", True), ("llama.y", -7)]
    path = write_gguf(tmp_path / "a.gguf", llama_tensors(), fields=fields)
    ours, reference = GgufFile(path), gguf.GGUFReader(path)
    theirs = {key: field.contents() for key, field in reference.fields.items() if not key.startswith("GGUF.")}
    assert ours.metadata == theirs
    for tensor in reference.tensors:
        assert ours.tensors[tensor.name].shape == tuple(tensor.shape[::-1].tolist())
        np.testing.assert_array_equal(ours.read(tensor.name, WHOLE[: len(tensor.shape)]), tensor.data)


@pytest.mark.parametrize("kind", GGUF_TYPES)
def test_every_type_unpacks_as_in_the_gguf_package(tmp_path, kind):
    type_id = gguf.GGMLQuantizationType[kind]
    rng = np.random.default_rng(1)
    _, block_bytes = gguf.GGML_QUANT_SIZES[type_id]
    if kind in ("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1"):
        raw = gguf.quants.quantize(rng.standard_normal((48, 512)).astype(np.float32), type_id)
    else:  # the package cannot write these: random blocks, with scales that are numbers
        raw = rng.integers(0, 60, (48, 2 * block_bytes), dtype=np.uint8)
    writer = gguf.GGUFWriter(tmp_path / "a.gguf", "llama")
    writer.add_tensor("x", raw, raw_dtype=type_id)
    for write in (
        writer.write_header_to_file,
        writer.write_kv_data_to_file,
        writer.write_tensors_to_file,
        writer.close,
    ):
        write()
    file, expected = GgufFile(tmp_path / "a.gguf"), gguf.quants.dequantize(raw, type_id)
    assert file.tensors["x"].shape == (48, 512)
    assert np.isfinite(expected).all()
    np.testing.assert_array_equal(file.read("x", WHOLE), expected)
    part = (slice(5, 37), slice(300, 421))
    np.testing.assert_array_equal(file.read("x", part), expected[part])


def test_a_q8_block_by_hand(tmp_path):
    """One block: scale 0.5 as float16, then 32 signed bytes."""
    block = struct.pack("<e32b", 0.5, *range(-16, 16))
    writer = gguf.GGUFWriter(tmp_path / "a.gguf", "llama")
    writer.add_tensor("x", np.frombuffer(block, np.uint8)[None], raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    for write in (
        writer.write_header_to_file,
        writer.write_kv_data_to_file,
        writer.write_tensors_to_file,
        writer.close,
    ):
        write()
    np.testing.assert_array_equal(GgufFile(tmp_path / "a.gguf").read("x", WHOLE)[0], np.arange(-16, 16) / 2)


def test_rows_of_query_and_key_come_back_in_our_order(tmp_path):
    tensors = llama_tensors()
    stored = dict(tensors)
    for n in range(L):
        stored[f"blk.{n}.attn_q.weight"] = permuted(tensors[f"blk.{n}.attn_q.weight"], N)
        stored[f"blk.{n}.attn_k.weight"] = permuted(tensors[f"blk.{n}.attn_k.weight"], K)
    source = resolve_model(write_gguf(tmp_path / "a.gguf", stored))
    assert source.config.tied_embeddings
    params = source.load_params()
    for n in range(L):
        attention = {name: np.asarray(params["layers"]["attention"][name]["kernel"][n]) for name in ("query", "key")}
        np.testing.assert_array_equal(attention["query"], tensors[f"blk.{n}.attn_q.weight"].T)
        np.testing.assert_array_equal(attention["key"], tensors[f"blk.{n}.attn_k.weight"].T)
        down = np.asarray(params["layers"]["mlp"]["down"]["kernel"][n])
        np.testing.assert_array_equal(down, tensors[f"blk.{n}.ffn_down.weight"].T)


@pytest.mark.parametrize("columns", [(0, 64), (16, 48), (3, 29), (17, 18)])
def test_a_part_of_the_rows_is_unpermuted_too(tmp_path, columns):
    from empathax.models.weights.loading import read_parameter
    from empathax.models.weights.names import gguf_naming, stored_parameters

    tensors = llama_tensors()
    query = tensors["blk.1.attn_q.weight"]
    source = resolve_model(write_gguf(tmp_path / "a.gguf", tensors | {"blk.1.attn_q.weight": permuted(query, N)}))
    stored = next(s for s in stored_parameters(source.config, gguf_naming("llama")) if "attn_q" in s.names[0])
    part = read_parameter(GgufFile(tmp_path / "a.gguf"), stored, 1, (slice(8, 40), slice(*columns)))
    np.testing.assert_array_equal(part, query.T[8:40, slice(*columns)])


def test_gemma_norms_lose_the_one_that_llama_cpp_added(tmp_path):
    tensors = llama_tensors()
    norms = {name: np.ones(D, np.float32) + value for name, value in tensors.items() if "norm" in name}
    source = resolve_model(write_gguf(tmp_path / "a.gguf", tensors | norms, "gemma"))
    params = source.load_params()
    expected = norms["blk.1.attn_norm.weight"] - np.float32(1)
    np.testing.assert_array_equal(np.asarray(params["layers"]["attention_norm"]["scale"][1]), expected)
    np.testing.assert_array_equal(  # no Llama row order here
        np.asarray(params["layers"]["attention"]["query"]["kernel"][0]), tensors["blk.0.attn_q.weight"].T
    )


def test_rope_factors_of_llama_3_1_become_its_rope(tmp_path):
    """llama.cpp: 1 for short waves, the factor for long ones, 1 / blend between (convert_hf_to_gguf.py)."""
    wavelengths = 2 * np.pi * 500_000.0 ** (np.arange(0, H, 2) / H)
    smooth = (8192 / wavelengths - 1.0) / (4.0 - 1.0)
    factors = np.where(
        wavelengths < 8192 / 4, 1.0, np.where(wavelengths > 8192, 32.0, 1 / ((1 - smooth) / 32 + smooth))
    )
    tensors = llama_tensors() | {"rope_freqs.weight": factors.astype(np.float32)}
    path = write_gguf(tmp_path / "a.gguf", tensors, theta=500_000.0)
    rope = resolve_model(path).config.rope
    assert (rope.type, rope.factor, rope.original_max_positions) == ("llama3", 32.0, 8192)
    plain = 500_000.0 ** -(np.arange(0, H, 2) / H)
    np.testing.assert_allclose(inverse_frequencies(rope, H), plain / factors, rtol=1e-5)
    resolve_model(path).check()
    write_gguf(path, tensors | {"rope_freqs.weight": (factors**2).astype(np.float32)}, theta=500_000.0)
    with pytest.raises(WeightsError, match=r"rope_freqs\.weight"):
        resolve_model(path)


def test_a_separate_head_and_biases_are_seen(tmp_path):
    rng = np.random.default_rng(3)
    extra = {"output.weight": rng.standard_normal((V, D)).astype(np.float32)}
    for n in range(L):
        extra |= {f"blk.{n}.attn_{x}.bias": rng.standard_normal(size).astype(np.float32)
                  for x, size in (("q", N * H), ("k", K * H), ("v", K * H))}  # fmt: skip
    source = resolve_model(write_gguf(tmp_path / "a.gguf", llama_tensors() | extra))
    params = source.load_params()
    assert "output" in params
    assert params.keys() == abstract_params(source.config).keys()
    bias = extra["blk.1.attn_k.bias"].reshape(K, H // 2, 2).swapaxes(1, 2).reshape(-1)
    np.testing.assert_array_equal(np.asarray(params["layers"]["attention"]["key"]["bias"][1]), bias)


def test_quantized_tensors_load(tmp_path):
    tensors = llama_tensors()
    name = "blk.0.ffn_gate.weight"
    path = write_gguf(tmp_path / "a.gguf", tensors, types={name: gguf.GGMLQuantizationType.Q8_0})
    gate = np.asarray(resolve_model(path).load_params()["layers"]["mlp"]["gate"]["kernel"][0])
    np.testing.assert_allclose(gate, tensors[name].T, atol=0.02)


@pytest.mark.parametrize("keep", [0, 3, 20, 200, 1500, -1000])
def test_a_file_cut_short(tmp_path, keep):
    path = write_gguf(tmp_path / "a.gguf", llama_tensors())
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(WeightsError, match=r"a\.gguf"):
        resolve_model(path)


def test_a_file_of_another_kind(tmp_path):
    path = tmp_path / "a.gguf"
    path.write_bytes(b"PK\x03\x04" + bytes(100))
    with pytest.raises(WeightsError, match="does not start with the letters GGUF"):
        resolve_model(path)
    path.write_bytes(b"GGUF" + struct.pack(">IQQ", 3, 0, 0) + bytes(100))
    with pytest.raises(WeightsError, match="expected 2 or 3"):
        resolve_model(path)


def test_random_damage_to_the_header_is_never_a_crash(tmp_path):
    path = write_gguf(tmp_path / "a.gguf", llama_tensors())
    whole, rng = path.read_bytes(), np.random.default_rng(0)
    for _ in range(60):
        damaged = bytearray(whole)
        for position in rng.integers(4, 3000, 3):
            damaged[position] = rng.integers(256)
        path.write_bytes(damaged)
        try:
            resolve_model(path).check()
        except WeightsError:
            continue


def test_types_and_architectures_we_do_not_read_are_named(tmp_path):
    tensors = llama_tensors()
    blocks = {"blk.0.ffn_up.weight": np.zeros((F, D // 32 * 18), np.uint8)}
    kinds = {"blk.0.ffn_up.weight": gguf.GGMLQuantizationType.IQ4_NL}
    path = write_gguf(tmp_path / "a.gguf", tensors | blocks, types=kinds)
    with pytest.raises(WeightsError, match=r"blk\.0\.ffn_up\.weight: found type IQ4_NL"):
        resolve_model(path).check()
    with pytest.raises(WeightsError, match="falcon"):
        resolve_model(write_gguf(tmp_path / "b.gguf", tensors, "falcon"))


def test_without_the_gguf_package_the_error_says_what_to_install(tmp_path, monkeypatch):
    path = write_gguf(tmp_path / "a.gguf", llama_tensors())
    original = builtins.__import__

    def without_gguf(name, *rest, **named):
        if name.split(".")[0] == "gguf":
            raise ImportError(name)
        return original(name, *rest, **named)

    monkeypatch.setattr(builtins, "__import__", without_gguf)
    with pytest.raises(WeightsError, match="pip install gguf"):
        resolve_model(path)
