"""The dialogues and pairs of a work, read by our own pipeline, and written as rows that TRL reads."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from empathax.config import Config, DataOptions, DpoOptions, ModelOptions, SftOptions
from empathax.config.losses import PAIRED_ROWS, REPLY_ROWS
from empathax.data.chat import ChatTemplate
from empathax.data.dataset import Dataset, build_dataset
from empathax.data.examples import Example
from empathax.data.records import Dialogue, Message
from empathax.data.sources import load_splits
from empathax.data.templates import system_text
from empathax.models.tokenizers.tokenizer import Tokenizer
from empathax.models.weights.source import ModelSource
from tests.benchmarks.task import Task

LEARNING_RATE = 1e-6


def work_config(task: Task) -> Config:
    """The config of a training work: one update a step, the reference's log-probs precomputed."""
    options = task.options
    sft = options["kind"] == "sft"
    data = DataOptions(
        path=str(task.data_file if sft else corpus_path(task)),
        system_prompt=options["system_prompt"],
        max_train_dialogues=options["dialogues"],
        max_eval_dialogues=1,
        eval_fraction=0.0 if sft else 0.1,
        max_length=options["max_length"],
        row_length=task.choice.get("row_length", 0),
    )
    stage: dict[str, Any] = {"learning_rate": LEARNING_RATE, "schedule": "constant", "warmup_ratio": 0.0}
    stage["rows_per_batch"] = task.choice.get("rows", 1)
    model = ModelOptions(remat=task.choice.get("remat", "none"))
    return Config(model=model, data=data, sft=SftOptions(**stage), dpo=DpoOptions(**stage, reference="precomputed"))


def corpus_path(task: Task) -> Path:
    """The work's corpus."""
    return Path(task.corpora) / task.options["corpus"]


ROWS = {"sft": REPLY_ROWS, "dpo": PAIRED_ROWS}  # by a work's kind


def work_dataset(task: Task, source: ModelSource) -> Dataset:
    """The rows that our side trains on."""
    return build_dataset(work_config(task).data, ROWS[task.options["kind"]], source.tokenizer(), source.config)


def preference_rows(dataset: Dataset, tokenizer: Tokenizer) -> Iterator[dict[str, Any]]:
    """Our pairs as TRL's conversational rows; `num_tokens` counts both sequences as we train them."""
    replies = _reply_ids(dataset)
    for example in dataset.train_examples:
        chosen, rejected = (replies[sequence_id] for sequence_id in example.sequence_ids)
        yield {
            "prompt": _plain(example.prompt),
            "chosen": [{"role": "assistant", "content": example.reply}],
            "rejected": [{"role": "assistant", "content": tokenizer.decode(rejected[:-1].tolist())}],
            "num_tokens": 2 * len(example.prompt_ids) + len(chosen) + len(rejected),
        }


def dialogue_rows(task: Task, source: ModelSource) -> Iterator[dict[str, Any]]:
    """Whole dialogues up to their last reply, those that fit `max_length`; `num_tokens` ends with the last reply."""
    options = task.options
    template = ChatTemplate(source.tokenizer(), family=source.config.family)
    lead = Message("system", system_text(options["system_prompt"]) or "")
    num_written = 0
    for row in load_splits(DataOptions(path=str(corpus_path(task))), REPLY_ROWS).train:
        assert isinstance(row, Dialogue)
        last = max(index for index, message in enumerate(row.messages) if message.role == "assistant")
        prompt = (lead, *row.messages[:last])
        num_tokens = template.encode_example(prompt, row.messages[last].content).num_tokens
        if num_tokens < options["max_length"]:  # TRL trains one token more, the template's newline
            yield {"messages": _plain((*prompt, row.messages[last])), "num_tokens": num_tokens}
            num_written += 1
        if num_written == options["dialogues"]:
            return


def prompt_batches(task: Task, source: ModelSource) -> list[list[list[int]]]:
    """Token ids of `steps` batches of prompts: eight turns of one dialogue, or one late turn of each of eight."""
    options, batch = task.options, task.options["batch"]
    data = DataOptions(path=str(corpus_path(task)), system_prompt=options["system_prompt"])
    by_dialogue: dict[str, list[Example]] = {}
    for example in build_dataset(data, REPLY_ROWS, source.tokenizer(), source.config).eval_examples:
        by_dialogue.setdefault(example.dialogue_id, []).append(example)
    dialogues = [examples for examples in by_dialogue.values() if len(examples) >= batch]
    if options["prompts"] == "one_dialogue":
        chosen = [examples[:batch] for examples in dialogues[: task.steps]]
    else:
        late = [examples[batch // 2] for examples in dialogues]
        chosen = [late[step * batch : (step + 1) * batch] for step in range(task.steps)]
    return [[example.prompt_ids.tolist() for example in examples] for examples in chosen]


def write_jsonl(path: Path, rows: Iterator[dict[str, Any]]) -> None:
    """Writes rows as JSON lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def _reply_ids(dataset: Dataset) -> dict[int, np.ndarray]:
    """Token ids of every reply, its stop token included, by sequence id."""
    return {
        int(sequence_id): tree.target_id[tree.sequence_index == index]
        for tree in dataset.train.trees
        for index, sequence_id in enumerate(tree.sequence_ids)
    }


def _plain(messages: Any) -> list[dict[str, str]]:
    return [{"role": message.role, "content": message.content} for message in messages]
