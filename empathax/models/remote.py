"""Model directories in a store ("gs://bucket/model"): settings and tokenizer are copied here, weights stay there."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path

from empathax.errors import WeightsError
from empathax.models.range_file import open_store

_SMALL = (".json", ".jinja", "tokenizer.model")


@functools.lru_cache(maxsize=8)
def local_settings(url: str) -> Path:
    """A local directory, kept until the process ends, with all of `url` but its weights. Raises a WeightsError if
    nothing can be had from there, or what is there is not a Hugging Face directory."""
    store, place = open_store(url.rstrip("/"))
    try:
        found = {Path(name).name: name for name in store.ls(place, detail=False)}
    except Exception as error:  # each store has exceptions of its own
        reason = " ".join(str(error).split()) or type(error).__name__
        raise WeightsError(f"{url} cannot be listed: {reason}") from error
    if "config.json" not in found or not any(name.endswith(".safetensors") for name in found):
        raise WeightsError(
            f"{url} holds {', '.join(sorted(found)[:5]) or 'nothing'}: expected config.json and *.safetensors; .gguf "
            "files and Orbax checkpoints have to be copied to a disk first"
        )
    directory = Path(_kept_until_exit().name) / str(len(list(Path(_kept_until_exit().name).iterdir())))
    directory.mkdir()
    for name in found:
        if name.endswith(_SMALL):
            (directory / name).write_bytes(store.cat_file(found[name]))
    return directory


@functools.lru_cache(maxsize=1)
def _kept_until_exit() -> tempfile.TemporaryDirectory:
    return tempfile.TemporaryDirectory(prefix="empathax-model-")
