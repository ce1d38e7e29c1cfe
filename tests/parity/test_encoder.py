"""Encoders against transformers' own models (eager attention, float32): every token's state, and sentence embeddings.

Tiny models have every parameter drawn anew, so that nothing is one or zero by accident; MiniLM is the real one.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import torch
import transformers

from empathax.models.encoder.encoder import mean_pooled, normalised, token_states
from empathax.models.encoder.files import DEFAULT_ENCODER, encoder_config, load_encoder, read_encoder
from empathax.models.encoder.text import EncoderText
from empathax.models.weights.locations import weights_in_package
from empathax.models.weights.safetensors import open_weights, read_json
from tests.parity.random_weights import randomized

TOLERANCE = 1e-4
LENGTHS = (24, 17, 3)
TEXTS = (
    "I lost my job last week, and I don't know how to tell my parents.",
    "Das klingt schwer \u2014 ich h\u00f6re dir zu. \U0001f614",
    "ok",
    "Don't write [SEP] or [MASK] like that; " * 12,
)
_SMALL = {
    "vocab_size": 120,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "max_position_embeddings": 40,
    "type_vocab_size": 2,
    "pad_token_id": 0,
}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "bert": ("Bert", {}),
    "bert-gelu-new": ("Bert", {"hidden_act": "gelu_new"}),
    "bert-relu-eps": ("Bert", {"hidden_act": "relu", "layer_norm_eps": 0.1}),
    "roberta": ("Roberta", {"pad_token_id": 1, "type_vocab_size": 1}),
    "xlm-roberta": ("XLMRoberta", {"pad_token_id": 1, "type_vocab_size": 1}),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("inside", ["Model", "ForMaskedLM"])
def test_token_states_equal_transformers(name: str, inside: str, tmp_path: Path) -> None:
    kind, changes = CASES[name]
    config = getattr(transformers, f"{kind}Config")(**_SMALL | changes)
    model = randomized(getattr(transformers, f"{kind}{inside}")._from_config(config, attn_implementation="eager"))
    model.save_pretrained(tmp_path)  # a masked language model's files have a prefix and a head
    ours = encoder_config(read_json(tmp_path / "config.json"))
    params = read_encoder(open_weights(tmp_path), ours, name)
    rng = np.random.default_rng(1)
    token_ids = rng.integers(3, config.vocab_size, (len(LENGTHS), max(LENGTHS)))
    mask = np.arange(max(LENGTHS)) < np.array(LENGTHS)[:, None]
    token_ids[~mask] = config.pad_token_id
    segments = rng.integers(0, config.type_vocab_size, token_ids.shape)
    states = jax.jit(token_states, static_argnums=1)(params, ours, token_ids, mask, segments)
    with torch.no_grad():
        expected = (model.base_model)(
            input_ids=torch.from_numpy(token_ids),
            attention_mask=torch.from_numpy(mask.astype(np.int64)),
            token_type_ids=torch.from_numpy(segments),
        ).last_hidden_state.numpy()
    assert np.abs(np.asarray(states) - expected)[mask].max() <= TOLERANCE


def test_minilm_equals_transformers() -> None:
    encoder = load_encoder()
    text = EncoderText(encoder.tokenizer, encoder.config)
    batch = text.batch([text.row(one) for one in TEXTS])
    directory = weights_in_package(DEFAULT_ENCODER.removeprefix("package:"))
    model = transformers.BertModel.from_pretrained(directory, attn_implementation="eager").float().eval()
    states = jax.jit(token_states, static_argnums=1)(encoder.params, encoder.config, *batch)
    alone = jax.jit(token_states, static_argnums=1)(encoder.params, encoder.config, *batch[:2])
    embeddings = normalised(mean_pooled(alone, batch.mask_BT))
    with torch.no_grad():
        mask = torch.from_numpy(batch.mask_BT.astype(np.int64))
        out = model(input_ids=torch.from_numpy(batch.token_ids_BT).long(), attention_mask=mask).last_hidden_state
        pooled = (out * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        expected = torch.nn.functional.normalize(pooled, dim=1).numpy()
    difference = np.abs(np.asarray(states) - out.numpy())[batch.mask_BT].max()
    print(f"states {difference:.1e}, embeddings {np.abs(np.asarray(embeddings) - expected).max():.1e}")
    assert difference <= TOLERANCE
    assert np.abs(np.asarray(embeddings) - expected).max() <= TOLERANCE


def test_minilm_ids_equal_transformers() -> None:
    encoder = load_encoder()
    directory = weights_in_package(DEFAULT_ENCODER.removeprefix("package:"))
    reference = transformers.AutoTokenizer.from_pretrained(directory)
    text = EncoderText(encoder.tokenizer, encoder.config)
    for first, second in ((TEXTS[0], TEXTS[1]), (TEXTS[1], ""), (TEXTS[2], TEXTS[0])):
        expected = reference(first, second) if second else reference(first)
        row = text.row(first, second)
        assert row.token_ids == expected["input_ids"]
        assert [int(number >= row.num_first) for number in range(len(row.token_ids))] == expected["token_type_ids"]
