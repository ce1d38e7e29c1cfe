"""config.json: files as the hub has them, every way a field can be refused, and the way back."""

import dataclasses
import json

import pytest
import transformers

from empathax.errors import WeightsError
from empathax.models.architecture.hf_config import from_hf_config, to_hf_config
from empathax.models.architecture.presets import PRESETS
from empathax.models.rope import RopeConfig

LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 128000,
    "eos_token_id": [128001, 128008, 128009],
    "hidden_act": "silu",
    "hidden_size": 4096,
    "initializer_range": 0.02,
    "intermediate_size": 14336,
    "max_position_embeddings": 131072,
    "mlp_bias": False,
    "model_type": "llama",
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-05,
    "rope_scaling": {
        "factor": 8.0,
        "high_freq_factor": 4.0,
        "low_freq_factor": 1.0,
        "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    },
    "rope_theta": 500000.0,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.42.3",
    "use_cache": True,
    "vocab_size": 128256,
}
LLAMA2 = {
    "_name_or_path": "meta-llama/Llama-2-13b-hf",
    "architectures": ["LlamaForCausalLM"],
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_act": "silu",
    "hidden_size": 5120,
    "initializer_range": 0.02,
    "intermediate_size": 13824,
    "max_position_embeddings": 4096,
    "model_type": "llama",
    "num_attention_heads": 40,
    "num_hidden_layers": 40,
    "num_key_value_heads": 40,
    "pretraining_tp": 2,
    "rms_norm_eps": 1e-05,
    "rope_scaling": None,
    "tie_word_embeddings": False,
    "torch_dtype": "float16",
    "transformers_version": "4.32.0.dev0",
    "use_cache": True,
    "vocab_size": 32000,
}
MISTRAL = {
    "architectures": ["MistralForCausalLM"],
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_act": "silu",
    "hidden_size": 4096,
    "initializer_range": 0.02,
    "intermediate_size": 14336,
    "max_position_embeddings": 32768,
    "model_type": "mistral",
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-05,
    "rope_theta": 10000.0,
    "sliding_window": 4096,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.34.0.dev0",
    "use_cache": True,
    "vocab_size": 32000,
}
GEMMA = {
    "architectures": ["GemmaForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 2,
    "eos_token_id": 1,
    "head_dim": 256,
    "hidden_act": "gelu",
    "hidden_activation": None,
    "hidden_size": 3072,
    "initializer_range": 0.02,
    "intermediate_size": 24576,
    "max_position_embeddings": 8192,
    "model_type": "gemma",
    "num_attention_heads": 16,
    "num_hidden_layers": 28,
    "num_key_value_heads": 16,
    "pad_token_id": 0,
    "rms_norm_eps": 1e-06,
    "rope_scaling": None,
    "rope_theta": 10000.0,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.38.0.dev0",
    "use_cache": True,
    "vocab_size": 256000,
}
GEMMA2 = GEMMA | {
    "architectures": ["Gemma2ForCausalLM"],
    "attn_logit_softcapping": 50.0,
    "cache_implementation": "hybrid",
    "final_logit_softcapping": 30.0,
    "hidden_act": "gelu_pytorch_tanh",
    "hidden_activation": "gelu_pytorch_tanh",
    "hidden_size": 4608,
    "intermediate_size": 36864,
    "head_dim": 128,
    "model_type": "gemma2",
    "num_attention_heads": 32,
    "num_hidden_layers": 46,
    "query_pre_attn_scalar": 144,
    "sliding_window": 4096,
    "sliding_window_size": 4096,
}
GEMMA3_4B = {
    "architectures": ["Gemma3ForConditionalGeneration"],
    "boi_token_index": 255999,
    "eoi_token_index": 256000,
    "eos_token_id": [1, 106],
    "image_token_index": 262144,
    "initializer_range": 0.02,
    "mm_tokens_per_image": 256,
    "model_type": "gemma3",
    "text_config": {
        "hidden_size": 2560,
        "intermediate_size": 10240,
        "model_type": "gemma3_text",
        "num_hidden_layers": 34,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
        "sliding_window": 1024,
    },
    "torch_dtype": "bfloat16",
    "transformers_version": "4.50.0.dev0",
    "vision_config": {"hidden_size": 1152, "model_type": "siglip_vision_model"},
}
SMOLLM2 = LLAMA2 | {
    "_name_or_path": "",
    "attention_bias": False,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "is_llama_config": True,
    "max_position_embeddings": 8192,
    "num_attention_heads": 9,
    "num_hidden_layers": 30,
    "num_key_value_heads": 3,
    "pad_token_id": 2,
    "rope_interleaved": False,
    "rope_theta": 100000,
    "tie_word_embeddings": True,
    "transformers.js_config": {"kv_cache_dtype": {"q4f16": "float16"}},
    "vocab_size": 49152,
}
QWEN2 = {
    "architectures": ["Qwen2ForCausalLM"],
    "attention_dropout": 0.0,
    "bos_token_id": 151643,
    "eos_token_id": 151645,
    "hidden_act": "silu",
    "hidden_size": 896,
    "initializer_range": 0.02,
    "intermediate_size": 4864,
    "max_position_embeddings": 32768,
    "max_window_layers": 21,
    "model_type": "qwen2",
    "num_attention_heads": 14,
    "num_hidden_layers": 24,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-06,
    "rope_theta": 1000000.0,
    "sliding_window": 32768,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.43.1",
    "use_cache": True,
    "use_sliding_window": False,
    "vocab_size": 151936,
}
QWEN3 = QWEN2 | {
    "architectures": ["Qwen3ForCausalLM"],
    "attention_bias": False,
    "head_dim": 128,
    "model_type": "qwen3",
    "rope_scaling": None,
    "sliding_window": None,
}
FILES = {
    "llama-3.1-8b": LLAMA,
    "llama-2-13b": LLAMA2,
    "smollm2": SMOLLM2,
    "mistral-0.1": MISTRAL,
    "gemma-7b": GEMMA,
    "gemma-2-27b": GEMMA2,
    "gemma-3-4b": GEMMA3_4B,
    "qwen2.5-0.5b": QWEN2,
    "qwen3": QWEN3,
}


def _read_by_transformers(settings: dict) -> dict:
    """The same settings as transformers writes them back."""
    config = transformers.AutoConfig.for_model(**json.loads(json.dumps(settings)))
    return json.loads(config.to_json_string(use_diff=False))


@pytest.mark.parametrize("name", FILES)
def test_hub_files_read_the_same_after_transformers_rewrote_them(name):
    assert from_hf_config(FILES[name]) == from_hf_config(_read_by_transformers(FILES[name]))


@pytest.mark.parametrize("name", FILES)
def test_hub_files_survive_export(name):
    config = from_hf_config(FILES[name])
    assert from_hf_config(to_hf_config(config)) == config


@pytest.mark.parametrize("name", PRESETS)
def test_transformers_reads_an_exported_preset_as_we_do(name):
    assert from_hf_config(_read_by_transformers(to_hf_config(PRESETS[name]))) == PRESETS[name]


def test_llama_3_1():
    config = from_hf_config(LLAMA)
    assert (config.head_dim, config.num_kv_heads, config.query_scale) == (128, 8, 128**-0.5)
    assert config.rope == RopeConfig(500_000.0, "llama3", 8.0, 8192, 1.0, 4.0)
    assert config.eos_token_ids == (128001, 128008, 128009)
    assert config.windows == (0,) * 32
    assert not any((config.tied_embeddings, config.attention_bias, config.mlp_bias, config.unit_offset_norm))
    assert config.file_dtype == "bfloat16"


def test_mistral_window_is_on_every_layer_or_none():
    assert from_hf_config(MISTRAL).windows == (4096,) * 32
    assert from_hf_config(MISTRAL | {"sliding_window": None}).windows == (0,) * 32


def test_gemma_gelu_means_tanh():
    assert from_hf_config(GEMMA).activation == "gelu_tanh"
    assert from_hf_config(GEMMA).embedding_scale == 3072**0.5


def test_gemma_2_27b():
    config = from_hf_config(GEMMA2)
    assert config.query_scale == pytest.approx(1 / 12)
    assert config.windows[:4] == (4096, 0, 4096, 0)
    assert (config.attention_softcap, config.final_softcap) == (50.0, 30.0)
    assert from_hf_config(GEMMA2 | {"attn_logit_softcapping": None}).attention_softcap == 0.0


def test_gemma_3_text_part_of_a_multimodal_file():
    config = from_hf_config(GEMMA3_4B)
    assert (config.family, config.num_heads, config.num_kv_heads, config.head_dim) == ("gemma3", 8, 4, 256)
    assert (config.vocab_size, config.max_positions, config.eos_token_ids) == (262_208, 131_072, (1, 106))
    assert config.windows[:7] == (1024, 1024, 1024, 1024, 1024, 0, 1024)
    assert config.rope == RopeConfig(1_000_000.0, "linear", 8.0)
    assert config.local_rope == RopeConfig(10_000.0)
    assert (config.qk_norm, config.post_norms, config.tied_embeddings) == (True, True, True)


def test_qwen_windows_need_their_switch():
    assert from_hf_config(QWEN2).windows == (0,) * 24
    assert from_hf_config(QWEN2 | {"use_sliding_window": True}).windows == (0,) * 21 + (32768,) * 3
    assert (from_hf_config(QWEN2).attention_bias, from_hf_config(QWEN2).output_bias) == (True, False)


def test_yarn_settings_are_resolved():
    scaling = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}
    rope = from_hf_config(QWEN2 | {"rope_scaling": scaling}).rope
    assert (rope.type, rope.theta, rope.beta_fast, rope.beta_slow) == ("yarn", 1_000_000.0, 32.0, 1.0)
    assert rope.attention_factor == pytest.approx(1.1386294)  # 0.1 ln 4 + 1
    with_mscale = from_hf_config(QWEN2 | {"rope_scaling": scaling | {"mscale": 1.0, "mscale_all_dim": 0.5}}).rope
    assert with_mscale.attention_factor == pytest.approx(1.1386294 / 1.0693147)


REFUSED = [
    (LLAMA, {"model_type": "mixtral"}, "model_type"),
    (LLAMA, {"num_local_experts": 8}, "num_local_experts"),
    (LLAMA, {"attention_dropout": 0.1}, "attention_dropout"),
    (LLAMA, {"sliding_window": 4096}, "sliding_window"),
    (LLAMA, {"quantization_config": {"quant_method": "awq"}}, "quantization_config"),
    (LLAMA, {"hidden_act": "mish"}, "hidden_act"),
    (LLAMA, {"num_key_value_heads": 5}, "num_key_value_heads"),
    (LLAMA, {"head_dim": 27}, "head_dim"),
    (LLAMA, {"hidden_size": "4096"}, "hidden_size"),
    (LLAMA, {"num_hidden_layers": 0}, "num_hidden_layers"),
    (LLAMA, {"tie_word_embeddings": "no"}, "tie_word_embeddings"),
    (LLAMA, {"eos_token_id": "</s>"}, "eos_token_id"),
    (LLAMA, {"torch_dtype": "int8"}, "int8"),
    (LLAMA, {"rms_norm_eps": -1.0}, "rms_norm_eps"),
    (LLAMA, {"rope_interleaved": True}, "rope_interleaved"),
    (LLAMA, {"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
    (LLAMA, {"final_logit_softcapping": 30.0}, "final_logit_softcapping"),
    (LLAMA, {"rope_scaling": {"type": "longrope", "short_factor": [1.0], "long_factor": [2.0]}}, "longrope"),
    (LLAMA, {"rope_scaling": {"type": "su", "factor": 2.0}}, "su"),
    (LLAMA, {"rope_scaling": {"type": "linear"}}, "factor is missing"),
    (LLAMA, {"rope_scaling": {"type": "linear", "factor": "two"}}, "factor"),
    (LLAMA, {"rope_scaling": {"type": "default", "mrope_section": [16, 24, 24]}}, "mrope_section"),
    (LLAMA, {"rope_scaling": {"type": "linear", "factor": 2.0, "partial_rotary_factor": 0.5}}, "partial_rotary"),
    (LLAMA, {"rope_scaling": "linear"}, "rope_scaling"),
    (LLAMA, {"rope_scaling": {"type": "linear", "factor": 0}}, "factor = 0: expected a positive number"),
    (LLAMA, {"rope_theta": 0}, "rope_theta = 0: expected a positive number"),
    (LLAMA, {"rope_scaling": LLAMA["rope_scaling"] | {"low_freq_factor": 4.0}}, "below high_freq_factor"),
    (LLAMA, {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4}}, "both set"),
    (LLAMA, {"layer_types": ["sliding_attention"] * 32}, "layer_types"),
    (QWEN2, {"rope_parameters": {"full_attention": {"rope_theta": 1e6}}}, "per layer type"),
    (QWEN2, {"layer_types": ["full_attention"] * 3}, "layer_types"),
    (QWEN2, {"layer_types": ["chunked_attention"] * 24}, "layer_types"),
    (QWEN2, {"layer_types": ["sliding_attention"] * 24}, "sliding_window is off"),
    (QWEN2, {"attention_bias": False}, "attention_bias"),
    (MISTRAL, {"sliding_window": 0}, "sliding_window"),
    (GEMMA, {"hidden_activation": "silu"}, "hidden_activation"),
    (GEMMA, {"use_bidirectional_attention": True}, "use_bidirectional_attention"),
    (GEMMA2, {"query_pre_attn_scalar": 0}, "query_pre_attn_scalar"),
    (GEMMA2, {"sliding_window_size": 2048}, "sliding_window_size"),
    (GEMMA2, {"sliding_window": None}, "sliding_window is off"),
    (GEMMA3_4B, {"text_config": None}, "text_config"),
    (GEMMA3_4B, {"audio_config": {}}, "audio_config"),
    (GEMMA3_4B, {"text_config": {"attn_logit_softcapping": 50.0}}, "attn_logit_softcapping"),
    (GEMMA3_4B, {"text_config": {"rope_parameters": {"rope_theta": 1e6}}}, "rope_parameters.rope_theta"),
]


@pytest.mark.parametrize(
    ("base", "change", "named"), REFUSED, ids=[f"{index}-{row[2]}" for index, row in enumerate(REFUSED)]
)
def test_what_cannot_be_honoured_is_an_error_that_names_it(base, change, named):
    with pytest.raises(WeightsError, match=named):
        from_hf_config(base | change)


def test_every_problem_is_reported_at_once():
    with pytest.raises(WeightsError) as caught:
        from_hf_config(LLAMA | {"num_local_experts": 8, "hidden_act": "mish", "head_dim": 27})
    assert all(name in str(caught.value) for name in ("num_local_experts", "hidden_act", "head_dim", "3 problems"))


def test_fields_without_effect_change_nothing():
    notes = {"use_cache": False, "id2label": {"0": "a"}, "temperature": 0.7, "unsloth_fixed": True, "head_dim": None}
    assert from_hf_config(LLAMA | notes | {"some_future_field": None}) == from_hf_config(LLAMA)


def test_export_refuses_what_the_family_cannot_say():
    with pytest.raises(WeightsError, match="qk_norm"):
        to_hf_config(dataclasses.replace(PRESETS["tiny-llama"], qk_norm=True))


def test_ids_of_minus_one_are_none():
    assert from_hf_config(LLAMA | {"eos_token_id": -1}).eos_token_ids == ()
    assert from_hf_config(LLAMA | {"eos_token_id": [128009, -1]}).eos_token_ids == (128009,)
