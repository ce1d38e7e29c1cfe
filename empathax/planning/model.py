"""The architecture of a config's model, without its weights; and the table of hub models that need no hub."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from empathax.errors import WeightsError
from empathax.models.architecture.hf_config import from_hf_config
from empathax.models.architecture.model_config import ModelConfig
from empathax.models.tokenizers.tokenizer import Tokenizer
from empathax.models.weights.locations import download, first_line, is_hub_name
from empathax.models.weights.safetensors import read_json
from empathax.models.weights.source import DirectoryModel, resolve_model

_SMALL_FILES = ["config.json", "generation_config.json", "tokenizer*", "special_tokens_map.json", "*.jinja"]


@dataclass(frozen=True)
class PlannedModel:
    """An architecture, where it was found, and its tokenizer if that was found with it."""

    config: ModelConfig
    origin: str
    tokenizer: Callable[[], Tokenizer] | None = None


def find_model(path: str, config_file: str = "") -> PlannedModel:
    """The model that `path` (config.model.path) names, or the one that `config_file`, a config.json, describes.

    Of a hub model only small files are asked for; if the hub does not give them, KNOWN_MODELS has the popular ones.
    Raises a WeightsError that says what was tried.
    """
    if config_file:
        return PlannedModel(_from_file(Path(config_file)), config_file)
    if not is_hub_name(path) or Path(path).expanduser().exists():
        source = resolve_model(path)
        return PlannedModel(source.config, path, source.tokenizer)
    try:
        downloaded = DirectoryModel(download(path, _SMALL_FILES))
        return PlannedModel(downloaded.config, f"{path} on the hub", downloaded.tokenizer)
    except Exception as error:  # no network, no access, no such model: each library has exceptions of its own for it
        name = path.partition("@")[0]
        if name not in KNOWN_MODELS:
            raise WeightsError(
                f"model {path!r}: the hub did not give its config.json ({first_line(error)}), and it is none of the "
                f"architectures known here ({', '.join(KNOWN_MODELS)}); give the file itself with --model-config=FILE"
            ) from error
        return PlannedModel(from_hf_config(KNOWN_MODELS[name]), "as known here; the hub was not reached")


def _from_file(path: Path) -> ModelConfig:
    settings = read_json(path)
    if settings is None:
        raise WeightsError(f"--model-config={path} does not exist; expected a Hugging Face config.json")
    return from_hf_config(settings)


def _sizes(layers: int, model_dim: int, ff_dim: int, heads: int, **others: Any) -> dict[str, Any]:
    """A model's sizes by their names in config.json."""
    sizes = {"num_hidden_layers": layers, "hidden_size": model_dim, "intermediate_size": ff_dim}
    return sizes | {"num_attention_heads": heads} | others


def _llama3_rope(factor: float) -> dict[str, Any]:
    """What Llama 3.1 and later have instead of Llama 3's rotary positions."""
    scaling = {"rope_type": "llama3", "factor": factor, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    scaling["original_max_position_embeddings"] = 8192
    return {"max_position_embeddings": 131072, "rope_scaling": scaling}


_LLAMA = {
    "model_type": "llama",
    "vocab_size": 128256,
    "num_key_value_heads": 8,
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
    "tie_word_embeddings": False,
}
_LLAMA_8B = _LLAMA | _sizes(32, 4096, 14336, 32)
_LLAMA_70B = _LLAMA | _sizes(80, 8192, 28672, 64)
_LLAMA_32 = _LLAMA | _llama3_rope(32.0) | {"tie_word_embeddings": True}
_MISTRAL_7B = {
    "model_type": "mistral",
    "vocab_size": 32000,
    **_sizes(32, 4096, 14336, 32, num_key_value_heads=8),
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-5,
    "rope_theta": 1000000.0,
    "sliding_window": None,
    "tie_word_embeddings": False,
}
_GEMMA = {
    "model_type": "gemma",
    "vocab_size": 256000,
    "head_dim": 256,
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "hidden_activation": "gelu_pytorch_tanh",
    "tie_word_embeddings": True,
}
_ARCHITECTURES: dict[tuple[str, ...], dict[str, Any]] = {
    ("meta-llama/Meta-Llama-3-8B", "meta-llama/Meta-Llama-3-8B-Instruct"): _LLAMA_8B,
    ("meta-llama/Meta-Llama-3-70B", "meta-llama/Meta-Llama-3-70B-Instruct"): _LLAMA_70B,
    ("meta-llama/Llama-3.1-8B", "meta-llama/Llama-3.1-8B-Instruct"): _LLAMA_8B | _llama3_rope(8.0),
    (
        "meta-llama/Llama-3.1-70B",
        "meta-llama/Llama-3.1-70B-Instruct",
        "meta-llama/Llama-3.3-70B-Instruct",
    ): _LLAMA_70B | _llama3_rope(8.0),
    ("meta-llama/Llama-3.2-1B", "meta-llama/Llama-3.2-1B-Instruct"): (
        _LLAMA_32 | _sizes(16, 2048, 8192, 32, head_dim=64)
    ),
    ("meta-llama/Llama-3.2-3B", "meta-llama/Llama-3.2-3B-Instruct"): (
        _LLAMA_32 | _sizes(28, 3072, 8192, 24, head_dim=128)
    ),
    ("mistralai/Mistral-7B-v0.1", "mistralai/Mistral-7B-Instruct-v0.1"): (
        _MISTRAL_7B | {"sliding_window": 4096, "rope_theta": 10000.0}
    ),
    ("mistralai/Mistral-7B-Instruct-v0.2",): _MISTRAL_7B,
    ("mistralai/Mistral-7B-v0.3", "mistralai/Mistral-7B-Instruct-v0.3"): _MISTRAL_7B | {"vocab_size": 32768},
    ("google/gemma-7b", "google/gemma-7b-it", "google/gemma-1.1-7b-it"): (
        _GEMMA | _sizes(28, 3072, 24576, 16, num_key_value_heads=16)
    ),
    ("google/gemma-2b", "google/gemma-2b-it", "google/gemma-1.1-2b-it"): (
        _GEMMA | _sizes(18, 2048, 16384, 8, num_key_value_heads=1)
    ),
}
KNOWN_MODELS = {  # hub name -> its public config.json
    name: settings for names, settings in _ARCHITECTURES.items() for name in names
}
