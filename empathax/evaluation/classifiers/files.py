"""A trained classifier as a directory: config.json, model.safetensors, tokenizer, classifier.json, README.md."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from empathax.errors import ConfigError, WeightsError, raise_all
from empathax.evaluation.classifiers.classifier import Classifier, ClassifierConfig, Head, init_heads
from empathax.models.encoder import Params
from empathax.models.encoder_files import load_encoder, save_encoder
from empathax.models.hf_files import open_weights, read_json

CLASSIFIER_NAME = "classifier.json"
CARD_NAME = "README.md"
_PREFIX = "head."  # of the heads' tensors, beside the encoder's


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
    target = directory.absolute()
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{target.name}.partial-", dir=target.parent))
        try:
            heads = {name: np.asarray(value, np.float32) for name, value in _named(classifier.params["heads"])}
            save_encoder(classifier.encoder, classifier.params["encoder"], partial, heads)
            (partial / CLASSIFIER_NAME).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
            (partial / CARD_NAME).write_text(card, encoding="utf-8")
            partial.chmod(0o755)  # mkdtemp's own mode keeps other users out
            os.replace(partial, target)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    except OSError as error:
        raise ConfigError(f"{target} cannot be written: {error.strerror}; choose another directory") from error


def check_new(directory: Path) -> None:
    """Raises a ConfigError unless `directory` is absent or empty."""
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise ConfigError(f"{directory} exists and is not empty: name another directory, or remove it first")


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
