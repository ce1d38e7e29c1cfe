"""The name table: every parameter of our tree beside its Hugging Face and its GGUF name. Loading and export read it.

A kernel's file tensor is [out, in] where ours is [in, out]; the vocabulary tables are [V, D] everywhere.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

from empathax.models.architecture.model_config import ModelConfig

# parameter -> (Hugging Face name, GGUF name); {n} is the layer, and a kernel's bias is called .bias in both
_TABLE = {
    "embedding/kernel": ("{model}embed_tokens.weight", "token_embd.weight"),
    "layers/attention_norm/scale": ("{model}layers.{n}.input_layernorm.weight", "blk.{n}.attn_norm.weight"),
    "layers/attention/query": ("{model}layers.{n}.self_attn.q_proj", "blk.{n}.attn_q"),
    "layers/attention/key": ("{model}layers.{n}.self_attn.k_proj", "blk.{n}.attn_k"),
    "layers/attention/value": ("{model}layers.{n}.self_attn.v_proj", "blk.{n}.attn_v"),
    "layers/attention/output": ("{model}layers.{n}.self_attn.o_proj", "blk.{n}.attn_output"),
    "layers/attention/query_norm/scale": ("{model}layers.{n}.self_attn.q_norm.weight", "blk.{n}.attn_q_norm.weight"),
    "layers/attention/key_norm/scale": ("{model}layers.{n}.self_attn.k_norm.weight", "blk.{n}.attn_k_norm.weight"),
    "layers/mlp_norm/scale": ("{model}layers.{n}.post_attention_layernorm.weight", "blk.{n}.ffn_norm.weight"),
    "layers/mlp/gate": ("{model}layers.{n}.mlp.gate_proj", "blk.{n}.ffn_gate"),
    "layers/mlp/up": ("{model}layers.{n}.mlp.up_proj", "blk.{n}.ffn_up"),
    "layers/mlp/down": ("{model}layers.{n}.mlp.down_proj", "blk.{n}.ffn_down"),
    "final_norm/scale": ("{model}norm.weight", "output_norm.weight"),
    "output/kernel": ("{head}lm_head.weight", "output.weight"),
}
# Gemma 2 and 3 norm each block's output too, and Hugging Face then calls the MLP's input norm differently
_POST_NORM_TABLE = _TABLE | {
    "layers/post_attention_norm/scale": (
        "{model}layers.{n}.post_attention_layernorm.weight",
        "blk.{n}.post_attention_norm.weight",
    ),
    "layers/mlp_norm/scale": ("{model}layers.{n}.pre_feedforward_layernorm.weight", "blk.{n}.ffn_norm.weight"),
    "layers/post_mlp_norm/scale": (
        "{model}layers.{n}.post_feedforward_layernorm.weight",
        "blk.{n}.post_ffw_norm.weight",
    ),
}
# (prefix of the decoder, prefix of the output projection): a causal model, the two layouts of multimodal Gemma 3, a
# decoder saved without its head
HF_PREFIXES = (("model.", ""), ("model.language_model.", ""), ("language_model.model.", "language_model."), ("", ""))

# tensors that a text decoder has no use for
_HF_UNUSED = re.compile(r".*\.rotary_emb\.inv_freq")
_HF_VISION = re.compile(r"(model\.)?(vision_tower|multi_modal_projector)\..*")
_GGUF_UNUSED = re.compile(r"rope_freqs\.weight|blk\.\d+\.attn_rot_embd")  # rope_freqs is read into the RopeConfig


class Naming(NamedTuple):
    """How one file names and stores parameters."""

    kind: str  # "hf" or "gguf"
    model_prefix: str = "model."
    head_prefix: str = ""
    interleaved_rope: bool = False  # query and key rows pair up the planes (0, 1), (2, 3) ...: Llama's GGUF files
    offset_norms: bool = False  # norms are stored as 1 + scale: Gemma's GGUF files

    def is_unused(self, name: str, config: ModelConfig) -> bool:
        """Whether a tensor is known to play no part in the text model `config`."""
        if self.kind == "gguf":
            return _GGUF_UNUSED.fullmatch(name) is not None
        if config.family == "gemma3" and _HF_VISION.fullmatch(name):
            return True
        return _HF_UNUSED.fullmatch(name) is not None

    def head_name(self) -> str:
        """The tensor of the output projection."""
        return _spell(_TABLE["output/kernel"], self, 0)


class Stored(NamedTuple):
    """One parameter and the file tensors that it is made of."""

    path: tuple[str, ...]  # in our tree
    names: tuple[str, ...]  # one per layer, or the only one
    stacked: bool  # has the layer axis
    transposed: bool  # [out, in] in the file
    interleaved_heads: int  # heads whose rows are interleaved; 0 = stored as we have them
    offset: float  # subtracted from the file's values


def gguf_naming(architecture: str) -> Naming:
    """The conventions of llama.cpp's converter for a model with this `general.architecture`."""
    return Naming("gguf", interleaved_rope=architecture == "llama", offset_norms=architecture.startswith("gemma"))


def hf_naming(tensor_names: dict[str, object] | set[str]) -> Naming:
    """The prefixes that a file uses, from the name of its embedding."""
    for model_prefix, head_prefix in HF_PREFIXES:
        if f"{model_prefix}embed_tokens.weight" in tensor_names:
            return Naming("hf", model_prefix, head_prefix)
    return Naming("hf")


def stored_parameters(config: ModelConfig, naming: Naming) -> Iterator[Stored]:
    """Every parameter of the model's tree, in the table's order."""
    table = _POST_NORM_TABLE if config.post_norms else _TABLE
    for key, spellings in table.items():
        if key == "output/kernel" and config.tied_embeddings:
            continue
        if key.endswith(("query_norm/scale", "key_norm/scale")) and not config.qk_norm:
            continue
        if key.endswith(("/kernel", "/scale")):
            yield _stored(key, spellings, "", config, naming)
            continue
        yield _stored(f"{key}/kernel", spellings, ".weight", config, naming)
        if _has_bias(key, config):
            yield _stored(f"{key}/bias", spellings, ".bias", config, naming)


def _stored(key: str, spellings: tuple[str, str], suffix: str, config: ModelConfig, naming: Naming) -> Stored:
    stacked = key.startswith("layers/")
    names = (_spell(spellings, naming, layer) + suffix for layer in range(config.num_layers if stacked else 1))
    heads = {"layers/attention/query": config.num_heads, "layers/attention/key": config.num_kv_heads}
    return Stored(
        path=tuple(key.split("/")),
        names=tuple(names),
        stacked=stacked,
        transposed=suffix == ".weight",
        interleaved_heads=heads.get(key.rsplit("/", 1)[0], 0) if naming.interleaved_rope else 0,
        offset=1.0 if naming.offset_norms and key.endswith("/scale") else 0.0,
    )


def _spell(spellings: tuple[str, str], naming: Naming, layer: int) -> str:
    text = spellings[0] if naming.kind == "hf" else spellings[1]
    return text.format(model=naming.model_prefix, head=naming.head_prefix, n=layer)


def _has_bias(key: str, config: ModelConfig) -> bool:
    if key == "layers/attention/output":
        return config.output_bias
    return config.attention_bias if key.startswith("layers/attention/") else config.mlp_bias
