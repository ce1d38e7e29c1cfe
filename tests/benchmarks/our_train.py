"""Our side of the training works: SFT or DPO with prefix trees, reference log-probs given."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np

from empathax.config import Config
from empathax.config.losses import PAIRED_ROWS
from empathax.data.dataset import Dataset
from empathax.data.loader import Loader
from empathax.data.packing import PackedRows
from empathax.evaluation.scoring import logps_by_sequence
from empathax.models.weights.source import ModelSource, resolve_model
from empathax.parallel.host import restart_with_huge_pages
from empathax.planning.costs import train_flops, tree_counts
from empathax.training.forward import make_score_step
from empathax.training.optimizer import make_optimizer
from empathax.training.state import Tree, init_state
from empathax.training.step import make_train_step
from tests.benchmarks.corpus import work_config, work_dataset
from tests.benchmarks.task import Task, Turns, task_from_argv


def run(task: Task, turns: Turns) -> None:
    """Trains a step whenever it is this side's turn."""
    source = resolve_model(task.model_dir)
    config, dataset, params = work_config(task), work_dataset(task, source), source.load_params()
    objective = task.options["kind"]
    rows = evenly_spread_rows(dataset.train, task.steps * config.stage(objective).rows_per_batch)
    loader = _loader(config, rows, None)
    if objective == "dpo":
        loader = _loader(config, rows, _reference(config, source, params, loader, task.steps))
    tx, schedule = make_optimizer(config.stage(objective), task.steps)
    train_step = make_train_step(objective, source.config, config, tx, schedule)
    state = init_state(params, tx)
    del params
    amounts = [_amounts(source, dataset, loader, step) for step in range(task.steps)]
    losses = []
    for step in range(task.steps):
        if not turns.begin():
            return
        state, metrics = train_step(state, loader.batch_at(step))
        losses.append(float(metrics["loss"]))
        turns.end(**amounts[step])
    if objective == "dpo" and abs(losses[0] - np.log(2)) > 1e-3:
        raise ValueError(f"DPO starts with loss {losses[0]}, expected ln 2")
    turns.begin()
    turns.finish(losses=losses)


def evenly_spread_rows(rows: PackedRows, count: int) -> PackedRows:
    """`count` rows that stand for all of them: evenly spaced by their number of replies, shuffled."""
    by_replies = sorted(range(len(rows)), key=lambda row: len(rows.sequence_ids(row)))
    places = np.random.default_rng(0).permutation(count) + 0.5
    chosen = [by_replies[int(place * len(rows) / count)] for place in places]
    return dataclasses.replace(rows, tree_indices=tuple(rows.tree_indices[row] for row in chosen))


def _loader(config: Config, rows: PackedRows, ref_logps: np.ndarray | None) -> Loader:
    rows_per_batch = config.sft.rows_per_batch
    return Loader(rows, rows_per_batch=rows_per_batch, shuffle=False, ref_logps=ref_logps)


def _reference(config: Config, source: ModelSource, params: Tree, loader: Loader, steps: int) -> np.ndarray:
    """The reference's log-probs on the rows of `steps` steps, computed before the clock runs."""
    batches = (jax.tree.map(lambda leaf: leaf[0], loader.batch_at(step)) for step in range(steps))
    return logps_by_sequence(make_score_step(source.config, config.model), params, batches, loader.rows.num_sequences)[
        0
    ]


def _amounts(source: ModelSource, dataset: Dataset, loader: Loader, step: int) -> dict[str, float]:
    """What the step did; the tokens of an SFT step are those of its dialogues, each counted whole."""
    rows = loader.rows
    row_ids = loader.row_ids(step).ravel()
    trees = [rows.trees[index] for row in row_ids for index in rows.tree_indices[row]]
    flops = train_flops(source.config, tree_counts(trees))
    sequence_ids = {sequence_id for row in row_ids for sequence_id in rows.sequence_ids(row).tolist()}
    examples = [example for example in dataset.train_examples if example.sequence_ids[0] in sequence_ids]
    if dataset.rows_kind == PAIRED_ROWS:
        return {"pairs": len(examples), "flops": flops}
    replies = {sequence_id: count for tree in trees for sequence_id, count in _reply_lengths(tree).items()}
    longest: dict[str, int] = {}
    for example in examples:
        num_tokens = len(example.prompt_ids) + replies[example.sequence_ids[0]]
        longest[example.dialogue_id] = max(longest.get(example.dialogue_id, 0), num_tokens)
    return {"tokens": sum(longest.values()), "dialogues": len(longest), "flops": flops}


def _reply_lengths(tree) -> dict[int, int]:
    lengths = np.bincount(tree.sequence_index, minlength=len(tree.sequence_ids))
    return dict(zip(tree.sequence_ids.tolist(), lengths.tolist(), strict=True))


if __name__ == "__main__":
    restart_with_huge_pages()  # as empathax.train does
    run(task_from_argv(), Turns())
