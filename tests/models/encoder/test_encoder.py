"""Encoders without torch: padding, pairs, files that are not whole. Numbers of transformers: tests/parity."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from empathax.errors import WeightsError
from empathax.models.encoder.encoder import (
    EncoderConfig,
    mean_pooled,
    normalised,
    token_states,
)
from empathax.models.encoder.files import encoder_config, encoder_tensors, load_encoder, read_encoder
from empathax.models.encoder.text import EncoderText
from empathax.models.weights.safetensors import open_weights
from tests.models.encoder.random_encoder import init_encoder

TINY = EncoderConfig("bert", 64, 2, 24, 32, 4, 20, 2, 1e-12, "gelu")
SETTINGS = {
    "model_type": "bert",
    "vocab_size": 64,
    "num_hidden_layers": 2,
    "hidden_size": 24,
    "intermediate_size": 32,
    "num_attention_heads": 4,
    "max_position_embeddings": 20,
    "type_vocab_size": 2,
}


@pytest.fixture(scope="module")
def minilm():
    return load_encoder()


def test_padding_changes_nothing():
    params = init_encoder(TINY, 0)
    rng = np.random.default_rng(0)
    token_ids = rng.integers(0, 64, (1, 12)).astype(np.int32)
    forward = jax.jit(token_states, static_argnums=1)
    alone = forward(params, TINY, token_ids[:, :7], np.ones((1, 7), bool))
    padded = forward(params, TINY, token_ids, np.arange(12)[None] < 7)
    np.testing.assert_allclose(alone, padded[:, :7], atol=1e-5)


def test_bfloat16_is_near():
    params = init_encoder(TINY, 0)
    token_ids, mask = np.arange(12, dtype=np.int32).reshape(2, 6), np.ones((2, 6), bool)
    exact, rounded = (
        normalised(mean_pooled(token_states(params, TINY, token_ids, mask, compute_dtype=dtype), mask))
        for dtype in (jnp.float32, jnp.bfloat16)
    )
    assert rounded.dtype == jnp.float32
    np.testing.assert_allclose(exact, rounded, atol=0.05)


def test_pooling_by_hand():
    states = np.array([[[1.0, 2.0], [3.0, 4.0], [100.0, 100.0]], [[5.0, 5.0]] * 3])
    mask = np.array([[True, True, False], [False] * 3])
    np.testing.assert_array_equal(mean_pooled(states, mask), [[2.0, 3.0], [0.0, 0.0]])
    np.testing.assert_allclose(normalised(np.array([[3.0, 4.0], [0.0, 0.0]])), [[0.6, 0.8], [0.0, 0.0]], rtol=1e-6)


def test_files_round_trip(tmp_path):
    params = init_encoder(TINY, 3)
    safetensors.numpy.save_file(encoder_tensors(params, TINY), tmp_path / "model.safetensors")
    assert encoder_config(SETTINGS) == TINY
    assert encoder_config(SETTINGS | {"position_embedding_type": None, "pad_token_id": None}) == TINY
    again = read_encoder(open_weights(tmp_path), TINY, "tiny")
    jax.tree.map(np.testing.assert_array_equal, again, params)


def test_old_names_and_prefixes_are_read(tmp_path):
    params = init_encoder(TINY, 3)
    old = {"weight": "gamma", "bias": "beta"}
    tensors = {}
    for name, value in encoder_tensors(params, TINY).items():
        stem, _, kind = name.rpartition(".")
        tensors[f"bert.{stem}.{old[kind] if stem.endswith('LayerNorm') else kind}"] = value
    safetensors.numpy.save_file(tensors | {"cls.bias": np.zeros(3, np.float32)}, tmp_path / "model.safetensors")
    jax.tree.map(np.testing.assert_array_equal, read_encoder(open_weights(tmp_path), TINY, "tiny"), params)


def test_what_is_wrong_with_files_is_named(tmp_path):
    tensors = encoder_tensors(init_encoder(TINY, 3), TINY)
    del tensors["encoder.layer.1.output.dense.weight"]
    tensors["embeddings.position_embeddings.weight"] = np.zeros((19, 24), np.float32)
    tensors["encoder.layer.0.output.dense.bias"] = np.full(24, np.nan, np.float32)
    safetensors.numpy.save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(WeightsError) as error:
        read_encoder(open_weights(tmp_path), TINY, "tiny")
    assert "encoder.layer.1.output.dense.weight: found nothing, expected [24, 32]" in str(error.value)
    assert "position_embeddings.weight: found [19, 24], expected [20, 24]" in str(error.value)
    assert "encoder.layer.0.output.dense.bias: found NaN" in str(error.value)


def test_configs_that_cannot_be_honoured(tmp_path):
    with pytest.raises(WeightsError, match="model_type = 'llama'"):
        encoder_config({"model_type": "llama"})
    bad = {
        "hidden_act": "tanh",
        "position_embedding_type": "relative_key",
        "num_attention_heads": 5,
        "vocab_size": None,
    }
    with pytest.raises(WeightsError) as error:
        encoder_config(SETTINGS | bad)
    assert all(part in str(error.value) for part in ("tanh", "relative_key", "not a multiple", "vocab_size = None"))
    (tmp_path / "other.json").write_text(json.dumps({}))
    with pytest.raises(WeightsError, match="expected an encoder's directory"):
        load_encoder(tmp_path)


def test_control_tokens_in_text_are_text(minilm):
    text = EncoderText(minilm.tokenizer, minilm.config)
    row = text.row("hello [SEP] [CLS] there", "a [SEP]")
    begin, end = (minilm.tokenizer.token_to_id(name) for name in ("[CLS]", "[SEP]"))
    assert row.token_ids.count(end) == 2
    assert row.token_ids.count(begin) == 1
    assert row.token_ids[row.num_first - 1] == end


def test_long_texts_are_cut(minilm):
    text = EncoderText(minilm.tokenizer, minilm.config)
    words = " ".join(["one", "two", "three", "four"] * 200)
    row = text.row(words, words)
    assert len(row.token_ids) <= minilm.config.max_tokens
    short = text.row("one two three four", "five six seven", max_first=2, max_second=2)
    assert minilm.tokenizer.decode(short.token_ids, skip_special_tokens=True).split() == ["one", "two", "six", "seven"]


def test_batches_cover_every_row_once(minilm):
    text = EncoderText(minilm.tokenizer, minilm.config)
    rows = [text.row("word " * n) for n in (3, 40, 1, 9, 22)]
    seen = []
    for numbers, batch in text.batches(rows, 2):
        assert batch.token_ids_BT.shape[0] == 2
        assert batch.token_ids_BT.shape[1] % 16 == 0
        for place, number in enumerate(numbers):
            assert batch.token_ids_BT[place][batch.mask_BT[place]].tolist() == rows[number].token_ids
        seen += numbers.tolist()
    assert sorted(seen) == list(range(5))
