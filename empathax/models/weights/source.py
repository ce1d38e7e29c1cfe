"""Models before they are in memory: what a user writes for one, resolved to its config, weights, tokenizer and digest.

`resolve_model` chooses the `ModelSource`: a Hugging Face directory, Orbax parameters, a GGUF file, or random weights of
a preset. `adapted_model` puts adapters on top of any of them.
"""

from __future__ import annotations

import functools
import hashlib
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from empathax import json_text
from empathax.config.arguments import path_problem
from empathax.errors import WeightsError
from empathax.models.architecture.hf_config import from_hf_config
from empathax.models.architecture.model_config import ModelConfig
from empathax.models.architecture.presets import preset
from empathax.models.lora.adapters import Adapter, with_adapters
from empathax.models.lora.files import adapted_params, read_adapter
from empathax.models.tokenizers.gguf import tokenizer_from_gguf
from empathax.models.tokenizers.hf import tokenizer_from_directory
from empathax.models.tokenizers.tokenizer import Tokenizer, byte_tokenizer
from empathax.models.transformer import abstract_params, init_params, placed
from empathax.models.weights.byte_files import is_url
from empathax.models.weights.checks import check_finite, check_params, check_size, check_tensors
from empathax.models.weights.gguf import GgufFile, config_of
from empathax.models.weights.loading import Finish, finished, identity, load_params
from empathax.models.weights.locations import download_model, is_hub_name, local_settings, weights_in_package
from empathax.models.weights.names import gguf_naming, hf_naming
from empathax.models.weights.safetensors import SafetensorsFiles, open_weights, read_json
from empathax.models.weights.steps import FROZEN, PARAMS, Step, find_steps, is_orbax, newest_verified, open_converted
from empathax.shown import quoted

Params = dict[str, Any]
T = TypeVar("T")
_WHOLE_BYTES = 512 << 20  # files up to this size are hashed whole, larger ones by header and samples
_SAMPLE_BYTES, _NUM_SAMPLES = 1 << 20, 128


class ModelSource(Protocol):
    """A model before it is in memory."""

    kind: str  # "directory", "orbax", "gguf", "random" or "adapted"
    path: str  # the directory or file it is read from, or the preset

    @property
    def config(self) -> ModelConfig:
        """Its architecture."""
        ...

    def load_params(
        self, param_dtype: jnp.dtype = jnp.float32, shardings: Params | None = None, finish: Finish = identity
    ) -> Params:
        """Its parameters, in the tree of `abstract_params` and laid out as `shardings` (one device if None).

        `finish` makes of each parameter what takes its place: one after another as they are read, from safetensors and
        GGUF files.
        """
        ...

    def check(self) -> None:
        """Raises what `load_params` would raise for names, types and shapes of tensors; loads nothing."""
        ...

    def tokenizer(self) -> Tokenizer:
        """Its tokenizer, checked against the embedding."""
        ...

    def fingerprint(self) -> str:
        """A digest of config and weights: equal for the same content at any path."""
        ...


def resolve_model(path: str | Path) -> ModelSource:
    """What `path` names.

    That is a directory, a run's directory, a .gguf file, `package:NAME`, `random:PRESET[:SEED]`, the URL of a directory
    in a store ("gs://bucket/model"), or a hub name "org/model".

    Raises a WeightsError that says what was tried; the config is read and checked here, weights and tokenizer later.
    """
    text = str(path)
    if problem := path_problem(text):
        raise WeightsError(f"model {quoted(text)} cannot be a path: {problem}")
    if text.startswith("random:"):
        name, _, seed = text.removeprefix("random:").partition(":")
        if seed and not seed.isdigit():
            raise WeightsError(f"{text}: expected random:PRESET or random:PRESET:SEED with a whole number as seed")
        return RandomModel(name, int(seed or 0))
    if text.startswith("package:"):
        return _open(weights_in_package(text.removeprefix("package:")))
    if is_url(text):
        return DirectoryModel(local_settings(text), text)
    place = Path(text).expanduser()
    if place.exists():
        return _open(place)
    if is_hub_name(text):
        return _open(download_model(text))
    raise WeightsError(
        f"model {text!r} does not exist: no such file or directory ({place.absolute()}), and it is no hub name "
        "(org/model), package:NAME or random:PRESET"
    )


def adapted_model(base: ModelSource, directories: Sequence[str]) -> ModelSource:
    """`base` with the adapters in `directories` added up; `base` itself if there are none.

    The adapters are read and checked here; raises a WeightsError if one does not fit.
    """
    return AdaptedModel(base, directories) if directories else base


class DirectoryModel:
    """A Hugging Face directory: config.json, *.safetensors, tokenizer files."""

    kind = "directory"

    def __init__(self, directory: Path, url: str = ""):
        """`url` is where the weights are, if they are not in `directory` too."""
        self.path = url or str(directory)
        self._directory, self._url = directory, url
        settings = read_json(directory / "config.json")
        if settings is None:
            raise WeightsError(
                f"{directory} has no config.json, so its architecture is unknown: copy it from the model"
            )
        self.config = _named(directory / "config.json", from_hf_config, settings)

    @functools.cached_property
    def _weights(self) -> SafetensorsFiles:
        return open_weights(self._directory, self._url)

    def load_params(
        self, param_dtype: jnp.dtype = jnp.float32, shardings: Params | None = None, finish: Finish = identity
    ) -> Params:
        """See ModelSource."""
        naming = hf_naming(set(self._weights.tensors))
        return load_params(self._weights, self.config, naming, self.path, param_dtype, shardings, finish)

    def check(self) -> None:
        """See ModelSource."""
        check_tensors(self._weights, self.config, hf_naming(set(self._weights.tensors)), self.path)

    def tokenizer(self) -> Tokenizer:
        """See ModelSource."""
        return tokenizer_from_directory(self._directory).fitted_to(self.config.vocab_size)

    def fingerprint(self) -> str:
        """See ModelSource."""
        names = sorted({info.file for info in self._weights.tensors.values()})
        if self._url:
            return _digest_of_headers(self.config, self._weights)
        return digest_of_files([self._directory / "config.json", *(self._directory / name for name in names)])


class OrbaxModel:
    """Parameters that Orbax wrote: a run's checkpoint, adapters merged in, or a directory of `export --to=orbax`.

    The latter has config.json and tokenizer beside the parameters. All of it is verified as it is read; of a run the
    newest checkpoint that can be used is taken, and why others are not is said.
    """

    kind = "orbax"

    def __init__(self, path: Path):
        self.path = str(path)
        self._is_of_run = not (path / "config.json").is_file() or (path / "checkpoints").is_dir()
        self._older: list[Path] = []  # than the chosen step
        if self._is_of_run:
            self._choose(find_steps(path), lambda step: None)
        else:
            self._step = open_converted(path.absolute())
        self._meta = self._step.meta
        self._settings = first_model(self._step) if self._is_of_run else DirectoryModel(path)
        self.config = self._settings.config

    def load_params(
        self, param_dtype: jnp.dtype = jnp.float32, shardings: Params | None = None, finish: Finish = identity
    ) -> Params:
        """See ModelSource."""
        one_device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        shapes = abstract_params(self.config, param_dtype)
        check_size(shapes, self.config, self.path, jnp.dtype(param_dtype).itemsize)
        like = placed(shapes, shardings or one_device)

        def read(step: Step) -> Params:
            if "lora" in step.meta:
                return adapted_params(self._settings, step, param_dtype, shardings)
            params = step.read_as(like)
            check_finite(str(step.directory), params)
            return params

        return finished(self._choose([self._step.directory, *self._older], read), finish)

    def check(self) -> None:
        """See ModelSource."""
        if "lora" in self._meta:
            return self._settings.check()
        return check_params(str(self._step.directory), self._step.leaves[PARAMS], self.config)

    def tokenizer(self) -> Tokenizer:
        """See ModelSource."""
        if not self._is_of_run:
            return self._settings.tokenizer()
        found = load_tokenizer(self._meta["tokenizer_path"]).fitted_to(self.config.vocab_size)
        found.chat_template = self._meta.get("chat_template") or found.chat_template
        return found

    def fingerprint(self) -> str:
        """See ModelSource; reads all of it, so that it is the fingerprint of what will be loaded."""
        items = tuple(item for item in (PARAMS, FROZEN) if item in self._step.leaves)
        self._choose([self._step.directory, *self._older], lambda step: step.verify(items))
        leaves = [self._step.leaves[item] for item in items]
        below = f"{self._meta['lora']}{self._settings.fingerprint()}" if "lora" in self._meta else ""
        return hashlib.sha256(f"{self.config!r}{leaves}{below}".encode()).hexdigest()

    def _choose(self, directories: list[Path], read: Callable[[Step], T]) -> T:
        """The newest step that `read` can read becomes the chosen one; returns what it read."""
        if not self._is_of_run:
            return read(self._step)
        self._step, value = newest_verified(directories, read)
        self._older = directories[directories.index(self._step.directory) + 1 :]
        return value


_RESOLVING: list[str] = []  # paths whose runs began with each other


def first_model(step: Step, moved_to: str = "") -> ModelSource:
    """What a run began with, or `moved_to`, where that is now.

    Raises a WeightsError if the checkpoint does not say, or names the run itself.
    """
    path = step.meta.get("model_path")
    if not isinstance(path, str) or "model_config" not in step.meta:
        raise WeightsError(
            f"{step.directory} does not say which model its run began with; name the run's --workdir or its "
            "checkpoints/"
        )
    if str(step.directory) in _RESOLVING:
        raise WeightsError(f"{step.directory} began with {path}, which is this very run: its architecture is nowhere")
    _RESOLVING.append(str(step.directory))
    try:
        return resolve_model(moved_to or path)
    finally:
        _RESOLVING.pop()


class GgufModel:
    """One .gguf file: architecture, weights and tokenizer."""

    kind = "gguf"

    def __init__(self, path: Path):
        self.path = str(path)
        self._path = path
        self._file = GgufFile(path)
        self.config = _named(path, config_of, self._file)
        self._naming = gguf_naming(str(self._file.metadata.get("general.architecture")))

    def load_params(
        self, param_dtype: jnp.dtype = jnp.float32, shardings: Params | None = None, finish: Finish = identity
    ) -> Params:
        """See ModelSource."""
        return load_params(self._file, self.config, self._naming, self.path, param_dtype, shardings, finish)

    def check(self) -> None:
        """See ModelSource."""
        check_tensors(self._file, self.config, self._naming, self.path)

    def tokenizer(self) -> Tokenizer:
        """See ModelSource."""
        return tokenizer_from_gguf(self._file.metadata, self.path).fitted_to(self.config.vocab_size)

    def fingerprint(self) -> str:
        """See ModelSource."""
        return digest_of_files([self._path])


class RandomModel:
    """A preset with random parameters and the byte tokenizer."""

    kind = "random"

    def __init__(self, name: str, seed: int = 0):
        self.path = f"random:{name}:{seed}"
        self.config = preset(name)
        self._seed = seed

    def load_params(
        self, param_dtype: jnp.dtype = jnp.float32, shardings: Params | None = None, finish: Finish = identity
    ) -> Params:
        """See ModelSource."""
        return finished(init_params(self.config, self._seed, param_dtype, shardings), finish)

    def check(self) -> None:
        """See ModelSource; nothing can be wrong."""

    def tokenizer(self) -> Tokenizer:
        """See ModelSource."""
        return byte_tokenizer().fitted_to(self.config.vocab_size)

    def fingerprint(self) -> str:
        """See ModelSource."""
        return hashlib.sha256(f"{self.path}\0{self.config!r}".encode()).hexdigest()


class AdaptedModel:
    """A model with adapters merged in; its parameters are those of a plain model."""

    kind = "adapted"

    def __init__(self, base: ModelSource, directories: Sequence[str]):
        self.path = " + ".join([base.path, *directories])
        self.config = base.config
        self._base = base
        self._adapters = [read_adapter(Path(directory), base.config) for directory in directories]
        if len(directories) > 1 and any(adapter.spec.dora for adapter in self._adapters):
            raise WeightsError(
                f"adapters with DoRA magnitudes do not add up to others ({', '.join(directories)}): merge one into the "
                "model with export --merge first"
            )

    def load_params(
        self, param_dtype: jnp.dtype = jnp.float32, shardings: Params | None = None, finish: Finish = identity
    ) -> Params:
        """See ModelSource."""
        return finished(with_adapters(self._base.load_params(param_dtype, shardings), self._adapters), finish)

    def check(self) -> None:
        """See ModelSource."""
        self._base.check()

    def tokenizer(self) -> Tokenizer:
        """See ModelSource."""
        return self._base.tokenizer()

    def fingerprint(self) -> str:
        """See ModelSource."""
        return fingerprint_with(self._base.fingerprint(), self._adapters)


def load_tokenizer(path: str | Path) -> Tokenizer:
    """The tokenizer at `path` (anything `resolve_model` takes, or a directory with tokenizer files only)."""
    if not path_problem(str(path)) and Path(path).expanduser().is_dir():
        return tokenizer_from_directory(Path(path).expanduser())
    return resolve_model(path).tokenizer()


def fingerprint_with(fingerprint: str, adapters: Sequence[Adapter]) -> str:
    """The digest of a model with adapters from that of the model; without any it is the same."""
    if not adapters:
        return fingerprint
    digest = hashlib.sha256(fingerprint.encode())
    for adapter in adapters:
        digest.update(repr(adapter.spec).encode())
        for leaf in jax.tree.leaves(adapter.tree):
            digest.update(np.ascontiguousarray(leaf).tobytes())
    return digest.hexdigest()


def _digest_of_headers(config: ModelConfig, weights: SafetensorsFiles) -> str:
    """SHA-256 over what is known of weights in a store without reading them.

    That is names, shapes, types, files, and what the store says of their content.
    """
    known = f"{config!r}{sorted(weights.tensors.items())}{weights.versions}"
    return hashlib.sha256(known.encode()).hexdigest()


def digest_of_files(paths: Sequence[Path]) -> str:
    """SHA-256 over names, sizes and contents; of large files over the first and last megabyte and samples between."""
    digest = hashlib.sha256()
    for path in paths:
        size = path.stat().st_size
        digest.update(f"{path.suffix}:{size}\0".encode())
        with path.open("rb") as file:
            if size <= _WHOLE_BYTES:
                while block := file.read(_SAMPLE_BYTES):
                    digest.update(block)
                continue
            for sample in range(_NUM_SAMPLES):
                file.seek(math.floor(sample * (size - _SAMPLE_BYTES) / (_NUM_SAMPLES - 1)))
                digest.update(file.read(_SAMPLE_BYTES))
    return digest.hexdigest()


def _open(place: Path) -> ModelSource:
    if place.is_dir():
        if is_orbax(place):
            return OrbaxModel(place)
        ggufs = sorted(place.glob("*.gguf"))
        if not (place / "config.json").is_file() and len(ggufs) == 1:
            return GgufModel(ggufs[0])
        return DirectoryModel(place)
    if place.suffix == ".gguf":
        return GgufModel(place)
    raise WeightsError(f"{place} is a file, expected a directory with config.json and *.safetensors, or a .gguf file")


def _named(path: Path, read: Callable[[Any], ModelConfig], value: Any) -> ModelConfig:
    """`read(value)`, with the file's name in front of its errors."""
    with json_text.content_of(path, WeightsError):
        try:
            return read(value)
        except WeightsError as error:
            raise WeightsError(f"{path}: {error}") from error
