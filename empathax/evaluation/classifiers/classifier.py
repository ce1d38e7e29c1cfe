"""A text classifier: an encoder, the mean state of the text's tokens, and a small head for each question asked of it.

The text may bring a context (a reply, the seeker's last turn), which the encoder reads as its second segment. Parameter
tree: encoder/... (models/encoder.py), heads/NAME/hidden/{kernel [D, D], bias}, heads/NAME/output/{kernel [D, C], bias}.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from empathax.models.encoder import EncoderConfig, Params, mean_pooled, token_states
from empathax.models.encoder_files import LoadedEncoder
from empathax.models.encoder_text import EncoderRow, EncoderText

NO_LABEL = -1  # of an example that says nothing about a head


class Example(NamedTuple):
    """A text with its context and one class for each head (NO_LABEL where unknown)."""

    text: str
    context: str
    labels: tuple[int, ...]


@dataclass(frozen=True)
class Head:
    """One question with its answers, in the order of the head's classes."""

    name: str
    labels: tuple[str, ...]


@dataclass(frozen=True)
class ClassifierConfig:
    """A classifier's shape. Hashable, so it can be a static argument of a jitted function."""

    encoder: EncoderConfig
    heads: tuple[Head, ...]
    max_text_tokens: int = 62  # of the text, whose end is cut
    max_context_tokens: int = 31  # of the context, whose beginning is cut; 0 = the context is not read


@dataclass(frozen=True)
class Classifier:
    """A classifier in memory."""

    config: ClassifierConfig
    params: Params
    encoder: LoadedEncoder  # its files and tokenizer; the parameters to use are `params["encoder"]`


class Dense(nnx.Module):
    """A kernel [in, out] and a bias."""

    def __init__(self, inputs: int, outputs: int, rngs: nnx.Rngs):
        normal = jax.random.normal(rngs.params(), (inputs, outputs)) * inputs**-0.5
        self.kernel = nnx.Param(normal, logical_axes=("embed", "classes"))
        self.bias = nnx.Param(jnp.zeros(outputs), logical_axes=("classes",))


class HeadLayers(nnx.Module):
    """Two layers from a text's mean state to the logits of its classes."""

    def __init__(self, model_dim: int, num_classes: int, rngs: nnx.Rngs):
        self.hidden = Dense(model_dim, model_dim, rngs)
        self.output = Dense(model_dim, num_classes, rngs)


def init_heads(config: ClassifierConfig, seed: int) -> Params:
    """Random parameters of the heads, by name."""
    rngs = nnx.Rngs(jax.random.key(seed))
    return {head.name: _head_params(config.encoder.model_dim, len(head.labels), rngs) for head in config.heads}


def class_logits(
    params: Params,
    config: ClassifierConfig,
    token_ids_BT: Int[Array, "B T"],
    mask_BT: Bool[Array, "B T"],
    segment_ids_BT: Int[Array, "B T"],
    *,
    compute_dtype: jnp.dtype = jnp.float32,
    dropout_key: Array | None = None,
) -> dict[str, Float[Array, "B C"]]:
    """Float32 logits of every head. With a key, a tenth of the features is dropped (training)."""
    states_BTD = token_states(
        params["encoder"], config.encoder, token_ids_BT, mask_BT, segment_ids_BT, compute_dtype=compute_dtype
    )
    features_BD = mean_pooled(states_BTD, mask_BT & (segment_ids_BT == 0))
    if dropout_key is not None:
        kept_BD = jax.random.bernoulli(dropout_key, 0.9, features_BD.shape)
        features_BD = jnp.where(kept_BD, features_BD / 0.9, 0.0)
    return {name: _head_logits(head, features_BD) for name, head in params["heads"].items()}


def encode_rows(classifier: Classifier, texts: Sequence[str], contexts: Sequence[str]) -> list[EncoderRow]:
    """Texts and contexts (an empty string for none) as the rows the classifier reads."""
    text, config = EncoderText(classifier.encoder.tokenizer, classifier.config.encoder), classifier.config
    return [
        text.row(one, context if config.max_context_tokens else "", config.max_text_tokens, config.max_context_tokens)
        for one, context in zip(texts, contexts, strict=True)
    ]


def classify(
    classifier: Classifier, texts: Sequence[str], contexts: Sequence[str], batch_size: int = 64
) -> dict[str, np.ndarray]:
    """Logits [texts, C] of every head, in the order of `texts`."""
    rows = encode_rows(classifier, texts, contexts)
    text = EncoderText(classifier.encoder.tokenizer, classifier.config.encoder)
    out = {head.name: np.zeros((len(rows), len(head.labels)), np.float32) for head in classifier.config.heads}
    for numbers, batch in text.batches(rows, batch_size):
        logits = _jitted_logits(classifier.params, classifier.config, *batch)
        for name, values in logits.items():
            out[name][numbers] = np.asarray(values)[: len(numbers)]
    return out


_jitted_logits = jax.jit(class_logits, static_argnames=("config",))


def _head_params(model_dim: int, num_classes: int, rngs: nnx.Rngs) -> Any:
    return nnx.to_pure_dict(nnx.state(HeadLayers(model_dim, num_classes, rngs), nnx.Param))


def _head_logits(head: Params, features_BD: Array) -> Array:
    dense = functools.partial(jnp.einsum, "bi,io->bo", preferred_element_type=jnp.float32)
    hidden_BD = jax.nn.gelu(dense(features_BD, head["hidden"]["kernel"]) + head["hidden"]["bias"])
    return dense(hidden_BD, head["output"]["kernel"]) + head["output"]["bias"]
