"""The frozen reference of preference training: its parameters beside the state, or its log-probs computed once.

Log-probs are cached on disk under a fingerprint of everything they depend on. The weights part is a digest of the
parameters that are actually the reference, so that DPO after another SFT never meets a stale cache.
"""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import Float32

from empathax.atomic import whole_file
from empathax.errors import CheckpointError
from empathax.models.weights.digests import leaf_digests
from empathax.training.state import Tree

SequenceLogps = Float32[np.ndarray, " sequences"]


def frozen_copy(params: Tree) -> Tree:
    """A resident reference: the same values in buffers of its own, which donating the train state leaves alone."""
    return jax.tree.map(jnp.copy, params)


def fingerprint(params: Tree, parts: Mapping[str, str]) -> dict[str, str]:
    """What reference log-probs depend on, by name: the digest of `params`, and the caller's `parts` (rows, tokenizer,
    template, lengths, compute dtype)."""
    digests = json.dumps(leaf_digests(params), sort_keys=True)
    return {"weights": hashlib.sha256(digests.encode()).hexdigest(), **parts}


def cached_logps(
    cache_dir: Path, wanted: Mapping[str, str], compute: Callable[[], SequenceLogps]
) -> tuple[SequenceLogps, bool]:
    """The log-probs with fingerprint `wanted`: from `cache_dir`, or computed and written there.

    Returns (log-probs, whether they came from disk). A file that is damaged or tells of another fingerprint is never
    used. All processes must call it together; the first one reads, decides and writes. Raises CheckpointError if the
    file cannot be written.
    """
    path = cache_path(cache_dir, wanted)
    leads = jax.process_index() == 0
    cached = _read(path, wanted) if leads else None
    length = int(_broadcast(np.int32(-1 if cached is None else len(cached))))
    if length >= 0:
        return _broadcast(cached if leads else np.zeros(length, np.float32)), True
    logps = compute()
    if leads:
        _write(path, wanted, logps)
    return logps, False


def cache_path(cache_dir: Path, wanted: Mapping[str, str]) -> Path:
    """The file of a fingerprint."""
    digest = hashlib.sha256(_canonical(wanted).encode()).hexdigest()
    return Path(cache_dir) / f"reference-{digest[:16]}.npz"


def _canonical(parts: Mapping[str, str]) -> str:
    return json.dumps(dict(parts), sort_keys=True)


def _read(path: Path, wanted: Mapping[str, str]) -> SequenceLogps | None:
    try:
        with path.open("rb") as raw, np.load(raw, allow_pickle=False) as file:  # members have a CRC: damage raises
            found, logps = str(file["fingerprint"]), file["logps"]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
    is_usable = found == _canonical(wanted) and logps.dtype == np.float32 and logps.ndim == 1
    return logps if is_usable else None


def _write(path: Path, wanted: Mapping[str, str], logps: SequenceLogps) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(path, "wb") as file:
            np.savez(file, logps=logps, fingerprint=np.array(_canonical(wanted)))
    except OSError as error:
        raise CheckpointError(
            f"the reference log-probs cannot be written to {path}: {error.strerror}; free some space or choose another "
            "--workdir"
        ) from error


def _broadcast(value: Any) -> Any:
    return value if jax.process_count() == 1 else np.asarray(multihost_utils.broadcast_one_to_all(value))
