"""Training state on disk: asynchronous Orbax checkpoints, one directory per stage, one per step in it.

A checkpoint holds three items: `params`, `rest` (optimizer state and counters) and `meta` (JSON: the step, what the
model is and which data it was trained on). `params` are what a model, or an adapter, is made of: the running mean of
what is trained where one is kept, which itself is then in `rest`. `frozen` holds the adapters of earlier stages, if
there are any. A stage whose newest checkpoint says `finished` is never trained again.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from empathax.errors import CheckpointError, NonFiniteError, Preempted, raise_all
from empathax.models.weights.orbax import (
    FROZEN,
    ITEMS,
    abstract,
    latest_checkpoint,
    latest_step,
    read_meta,
    restore_params,
    stored_leaves,
)
from empathax.training.state import TrainState

__all__ = ["StageCheckpoints", "latest_checkpoint", "latest_step", "read_meta", "restore_params"]


class StageCheckpoints:
    """The checkpoints of one stage of a run. Use as a context manager: leaving it waits for pending saves.

    `frozen` is a tree that is written into each of them as it is: adapters below the one that is trained. `after` are
    others whose pending saves reach the disk before one of these begins.
    """

    def __init__(self, directory: Path, keep: int = 2) -> None:
        self.directory = Path(directory).absolute()
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise CheckpointError(
                f"{directory} cannot be written: {error.strerror}; choose another --workdir"
            ) from error
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep, cleanup_tmp_directories=True, enable_async_checkpointing=True
        )
        self._manager = ocp.CheckpointManager(self.directory, item_names=(*ITEMS, FROZEN), options=options)
        self.frozen: Any = None
        self.after: StageCheckpoints | None = None
        self._last_saved: int | None = None

    def __enter__(self) -> StageCheckpoints:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        # after an error of this process alone, the others will not come to where a save waits for them
        if kind in (None, Preempted, NonFiniteError) or jax.process_count() == 1:
            self.close()

    def latest_step(self) -> int | None:
        """The newest committed step on disk, or None. The disk is read: the manager also counts saves that failed."""
        return latest_step(self.directory)

    def save(self, state: TrainState, meta: dict[str, Any]) -> None:
        """Starts a background save of `state` at its step, in place of one that is there. `meta` must be JSON; `step`
        is added to it."""
        step = int(state.step)
        if self.after is not None:
            self.after.wait()
        args = ocp.args.Composite(
            params=ocp.args.StandardSave(_model(state)),
            rest=ocp.args.StandardSave(_rest(state)),
            meta=ocp.args.JsonSave({**meta, "step": step}),
            **({FROZEN: ocp.args.StandardSave(self.frozen)} if self.frozen else {}),
        )
        try:
            if step in self._manager.all_steps():
                self._manager.delete(step)
            self._manager.save(step, args=args, force=True)
        except Exception as error:  # a failed background save surfaces here, as whatever its thread raised
            raise CheckpointError(f"saving step {step} to {self.directory} failed: {error}") from error
        self._last_saved = step

    def restore(self, like: TrainState) -> tuple[TrainState, dict[str, Any]]:
        """The newest state, in the shapes, dtypes and shardings of `like`, and its meta.

        Raises CheckpointError if there is none, or naming each leaf whose shape or dtype differs.
        """
        step = self.latest_step()
        if step is None:
            raise CheckpointError(f"{self.directory} holds no finished checkpoint")
        model, rest = _model(like), _rest(like)
        _check_layout(self.directory / str(step), {"params": model, "rest": rest})
        restored = self._manager.restore(
            step,
            args=ocp.args.Composite(
                params=ocp.args.StandardRestore(abstract(model)),
                rest=ocp.args.StandardRestore(abstract(rest)),
                meta=ocp.args.JsonRestore(),
            ),
        )
        name = "params" if like.mean_params is None else "mean_params"
        return like.replace(**{name: restored["params"]}, **restored["rest"]), restored["meta"]

    def meta(self) -> dict[str, Any] | None:
        """The meta of the newest checkpoint, or None if there is no checkpoint."""
        step = self.latest_step()
        return None if step is None else read_meta(self.directory / str(step))

    def wait(self) -> None:
        """Waits for pending saves; raises CheckpointError if the last one did not reach the disk."""
        try:
            self._manager.wait_until_finished()
        except Exception as error:
            raise CheckpointError(f"saving to {self.directory} failed: {error}") from error
        if self._last_saved is not None and self.latest_step() != self._last_saved:
            raise CheckpointError(f"step {self._last_saved} did not reach {self.directory}; is the disk full?")

    def close(self) -> None:
        """Waits for pending saves and frees the manager."""
        self._manager.close()


def _model(state: TrainState) -> Any:
    return state.params if state.mean_params is None else state.mean_params


def _rest(state: TrainState) -> dict[str, Any]:
    other = "params" if state.mean_params is None else "mean_params"  # which is the item of its own
    values = {field.name: getattr(state, field.name) for field in dataclasses.fields(state) if field.name != other}
    return {name: value for name, value in values.items() if value is not None}


def _check_layout(step_dir: Path, wanted: dict[str, Any]) -> None:
    # Orbax refuses another shape or tree but casts another dtype without a word, so all three are compared here.
    problems = []
    for item, tree in wanted.items():
        found = _leaves(stored_leaves(step_dir / item))
        expected = _leaves(tree)
        problems += [
            f"{item}/{name} is in the checkpoint but not in this run" for name in found.keys() - expected.keys()
        ]
        problems += [f"{item}/{name} is not in the checkpoint" for name in expected.keys() - found.keys()]
        problems += [
            f"{item}/{name} is {_spell(found[name])} in the checkpoint, {_spell(expected[name])} in this run"
            for name in sorted(found.keys() & expected.keys())
            if _spell(found[name]) != _spell(expected[name])
        ]
    heading = f"{step_dir} was written by another model or optimizer"
    raise_all(CheckpointError, heading, problems)


def _leaves(tree: Any) -> dict[str, Any]:
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def _spell(leaf: Any) -> str:
    return f"{leaf.dtype}{list(leaf.shape)}"
