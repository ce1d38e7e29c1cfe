"""A run's checkpoints on disk: which there are, whether each is whole, and their content, verified as it is read.

A step is a directory of Orbax items: `params`, `rest`, `meta` and, with adapters below the trained one, `frozen`.
docs/checkpoint_format.md has every file. `meta` says dtype, shape and digest of each leaf, and has a digest of its own;
files.json has size and digest of each file. Nothing is handed out that does not agree with them. A model that was
converted (`export --to=orbax`) has the same in arrays.json and files.json beside `params`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp

from empathax import json_text
from empathax.atomic import whole_file
from empathax.errors import CheckpointError, DamagedCheckpoint, EmpathaxError, raise_all
from empathax.models.weights.digests import differing, file_records, json_digest, layout, leaf_name, leaf_records
from empathax.models.weights.orbax import read_arrays, read_leaf, stored_leaves, write_arrays

FORMAT = 1
ITEMS = ("params", "rest", "meta")  # of every step
PARAMS = ITEMS[0]
FROZEN = "frozen"  # adapters below the one that is trained
SEAL = "files.json"
_WRITTEN_LAST = ("_CHECKPOINT_METADATA", "commit_success.txt")  # by Orbax, when a step gets its name
ARRAYS = "arrays.json"  # of a converted model: what `meta` is to a step
T = TypeVar("T")


@dataclass(frozen=True)
class Step:
    """A step whose files are those that were written; its arrays are verified by `read` and `verify`."""

    directory: Path
    meta: Mapping[str, Any]

    @property
    def number(self) -> int:
        """Steps trained when it was saved."""
        return int(self.meta["step"])

    @property
    def leaves(self) -> Mapping[str, Mapping[str, str]]:
        """Item -> path of a leaf -> dtype, shape and digest."""
        return self.meta["leaves"]

    def read(self, like: Any, item: str = PARAMS) -> Any:
        """The arrays of `item` in the shapes, dtypes and shardings of `like`.

        Raises a CheckpointError if it holds other ones than `like`, a DamagedCheckpoint if they are not those that were
        saved.
        """
        check_layout(self, {item: like})
        with _as_damage(self.directory):
            tree = read_arrays(self.directory / item, like)
            self._compare(item, leaf_records(tree))
        return tree

    def read_as(self, like: Any, item: str = PARAMS) -> Any:
        """`read`, where the dtypes of `like` may be others than the stored ones: verified first, then converted."""
        stored = jax.tree_util.tree_map_with_path(lambda path, leaf: self._stored(item, path, leaf), like)
        tree = self.read(stored, item)
        return jax.tree.map(lambda array, leaf: array.astype(leaf.dtype), tree, like)

    def verify(self, items: Sequence[str] = ()) -> None:
        """Reads all arrays (of `items`), one after another. Raises a DamagedCheckpoint naming one that differs."""
        for item in items or self.leaves:
            for path in self.leaves[item]:
                with _as_damage(self.directory):
                    self._compare(item, leaf_records({path: read_leaf(self.directory / item, path)}))

    def _stored(self, item: str, path: tuple[Any, ...], leaf: Any) -> jax.ShapeDtypeStruct:
        record = self.leaves.get(item, {}).get(leaf_name(path), "")
        dtype = jnp.dtype(record.partition("[")[0]) if record else leaf.dtype
        return jax.ShapeDtypeStruct(leaf.shape, dtype, sharding=getattr(leaf, "sharding", None))

    def _compare(self, item: str, found: Mapping[str, str]) -> None:
        wanted = self.leaves[item]
        problems = differing(found, {path: wanted[path] for path in found})
        if problems:
            raise DamagedCheckpoint(f"{self.directory}: {item}/{problems[0]}")


def _to_stderr(text: str) -> None:
    print(text, file=sys.stderr)


def is_orbax(path: Path) -> bool:
    """Whether `path` is a directory with converted parameters, a run's directory, or a part of one."""
    return (path / PARAMS).is_dir() or (path / "checkpoints").is_dir() or bool(step_directories(path))


def step_directories(stage: Path) -> list[Path]:
    """The directories of a stage's steps, the newest first, whole or not."""
    numbered = [child for child in _subdirectories(stage) if child.name.isdigit()]
    return sorted(numbered, key=lambda child: int(child.name), reverse=True)


def find_steps(path: Path) -> list[Path]:
    """The step directories at or below `path`, the newest first.

    `path` is a run's workdir, its checkpoints/, a stage in it or a step itself. Of several stages the one written last
    counts. Raises a CheckpointError if there is none.
    """
    path = Path(path).absolute()
    if any((path / item).is_dir() for item in ITEMS) and not step_directories(path):
        return [path]
    for stages in (path / "checkpoints", path):
        found = [step_directories(stage) for stage in (stages, *_subdirectories(stages))]
        found = [steps for steps in found if steps]
        if found:
            return max(found, key=lambda steps: steps[0].stat().st_mtime)
    raise CheckpointError(
        f"{path} holds no finished checkpoint: expected a run's --workdir, its checkpoints/, or a stage in it"
    )


def open_step(directory: Path) -> Step:
    """The step in `directory`, its files compared with what was written; no arrays are read.

    Raises a DamagedCheckpoint that names the file, item or leaf that is not as it was written.
    """
    missing = [name for name in (*ITEMS, SEAL) if not (directory / name).exists()]
    if missing:
        raise DamagedCheckpoint(f"{directory} has no {', '.join(missing)}: it was not written to its end")
    check_files(directory)
    with _as_damage(directory):
        return _with_checked_layout(Step(directory, _checked_meta(directory, _read_meta(directory))))


def open_converted(directory: Path) -> Step:
    """The parameters of a converted model, its files compared with what was written; no arrays are read.

    Raises a DamagedCheckpoint if they are not the same, or were never sealed.
    """
    for name in (ARRAYS, SEAL):
        if not (directory / name).is_file():
            raise DamagedCheckpoint(f"{directory} has no {name}: convert the model again with export --to=orbax")
    check_files(directory)
    with _as_damage(directory):
        meta = json_text.parse((directory / ARRAYS).read_bytes())
        return _with_checked_layout(Step(directory, _checked_meta(directory, meta)))


def write_converted(directory: Path, params: Any) -> None:
    """Writes `params` and arrays.json; `seal_files` is to follow when all other files are there. Raises OSError."""
    write_arrays(directory / PARAMS, params)
    (directory / ARRAYS).write_text(json.dumps(sealed_meta({}, {PARAMS: params}), indent=1), encoding="utf-8")


def _read_meta(directory: Path) -> dict[str, Any]:
    # not through Orbax, whose processes wait for each other even to read a file: one alone reads this in the background
    return json_text.parse((directory / "meta" / "metadata").read_bytes())


def _checked_meta(directory: Path, meta: dict[str, Any]) -> dict[str, Any]:
    digest = meta.pop("digest")
    if digest != json_digest(meta):
        raise DamagedCheckpoint(f"{directory}: what it says of itself is not what was saved")
    if meta["format"] != FORMAT:
        raise CheckpointError(f"{directory} is of format {meta['format']}, this version reads {FORMAT}")
    return meta


def _with_checked_layout(step: Step) -> Step:
    for item in step.leaves:
        wanted = {path: record.rpartition(" ")[0] for path, record in step.leaves[item].items()}
        if problems := differing(layout(stored_leaves(step.directory / item)), wanted):
            raise DamagedCheckpoint(f"{step.directory}: {item}/{problems[0]}")
    return step


def newest_verified(
    directories: Sequence[Path],
    read: Callable[[Step], T],
    say: Callable[[str], None] = _to_stderr,
    agreed: Callable[[str], str] = str,
) -> tuple[Step, T]:
    """The first of `directories` that `read` can read, and what it returns; `say` is told why others cannot be used.

    `agreed` makes of what is wrong for this process ("": nothing) what is wrong for all of its job. Raises a
    CheckpointError with each one's reason if none is left. What else `read` raises goes on to the caller.
    """
    reasons: list[str] = []
    for directory in directories:
        reason, found = "", None
        try:
            step = open_step(directory)
            found = (step, read(step))
        except DamagedCheckpoint as error:
            reason = str(error)
        reason = agreed(reason)
        if not reason and found:
            if reasons:
                say(f"going on from the older checkpoint {directory}")
            return found
        reasons.append(reason)
        say(f"checkpoint not used: {reason}")
    listed = "".join(f"\n  - {reason}" for reason in reasons)
    raise CheckpointError(
        f"no checkpoint can be used; found {len(reasons)}:{listed}\nbring one back from a copy; --overwrite or another "
        "--workdir starts anew"
    )


def sealed_meta(meta: Mapping[str, Any], trees: Mapping[str, Any]) -> dict[str, Any]:
    """`meta` with the records of all leaves in `trees` (by item) and its own digest, as it is saved."""
    leaves = {item: leaf_records(tree) for item, tree in trees.items()}
    whole = json.loads(json.dumps({**meta, "format": FORMAT, "leaves": leaves}))  # as it will be read
    return {**whole, "digest": json_digest(whole)}


def seal_files(directory: Path) -> None:
    """Writes files.json: size and digest of every file in `directory`. Raises OSError where the disk refuses.

    What an earlier one says of a file stays.
    """
    known = _sealed(directory) if (directory / SEAL).is_file() else {}
    files = known | file_records(directory, skipped={SEAL, *(known or _WRITTEN_LAST)})
    with whole_file(directory / SEAL) as file:
        json.dump({"files": files, "digest": json_digest(files)}, file)


def _sealed(directory: Path) -> dict[str, list[Any]]:
    seal = json_text.parse((directory / SEAL).read_bytes())
    if seal["digest"] != json_digest(seal["files"]):
        raise DamagedCheckpoint(f"{directory}: {SEAL} is not what was saved")
    return seal["files"]


def check_files(directory: Path) -> None:
    """Raises a DamagedCheckpoint if a file that `seal_files` saw is gone, or not the same any more."""
    with _as_damage(directory):
        wanted, found = _sealed(directory), file_records(directory, skipped={SEAL})
    for name, (size, digest) in wanted.items():
        if name not in found:
            raise DamagedCheckpoint(f"{directory}: {name} is gone")
        if found[name][0] != size:
            raise DamagedCheckpoint(f"{directory}: {name} has {found[name][0]:,} bytes, {size:,} were written")
        if digest and found[name][1] != digest:
            raise DamagedCheckpoint(f"{directory}: {name} is not what was written")


def check_layout(step: Step, wanted: Mapping[str, Any]) -> None:
    """Raises a CheckpointError naming each leaf of `wanted` (trees by item) that the step has otherwise, or not."""
    problems: list[str] = []
    for item, tree in wanted.items():
        found = {path: record.rpartition(" ")[0] for path, record in step.leaves.get(item, {}).items()}
        expected = layout(tree)
        for path in sorted(found.keys() | expected.keys()):
            name, ours, its = f"{item}/{path}", expected.get(path), found.get(path)
            if its is None:
                problems.append(f"{name} is not in the checkpoint")
            elif ours is None:
                problems.append(f"{name} is in the checkpoint but not in this run")
            elif ours != its:
                problems.append(f"{name} is {its} in the checkpoint, {ours} in this run")
    raise_all(CheckpointError, f"{step.directory} was written by another model or optimizer", problems)


@contextmanager
def _as_damage(directory: Path) -> Iterator[None]:
    """Whatever goes wrong while files are read that were whole when they were written is damage, and named as such."""
    try:
        yield
    except EmpathaxError:
        raise
    except Exception as error:  # damaged files make Orbax and tensorstore raise anything
        reason = (str(error).strip().splitlines() or [""])[0][:200]
        raise DamagedCheckpoint(f"{directory} cannot be read: {type(error).__name__}: {reason}") from error


def _subdirectories(path: Path) -> list[Path]:
    return sorted(child for child in path.iterdir() if child.is_dir()) if path.is_dir() else []
