"""GGUF metadata: two real files' keys, and what is refused."""

import pytest

from empathax.errors import WeightsError
from empathax.models.architecture.gguf_config import from_gguf_metadata
from empathax.models.rope import RopeConfig

SMOLLM2 = {
    "general.architecture": "llama",
    "general.type": "model",
    "general.file_type": 3,
    "llama.block_count": 30,
    "llama.context_length": 8192,
    "llama.embedding_length": 576,
    "llama.feed_forward_length": 1536,
    "llama.attention.head_count": 9,
    "llama.attention.head_count_kv": 3,
    "llama.rope.freq_base": 100000.0,
    "llama.attention.layer_norm_rms_epsilon": 9.999999747378752e-06,
    "llama.vocab_size": 49152,
    "llama.rope.dimension_count": 64,
    "tokenizer.ggml.bos_token_id": 1,
    "tokenizer.ggml.eos_token_id": 2,
}
GEMMA3 = {
    "general.architecture": "gemma3",
    "gemma3.context_length": 32768,
    "gemma3.embedding_length": 640,
    "gemma3.block_count": 18,
    "gemma3.feed_forward_length": 2048,
    "gemma3.attention.head_count": 4,
    "gemma3.attention.layer_norm_rms_epsilon": 9.999999974752427e-07,
    "gemma3.attention.key_length": 256,
    "gemma3.attention.value_length": 256,
    "gemma3.rope.freq_base": 1000000.0,
    "gemma3.attention.sliding_window": 512,
    "gemma3.attention.head_count_kv": 1,
    "tokenizer.vocab_size": 262144,
    "tokenizer.ggml.eos_token_id": 1,
    "tokenizer.ggml.eot_token_id": 106,
}


def test_smollm2():
    config = from_gguf_metadata(SMOLLM2)
    assert (config.family, config.head_dim, config.num_kv_heads, config.norm_eps) == ("llama", 64, 3, 1e-5)
    assert config.rope == RopeConfig(100_000.0)
    assert config.windows == (0,) * 30
    assert (config.bos_token_id, config.eos_token_ids) == (1, (2,))


def test_gemma_3_270m():
    config = from_gguf_metadata(GEMMA3)
    assert (config.family, config.head_dim, config.query_scale) == ("gemma3", 256, 1 / 16)
    assert config.windows[:7] == (512, 512, 512, 512, 512, 0, 512)
    assert (config.rope, config.local_rope) == (RopeConfig(1_000_000.0), RopeConfig(10_000.0))
    assert config.vocab_size == 262_144
    assert config.eos_token_ids == (1, 106)
    assert config.embedding_scale == 640**0.5


def test_gemma_3_27b_scales_scores_by_the_width_of_a_head():
    changes = {"block_count": 62, "embedding_length": 5376, "attention.head_count": 32, "attention.key_length": 128}
    config = from_gguf_metadata(
        GEMMA3 | {f"gemma3.{key}": value for key, value in changes.items()} | {"gemma3.attention.value_length": 128}
    )
    assert config.query_scale == pytest.approx(168**-0.5)


def test_linear_and_yarn_scaling():
    linear = from_gguf_metadata(GEMMA3 | {"gemma3.rope.scaling.type": "linear", "gemma3.rope.scaling.factor": 8.0})
    assert linear.rope == RopeConfig(1_000_000.0, "linear", 8.0)
    assert linear.local_rope == RopeConfig(10_000.0)
    scaling = {"type": "yarn", "factor": 4.0, "original_context_length": 2048}
    yarn = from_gguf_metadata(SMOLLM2 | {f"llama.rope.scaling.{key}": value for key, value in scaling.items()}).rope
    assert (yarn.type, yarn.factor, yarn.original_max_positions) == ("yarn", 4.0, 2048)
    assert yarn.attention_factor == pytest.approx(1.1386294)


def test_a_llama_with_a_window_is_a_mistral():
    config = from_gguf_metadata(SMOLLM2 | {"llama.attention.sliding_window": 4096})
    assert (config.family, config.windows) == ("mistral", (4096,) * 30)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"general.architecture": "mamba"}, "general.architecture"),
        ({"general.type": "adapter"}, "general.type"),
        ({"llama.expert_count": 8}, "llama.expert_count"),
        ({"llama.block_count": "30"}, "llama.block_count"),
        ({"llama.attention.head_count_kv": [3, 3]}, "head_count_kv"),
        ({"llama.attention.head_count_kv": 4}, "key heads"),
        ({"llama.rope.dimension_count": 32}, "rope.dimension_count"),
        ({"llama.rope.scaling.type": "longrope"}, "longrope"),
        ({"llama.attn_logit_softcapping": 50.0}, "attn_logit_softcapping"),
        ({"llama.logit_scale": 0.5}, "llama.logit_scale"),
    ],
)
def test_what_cannot_be_honoured_is_an_error_that_names_it(change, named):
    with pytest.raises(WeightsError, match=named):
        from_gguf_metadata(SMOLLM2 | change)


def test_missing_keys_are_reported_together():
    incomplete = {key: value for key, value in SMOLLM2.items() if not key.endswith(("block_count", "context_length"))}
    with pytest.raises(WeightsError) as caught:
        from_gguf_metadata(incomplete)
    assert all(name in str(caught.value) for name in ("llama.block_count", "llama.context_length"))
