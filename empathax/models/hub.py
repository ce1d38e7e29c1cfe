"""The Hugging Face hub: names of models there, and their files."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from empathax.errors import WeightsError

_HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*(@[\w./-]+)?")
_MODEL_FILES = ("*.json", "*.safetensors", "*.jinja", "tokenizer.model")


def is_hub_name(text: str) -> bool:
    """True if `text`, which names nothing on this machine, has the form of a hub name "org/model"."""
    return _HUB_NAME.fullmatch(text) is not None and not text.endswith(".gguf")


def download(name: str, patterns: Sequence[str]) -> Path:
    """The local copy of a hub model's files that match `patterns`; downloaded if they are not cached. Raises whatever
    the hub's libraries raise: network, access, spelling have exceptions of their own."""
    import huggingface_hub

    repo, _, revision = name.partition("@")
    return Path(huggingface_hub.snapshot_download(repo, revision=revision or None, allow_patterns=list(patterns)))


def download_model(name: str) -> Path:
    """The local copy of everything that loading takes. Raises a WeightsError that says what to look at."""
    try:
        return download(name, _MODEL_FILES)
    except Exception as error:
        raise WeightsError(
            f"model {name!r} is no local path, and could not be had from the Hugging Face hub: {first_line(error)} "
            "(check the spelling, the network, HF_HUB_OFFLINE, and `hf auth login` for gated models)"
        ) from error


def first_line(error: Exception) -> str:
    """What an error of the hub's libraries says, which go on for long."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
