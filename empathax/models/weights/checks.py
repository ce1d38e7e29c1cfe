"""Are a file's tensors those that a model needs? By name, type and shape, every problem at once."""

from __future__ import annotations

import functools
import itertools
import re
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from empathax.errors import WeightsError, raise_all
from empathax.models.architecture.model_config import ModelConfig
from empathax.models.transformer import abstract_params
from empathax.models.weights.byte_files import TensorReader
from empathax.models.weights.digests import differing, layout, leaf_name
from empathax.models.weights.memory import LEAST_BYTES, check_fits
from empathax.models.weights.names import Naming, Stored, stored_parameters
from empathax.shown import shown

_FEW_LAYERS = 1000  # of more, the tensors are not listed by name unless a file can hold them
_COMPARED_BYTES = 8 << 20  # of a tied output projection and the embedding, at one time


def check_tensors(reader: TensorReader, config: ModelConfig, naming: Naming, source: str) -> None:
    """Compares the file's tensors with what `config` needs, by name, type and shape; reads no weights (but see below).

    A tied model's file may hold the output projection all the same; it must then equal the embedding.
    """
    expected: dict[str, tuple[int, ...]] = {}
    shapes = abstract_params(config)
    check_size(shapes, config, source, LEAST_BYTES)
    if config.num_layers > max(len(reader.tensors), _FEW_LAYERS):
        raise WeightsError(
            f"{source} does not hold the {config.family} model that its config describes: found "
            f"{len(reader.tensors):,} tensors, expected several for each of {config.num_layers:,} layers "
            "(num_hidden_layers)"
        )
    for stored in stored_parameters(config, naming):
        expected |= dict.fromkeys(stored.names, file_shape(stored, parameter_at(shapes, stored.path).shape))
    found = reader.tensors
    if expected.keys().isdisjoint(found):
        raise WeightsError(
            f"{source} holds none of the {len(expected)} tensors of a {config.family} model: found {_some(found)}, "
            f"expected {_some(expected)}; are the weights and the config of the same model?"
        )
    tied_head = naming.head_name() if config.tied_embeddings and naming.head_name() in found else None
    notes = {name: _complaint(reader, name, shape) for name, shape in expected.items()}
    notes |= {
        name: "found in the file, but the config has no place for it"
        for name in found.keys() - expected.keys() - {tied_head}
        if not naming.is_unused(name, config)
    }
    problems = _grouped((name, note) for name, note in sorted(notes.items(), key=_by_layer) if note)
    if tied_head and not problems:
        problems = _tied_head_problems(reader, next(iter(expected)), tied_head)
    raise_all(WeightsError, f"{source} does not hold the {config.family} model that its config describes", problems)


def check_params(source: str, leaves: Mapping[str, str], config: ModelConfig) -> None:
    """Compares the parameters of an Orbax directory with what `config` needs: every one that is missing, left over or
    of another shape is in a WeightsError. `leaves` has dtype, shape and digest by name."""
    found = {name: _shape_in(record) for name, record in leaves.items()}
    expected = {name: _shape_in(spelled) for name, spelled in layout(abstract_params(config)).items()}
    problems = differing(found, expected)
    raise_all(WeightsError, f"{source} does not hold the {config.family} model that its config describes", problems)


def check_finite(source: str, params: Any) -> None:
    """Raises a WeightsError with every parameter that holds NaN or infinite values, and how many."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    # one after another: what is compared may be in memory too
    counts = {leaf_name(path): int(_num_nonfinite(leaf)) for path, leaf in leaves}
    problems = [f"{name}: found {count:,} NaN or infinite values" for name, count in counts.items() if count]
    raise_all(WeightsError, f"{source} holds weights that are not finite", problems)


@jax.jit
def _num_nonfinite(leaf: jax.Array) -> jax.Array:
    return (~jnp.isfinite(leaf)).sum()


def _shape_in(spelled: str) -> str:
    """ "[3, 4]" of "float32[3, 4] 09f3..."."""
    return spelled[spelled.index("[") : spelled.index("]") + 1]


def check_size(shapes: dict[str, Any], config: ModelConfig, source: str, bytes_a_parameter: float) -> None:
    """Raises a WeightsError, with the config's sizes, for a model that this machine cannot hold."""
    sizes = {
        "num_hidden_layers": config.num_layers,
        "hidden_size": config.model_dim,
        "intermediate_size": config.ff_dim,
        "num_attention_heads": config.num_heads,
        "head_dim": config.head_dim,
        "vocab_size": config.vocab_size,
    }
    check_fits(shapes, source, bytes_a_parameter, sizes)


def parameter_at(tree: dict[str, Any], path: tuple[str, ...]) -> Any:
    """The leaf of a parameter tree at `path`."""
    return functools.reduce(lambda node, key: node[key], path, tree)


def put_parameter(tree: dict[str, Any], path: tuple[str, ...], value: Any) -> None:
    """Puts a leaf into a parameter tree at `path`."""
    functools.reduce(lambda node, key: node.setdefault(key, {}), path[:-1], tree)[path[-1]] = value


def file_shape(stored: Stored, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of a tensor's file, from that of the whole parameter."""
    inner = shape[1:] if stored.stacked else shape
    return inner[::-1] if stored.transposed else inner


def _complaint(reader: TensorReader, name: str, shape: tuple[int, ...]) -> str | None:
    """What is wrong with one expected tensor; None if nothing."""
    info = reader.tensors.get(name)
    if info is None:
        return f"found nothing, expected shape {list(shape)}"
    if not info.is_float:
        return f"found type {info.dtype}, which is not supported here, expected float values"
    return None if info.shape == shape else f"found shape {list(info.shape)}, expected {list(shape)}"


def _tied_head_problems(reader: TensorReader, embedding: str, head: str) -> list[str]:
    info = reader.tensors[head]
    if info.shape != reader.tensors[embedding].shape or not info.is_float:
        return [f"{head}: found shape {list(info.shape)}, expected none (tied to {embedding})"]
    step = max(1, _COMPARED_BYTES // (4 * info.shape[1]))
    # each process compares a part; `check` is where all hear of a difference
    for start in range(jax.process_index() * step, info.shape[0], jax.process_count() * step):
        rows = (slice(start, start + step), slice(None))
        if not np.array_equal(reader.read(head, rows), reader.read(embedding, rows), equal_nan=True):
            return [
                f"{head}: differs from {embedding}, but tie_word_embeddings says that they are one; set it to false"
            ]
    return []


def _grouped(notes: Iterable[tuple[str, str]]) -> list[str]:
    """One line for the same complaint about the same tensor of many layers."""
    problems = []
    for (pattern, note), group in itertools.groupby(notes, key=lambda item: (_pattern(item[0]), item[1])):
        names = [name for name, _ in group]
        several = f"{shown(names[0])} ... {shown(names[-1])} ({len(names)} tensors {shown(pattern)})"
        problems.append(f"{', '.join(map(shown, names)) if len(names) <= 3 else several}: {note}")
    return problems


def _pattern(name: str) -> str:
    return re.sub(r"\d+", "*", name, count=1)


def _by_layer(item: tuple[str, str | None]) -> tuple[str, str, int]:
    digits = re.search(r"\d+", item[0])
    return _pattern(item[0]), item[1] or "", int(digits[0]) if digits else 0


def _some(names: Iterable[str]) -> str:
    return ", ".join(map(shown, itertools.islice(names, 3))) or "nothing"
