"""A text classifier: an encoder, the mean state of the text's tokens, and a small head for each question asked of it.

The text may bring a context (a reply, the seeker's last turn), which the encoder reads as its second segment. Parameter
tree: encoder/... (models/encoder/encoder.py), heads/NAME/hidden/{kernel [D, D], bias},
heads/NAME/output/{kernel [D, C], bias}. A trained classifier is a directory: config.json, model.safetensors, the
tokenizer, classifier.json (heads, limits, scores), README.md (its model card).
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from empathax.atomic import whole_directory
from empathax.errors import ConfigError, WeightsError, raise_all
from empathax.models.encoder.encoder import EncoderConfig, Params, mean_pooled, token_states
from empathax.models.encoder.files import LoadedEncoder, load_encoder, save_encoder
from empathax.models.encoder.text import EncoderRow, EncoderText
from empathax.models.weights.safetensors import open_weights, read_json

CLASSIFIER_NAME = "classifier.json"
CARD_NAME = "README.md"
NO_LABEL = -1  # of a text that says nothing about a head
_PREFIX = "head."  # of the heads' tensors, beside the encoder's


class LabeledText(NamedTuple):
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


def new_classifier(encoder_path: str, heads: tuple[Head, ...], seed: int = 0, **limits: int) -> Classifier:
    """A pretrained encoder with untrained heads."""
    encoder = load_encoder(encoder_path)
    config = ClassifierConfig(encoder.config, heads, **limits)
    return Classifier(config, {"encoder": encoder.params, "heads": init_heads(config, seed)}, encoder)


def load_classifier(directory: str | Path) -> Classifier:
    """The classifier that `save_classifier` wrote; a WeightsError says what is missing."""
    place = Path(directory).expanduser()
    settings = read_json(place / CLASSIFIER_NAME)
    if settings is None:
        raise WeightsError(
            f"{place} holds no {CLASSIFIER_NAME}: expected a directory that `python -m empathax.train_classifier` wrote"
        )
    encoder = load_encoder(place)
    try:
        heads = tuple(Head(name, tuple(labels)) for name, labels in settings["heads"].items())
        limits = {name: int(settings[name]) for name in ("max_text_tokens", "max_context_tokens")}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise WeightsError(f"{place / CLASSIFIER_NAME} is not whole ({error!r}): train the classifier again") from error
    config = ClassifierConfig(encoder.config, heads, **limits)
    return Classifier(config, {"encoder": encoder.params, "heads": _read_heads(place, config)}, encoder)


def save_classifier(classifier: Classifier, directory: Path, card: str, facts: dict[str, Any]) -> None:
    """Writes the directory whole or not at all; `card` is its README.md, `facts` go into classifier.json.

    Raises a ConfigError if `directory` exists and is not empty, or cannot be written.
    """
    check_new(directory)
    config = classifier.config
    settings = {
        "heads": {head.name: list(head.labels) for head in config.heads},
        "max_text_tokens": config.max_text_tokens,
        "max_context_tokens": config.max_context_tokens,
        **facts,
    }
    heads = {name: np.asarray(value, np.float32) for name, value in _named(classifier.params["heads"])}
    try:
        with whole_directory(directory) as partial:
            save_encoder(classifier.encoder, classifier.params["encoder"], partial, heads)
            (partial / CLASSIFIER_NAME).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
            (partial / CARD_NAME).write_text(card, encoding="utf-8")
    except OSError as error:
        raise ConfigError(
            f"{directory.absolute()} cannot be written: {error.strerror}; choose another directory"
        ) from error


def check_new(directory: Path) -> None:
    """Raises a ConfigError unless `directory` is absent or empty."""
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise ConfigError(f"{directory} exists and is not empty: name another directory, or remove it first")


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


def _head_logits(head: Params, features_BD: Array) -> Array:
    dense = functools.partial(jnp.einsum, "bi,io->bo", preferred_element_type=jnp.float32)
    hidden_BD = jax.nn.gelu(dense(features_BD, head["hidden"]["kernel"]) + head["hidden"]["bias"])
    return dense(hidden_BD, head["output"]["kernel"]) + head["output"]["bias"]


_jitted_logits = jax.jit(class_logits, static_argnames=("config",))


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
    layers = {head.name: HeadLayers(config.encoder.model_dim, len(head.labels), rngs) for head in config.heads}
    return {name: nnx.to_pure_dict(nnx.state(head, nnx.Param)) for name, head in layers.items()}


def _named(heads: Params) -> Iterator[tuple[str, Any]]:
    for path, value in jax.tree_util.tree_leaves_with_path(heads):
        yield _PREFIX + jax.tree_util.keystr(path, simple=True, separator="."), value


def _read_heads(directory: Path, config: ClassifierConfig) -> Params:
    files, problems, leaves = open_weights(directory), [], []
    shapes = jax.eval_shape(lambda: init_heads(config, 0))
    for name, leaf in _named(shapes):
        info = files.tensors.get(name)
        if info is None or info.shape != leaf.shape:
            found = "nothing" if info is None else list(info.shape)
            problems.append(f"{name}: found {found}, expected {list(leaf.shape)}")
            continue
        leaves.append(jnp.asarray(files.read(name, tuple(slice(None) for _ in leaf.shape)), jnp.float32))
    raise_all(WeightsError, f"{directory} does not hold the heads that {CLASSIFIER_NAME} lists", problems)
    return jax.tree.unflatten(jax.tree.structure(shapes), leaves)
