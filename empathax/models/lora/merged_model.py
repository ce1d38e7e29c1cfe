"""A model with adapters in PEFT's format merged in, as a model to load."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from empathax.errors import WeightsError
from empathax.models.lora.adapters import Adapter, with_adapters
from empathax.models.lora.files import read_adapter
from empathax.models.tokenizers.tokenizer import Tokenizer
from empathax.models.weights.loading import Finish, finished, identity
from empathax.models.weights.source import ModelSource

Params = dict[str, Any]


def adapted_model(base: ModelSource, directories: Sequence[str]) -> ModelSource:
    """`base` with the adapters in `directories` added up; `base` itself if there are none.

    The adapters are read and checked here; raises a WeightsError if one does not fit.
    """
    return AdaptedModel(base, directories) if directories else base


class AdaptedModel:
    """See ModelSource; its parameters are those of a plain model."""

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
