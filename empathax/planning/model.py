"""The architecture of a config's model, without its weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from empathax.errors import WeightsError
from empathax.models.hf_config import from_hf_config
from empathax.models.hf_files import read_json
from empathax.models.hub import download, first_line, is_hub_name
from empathax.models.model_config import ModelConfig
from empathax.models.source import DirectoryModel, resolve_model
from empathax.models.tokenizer import Tokenizer
from empathax.planning.known_models import KNOWN_MODELS

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
