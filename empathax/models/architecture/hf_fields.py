"""Which fields of a Hugging Face config.json each family has, and what an absent one means (transformers 5.23).

Every field is in one of four tables: read (DEFAULTS), readable by another family but fixed here (FIXED), without
effect on the computation (IGNORED), or about rope (hf_rope.py). Anything else is an error.
"""

from __future__ import annotations

from typing import Any

from empathax.models.architecture.model_config import FAMILIES

FAMILY_OF_MODEL_TYPE = {family: family for family in FAMILIES} | {"gemma3_text": "gemma3"}
MODEL_TYPE_OF_FAMILY = {family: family for family in FAMILIES} | {"gemma3": "gemma3_text"}
CLASS_OF_FAMILY = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "gemma": "GemmaForCausalLM",
    "gemma2": "Gemma2ForCausalLM",
    "gemma3": "Gemma3ForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}

_SHARED: dict[str, Any] = {
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "head_dim": None,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "initializer_range": 0.02,
    "tie_word_embeddings": False,
    "layer_types": None,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
_LLAMA: dict[str, Any] = _SHARED | {
    "vocab_size": 32_000,
    "intermediate_size": 11_008,
    "num_key_value_heads": None,
    "max_position_embeddings": 2048,
    "attention_bias": False,
    "mlp_bias": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_MISTRAL: dict[str, Any] = _SHARED | {
    "vocab_size": 32_000,
    "intermediate_size": 14_336,
    "num_key_value_heads": 8,
    "max_position_embeddings": 131_072,
    "sliding_window": 4096,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_GEMMA: dict[str, Any] = _SHARED | {
    "vocab_size": 256_000,
    "hidden_size": 3072,
    "intermediate_size": 24_576,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "head_dim": 256,
    "hidden_act": "gelu_pytorch_tanh",
    "hidden_activation": None,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": True,
    "attention_bias": False,
    "bos_token_id": 2,
    "eos_token_id": 1,
    "pad_token_id": 0,
}
_GEMMA2: dict[str, Any] = _GEMMA | {
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "hidden_activation": "gelu_pytorch_tanh",
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
    "attn_logit_softcapping": 50.0,
    "final_logit_softcapping": 30.0,
}
_GEMMA3: dict[str, Any] = {key: default for key, default in _GEMMA2.items() if key != "attn_logit_softcapping"} | {
    "vocab_size": 262_208,
    "max_position_embeddings": 131_072,
    "final_logit_softcapping": None,
    "sliding_window_pattern": 6,
}
_QWEN2: dict[str, Any] = _SHARED | {
    "vocab_size": 151_936,
    "intermediate_size": 22_016,
    "num_key_value_heads": 32,
    "max_position_embeddings": 32_768,
    "use_sliding_window": False,
    "sliding_window": 4096,
    "max_window_layers": 28,
}
DEFAULTS: dict[str, dict[str, Any]] = {
    "llama": _LLAMA,
    "mistral": _MISTRAL,
    "gemma": _GEMMA,
    "gemma2": _GEMMA2,
    "gemma3": _GEMMA3,
    "qwen2": _QWEN2,
    "qwen3": _QWEN2 | {"head_dim": 128, "attention_bias": False},
}

# fields of ModelConfig that a family sets without a word in its files
TRAITS: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {},
    "gemma": {"unit_offset_norm": True},
    "gemma2": {"unit_offset_norm": True, "post_norms": True},
    "gemma3": {"unit_offset_norm": True, "post_norms": True, "qk_norm": True},
    "qwen2": {"attention_bias": True},
    "qwen3": {"qk_norm": True},
}

_OFF: dict[str, Any] = {
    "add_cross_attention": False,
    "attention_bias": False,
    "attention_dropout": 0.0,
    "attn_logit_softcapping": None,
    "cross_attention_hidden_size": None,
    "final_logit_softcapping": None,
    "is_encoder_decoder": False,
    "mlp_bias": False,
    "partial_rotary_factor": 1.0,
    "pruned_heads": {},
    "quantization_config": None,
    "query_pre_attn_scalar": None,
    "sliding_window": None,
    "rope_interleaved": False,
    "tie_encoder_decoder": False,
    "use_bidirectional_attention": False,
    "use_mrope": False,
}
# fields that may be there with the one value the family computes with; DEFAULTS of the family goes first
FIXED: dict[str, dict[str, Any]] = dict.fromkeys(FAMILIES, _OFF) | {"qwen2": _OFF | {"attention_bias": True}}

# bookkeeping, defaults of text generation, and the heads and losses of tasks other than language modelling
IGNORED = frozenset(
    """
    _attn_implementation _attn_implementation_autoset _commit_hash _experts_implementation _flash_attn_2_enabled
    _name_or_path _sliding_window_pattern architectures attn_implementation auto_map cache_implementation
    chunk_size_feed_forward dtype is_decoder is_llama_config max_sequence_length model_max_length model_type
    name_or_path output_attentions output_hidden_states pretraining_tp return_dict tf_legacy_loss tokenizer_class
    tokenizer_model_max_length torch_dtype torchscript transformers.js_config transformers_version unsloth_fixed
    unsloth_version use_bfloat16 use_cache

    bad_words_ids begin_suppress_tokens decoder_start_token_id diversity_penalty do_sample early_stopping
    encoder_no_repeat_ngram_size exponential_decay_length_penalty forced_bos_token_id forced_eos_token_id
    length_penalty max_length max_new_tokens min_length no_repeat_ngram_size num_beam_groups num_beams
    num_return_sequences output_scores prefix remove_invalid_values repetition_penalty return_dict_in_generate
    sep_token_id suppress_tokens temperature top_k top_p typical_p

    classifier_dropout finetuning_task id2label label2id num_labels problem_type task_specific_params
    """.split()  # noqa: SIM905
)
# of the multimodal Gemma 3 wrapper, whose text part alone is used
GEMMA3_WRAPPER = frozenset(
    """
    boi_token_id boi_token_index eoi_token_id eoi_token_index image_token_id image_token_index initializer_range
    mm_tokens_per_image text_config vision_config bos_token_id eos_token_id pad_token_id tie_word_embeddings
    """.split()  # noqa: SIM905
)
