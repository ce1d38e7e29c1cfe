"""What a decoder looks like: the one description that weights, forward pass, export and chat templates share."""

from __future__ import annotations

from dataclasses import dataclass

from empathax.models.rope import RopeConfig

MAX_LAYERS = 1 << 20  # a config with more is no model's; some things are listed layer by layer
FAMILIES = ("llama", "mistral", "gemma", "gemma2", "gemma3", "qwen2", "qwen3")


@dataclass(frozen=True)
class ModelConfig:
    """A decoder-only transformer. Families differ by these fields, never by code of their own.

    Hashable, so it can be a static argument of a jitted function. `family` names tensors, config.json and chat
    template; the forward pass does not read it.
    """

    family: str  # one of FAMILIES
    vocab_size: int
    num_layers: int
    model_dim: int
    ff_dim: int
    num_heads: int
    num_kv_heads: int  # divides num_heads
    head_dim: int
    max_positions: int
    norm_eps: float
    activation: str  # one of primitives.ACTIVATIONS
    tied_embeddings: bool  # the output projection is the embedding
    windows: tuple[int, ...]  # per layer: tokens a query sees, itself included; 0 = all before it
    rope: RopeConfig
    local_rope: RopeConfig | None = None  # of layers with a window; None = `rope` everywhere
    attention_bias: bool = False  # of query, key and value
    output_bias: bool = False  # of the attention's output projection
    mlp_bias: bool = False
    qk_norm: bool = False  # RMS norm over each head's query and key, before rope
    unit_offset_norm: bool = False  # norms multiply by (1 + scale)
    post_norms: bool = False  # attention and MLP outputs are normed before the residual sum
    embedding_scale: float = 1.0  # sqrt(D) in Gemma; rounded to the compute dtype, as transformers does
    query_scale: float = 1.0  # scores are multiplied by it: H**-0.5 or query_pre_attn_scalar**-0.5
    attention_softcap: float = 0.0  # cap * tanh(scores / cap); 0 = off
    final_softcap: float = 0.0  # the same on the logits
    bos_token_id: int | None = None
    eos_token_ids: tuple[int, ...] = ()
    pad_token_id: int | None = None
    file_dtype: str = "float32"  # dtype the file says its weights have; export writes it
    initializer_range: float = 0.02

    @property
    def query_dim(self) -> int:
        """Width of all query heads side by side."""
        return self.num_heads * self.head_dim

    @property
    def kv_dim(self) -> int:
        """Width of all key (or value) heads side by side."""
        return self.num_kv_heads * self.head_dim

    @property
    def sliding_window(self) -> int:
        """The window of the layers that have one; 0 if none has."""
        return max(self.windows)
