"""Digests of a model's files: equal for the same content at any path."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from pathlib import Path

from empathax.models.hf_files import SafetensorsFiles
from empathax.models.model_config import ModelConfig

_WHOLE_BYTES = 512 << 20  # files up to this size are hashed whole, larger ones by header and samples
_SAMPLE_BYTES, _NUM_SAMPLES = 1 << 20, 128


def digest_of_headers(config: ModelConfig, weights: SafetensorsFiles) -> str:
    """Of weights in a store, which are too far away to be read for this: names, shapes, types, files, and what the
    store says of their content."""
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
