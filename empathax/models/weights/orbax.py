"""Parameters in Orbax directories: what a run saves, and what `export --to=orbax` writes."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp

from empathax.errors import CheckpointError, WeightsError, raise_all
from empathax.models.architecture.model_config import ModelConfig
from empathax.models.transformer import abstract_params

ITEMS = ("params", "rest", "meta")  # of a run's checkpoint
PARAMS = ITEMS[0]
FROZEN = "frozen"  # of a run's checkpoint, where adapters lie below the one that is trained
_CHUNK_BYTES = 16 << 20  # of converted parameters: what is read at once, whatever part of it is wanted
_LARGEST_ITEM = 4  # bytes of a float32
_UNLIMITED_GB = 96.0  # as good as none: Orbax's own


def is_orbax(path: Path) -> bool:
    """Whether `path` is a directory with Orbax parameters, a run's directory, or a part of one."""
    if (path / PARAMS / "_METADATA").is_file() or (path / "checkpoints").is_dir():
        return True
    return latest_step(path) is not None


def latest_step(directory: Path) -> int | None:
    """The newest whole checkpoint in a stage's directory."""
    steps = [int(child.name) for child in _subdirectories(directory) if child.name.isdigit()]
    finished = [step for step in steps if all((directory / str(step) / item).is_dir() for item in ITEMS)]
    return max(finished, default=None)


def latest_checkpoint(path: Path) -> Path:
    """The newest step directory at or below `path`: a run's workdir, its checkpoints/, a stage, or a step itself.

    Of several stages the one written last is taken. Raises CheckpointError if there is none.
    """
    path = Path(path).absolute()
    if (path / "meta").is_dir():
        return path
    for stages in (path / "checkpoints", path):
        found = [(stage, latest_step(stage)) for stage in (stages, *_subdirectories(stages))]
        steps = [stage / str(step) for stage, step in found if step is not None]
        if steps:
            return max(steps, key=lambda step: step.stat().st_mtime)
    raise CheckpointError(
        f"{path} holds no finished checkpoint: expected a run's --workdir, its checkpoints/, or a stage in it"
    )


def read_meta(step_dir: Path) -> dict[str, Any]:
    """The meta of one checkpoint."""
    with ocp.Checkpointer(ocp.JsonCheckpointHandler()) as reader:
        return reader.restore(step_dir / "meta")


def restore_params(directory: Path, like: Any, item: str = PARAMS) -> Any:
    """The parameters alone in `directory`, in the shapes, dtypes and shardings of `like`; each device reads its part.

    `item` names another part of a checkpoint. Raises CheckpointError for another tree or other shapes.
    """
    wanted, place = abstract(like), Path(directory).absolute() / item
    try:
        try:
            return _restore(place, wanted, _in_flight_gb(wanted))
        except ValueError as error:
            if "Requested more bytes" not in str(error):
                raise
            return _restore(place, wanted, _UNLIMITED_GB)  # chunks that are larger than what a device wants of them
    except (ValueError, FileNotFoundError, KeyError) as error:
        reason = str(error).strip().splitlines()[0]
        raise CheckpointError(f"{directory} cannot be read into this model: {reason}") from error


def _restore(place: Path, wanted: Any, in_flight_gb: float) -> Any:
    handler = ocp.StandardCheckpointHandler(restore_concurrent_gb=cast(Any, in_flight_gb))  # a fraction will do
    with ocp.Checkpointer(handler) as reader:
        return reader.restore(place, args=ocp.args.StandardRestore(wanted))


def _in_flight_gb(wanted: Any) -> float:
    """How much may be on its way to the devices: a few of the largest shards, not everything at once."""
    sizes = (
        math.prod(leaf.sharding.shard_shape(leaf.shape) if leaf.sharding else leaf.shape) * _LARGEST_ITEM
        for leaf in jax.tree.leaves(wanted)
    )
    return max(_CHUNK_BYTES * 8, 2 * max(sizes)) / 1e9


def write_params(directory: Path, params: Any) -> None:
    """Writes `directory`/params. Raises OSError if the disk refuses."""
    chunks = jax.tree.map(lambda _: ocp.SaveArgs(chunk_byte_size=_CHUNK_BYTES), params)
    with ocp.Checkpointer(ocp.StandardCheckpointHandler()) as writer:
        writer.save(Path(directory).absolute() / PARAMS, args=ocp.args.StandardSave(params, save_args=chunks))


def stored_leaves(place: Path) -> Any:
    """The tree that the item in directory `place` holds, with shapes and dtypes for leaves; reads no arrays."""
    # a Checkpointer would look for a whole checkpoint's metadata here, and warn that there is none
    return ocp.StandardCheckpointHandler().metadata(place).tree


def check_params(directory: Path, config: ModelConfig) -> None:
    """Raises a WeightsError with every parameter that is missing, left over or of another shape; reads no weights."""
    found = _shapes(stored_leaves(Path(directory).absolute() / PARAMS))
    expected = _shapes(abstract_params(config))
    problems = [
        f"{name}: found {found.get(name, 'nothing')}, expected {expected.get(name, 'nothing')}"
        for name in sorted(found.keys() | expected.keys())
        if found.get(name) != expected.get(name)
    ]
    raise_all(WeightsError, f"{directory} does not hold the {config.family} model that its config describes", problems)


def check_finite(directory: Path, params: Any) -> None:
    """Raises a WeightsError with every parameter that holds NaN or infinite values."""
    is_finite = jax.jit(lambda leaf: jnp.isfinite(leaf).all())
    leaves = jax.tree_util.tree_leaves_with_path(params)
    # one after another: what is compared may be in memory too
    problems = [f"{_name(path)}: found NaN or infinite values" for path, leaf in leaves if not bool(is_finite(leaf))]
    raise_all(WeightsError, f"{directory} holds weights that are not finite", problems)


def abstract(tree: Any) -> Any:
    """Shapes, dtypes and shardings of a tree of arrays."""

    def leaf(value: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(value.shape, value.dtype, sharding=getattr(value, "sharding", None))

    return jax.tree.map(leaf, tree)


def _subdirectories(path: Path) -> list[Path]:
    return sorted(child for child in path.iterdir() if child.is_dir()) if path.is_dir() else []


def _shapes(tree: Any) -> dict[str, list[int]]:
    return {_name(path): list(leaf.shape) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def _name(path: tuple[Any, ...]) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")
