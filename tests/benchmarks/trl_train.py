"""TRL's side of the training works: its own trainers, stopped between steps by a callback."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
import transformers
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

from tests.benchmarks.task import Task, Turns, task_from_argv

CHATML = Path(__file__).parent / "chatml_training.jinja"  # SmolLM2's template with TRL's marks around the replies


def run(task: Task, turns: Turns) -> None:
    """Trains a step whenever it is this side's turn."""
    make = _dpo_trainer if task.options["kind"] == "dpo" else _sft_trainer
    trainer, count = make(task)
    callback = _InTurns(turns)
    trainer.add_callback(callback)
    training_step = trainer.training_step

    def counted(model: Any, inputs: dict[str, torch.Tensor], *rest: Any, **named: Any) -> torch.Tensor:
        callback.amounts = count(inputs)
        return training_step(model, inputs, *rest, **named)

    trainer.training_step = counted
    trainer.train()
    turns.begin()
    turns.finish()


class _InTurns(transformers.TrainerCallback):
    """Waits before each step, answers after its update."""

    def __init__(self, turns: Turns) -> None:
        self.amounts: dict[str, float] = {}
        self._turns = turns

    def on_step_begin(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
        if not self._turns.begin():
            raise SystemExit

    def on_step_end(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
        self._turns.end(**self.amounts)


def _dpo_trainer(task: Task) -> tuple[DPOTrainer, Any]:
    rows = _evenly_spread(_rows(task), task.steps * task.choice["batch"])
    args = DPOConfig(
        **_settings(task), precompute_ref_log_probs=task.choice["precomputed"], max_length=task.options["max_length"]
    )
    model, tokenizer = _model(task)
    trainer = DPOTrainer(model, args=args, train_dataset=_dataset(rows), processing_class=tokenizer)
    columns = ("prompt_ids", "prompt_ids", "chosen_ids", "rejected_ids")
    counted = [sum(len(example[column]) for column in columns) for example in trainer.train_dataset]
    # after each reply's stop token TRL also trains the newline that the template writes
    _check_counts(counted, [row["num_tokens"] + 2 for row in rows])
    return trainer, lambda inputs: {"pairs": len(inputs["input_ids"]) // 2}


def _sft_trainer(task: Task) -> tuple[SFTTrainer, Any]:
    packing = task.choice.get("packing")
    rows = _rows(task) if packing else _evenly_spread(_rows(task), task.steps * task.choice["batch"])
    kind = {"packing": True, "packing_strategy": packing} if packing else {}
    args = SFTConfig(
        **_settings(task),
        **kind,
        assistant_only_loss=True,
        chat_template_path=str(CHATML),
        max_length=task.options["max_length"],
    )
    model, tokenizer = _model(task)
    trainer = SFTTrainer(model, args=args, train_dataset=_dataset(rows), processing_class=tokenizer)
    counted = sum(len(example["input_ids"]) for example in trainer.train_dataset)
    _check_counts([counted], [sum(row["num_tokens"] + 1 for row in rows)])
    return trainer, _count_packed if packing else _count_padded


def _settings(task: Task) -> dict[str, Any]:
    return {
        "output_dir": f"{task.folder}/trl",
        "per_device_train_batch_size": task.choice["batch"],
        "max_steps": task.steps,
        "learning_rate": 1e-6,
        "use_cpu": not torch.cuda.is_available(),
        "bf16": torch.cuda.is_available(),  # products in bfloat16, weights and optimizer in float32, as ours
        "gradient_checkpointing": task.choice.get("gradient_checkpointing", False),
        "report_to": "none",
        "save_strategy": "no",
        "logging_steps": 1,
    }


def _count_padded(inputs: dict[str, torch.Tensor]) -> dict[str, float]:
    num_dialogues = len(inputs["input_ids"])
    return {"tokens": int(inputs["attention_mask"].sum()) - num_dialogues, "dialogues": num_dialogues}


def _count_packed(inputs: dict[str, torch.Tensor]) -> dict[str, float]:
    num_dialogues = int((inputs["position_ids"] == 0).sum())
    return {"tokens": inputs["input_ids"].numel() - num_dialogues, "dialogues": num_dialogues}


def _model(task: Task) -> tuple[transformers.PreTrainedModel, transformers.PreTrainedTokenizerBase]:
    if any(task.model_dir.glob("*.safetensors")):
        model = transformers.AutoModelForCausalLM.from_pretrained(task.model_dir, dtype=torch.float32)
    else:  # where only speed is measured: random weights
        with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
            model = transformers.AutoModelForCausalLM.from_config(
                transformers.AutoConfig.from_pretrained(task.model_dir)
            )
    return model, transformers.AutoTokenizer.from_pretrained(task.model_dir)


def _rows(task: Task) -> list[dict[str, Any]]:
    return [json.loads(line) for line in task.data_file.read_text(encoding="utf-8").splitlines()]


def _dataset(rows: list[dict[str, Any]]) -> datasets.Dataset:
    return datasets.Dataset.from_list([{k: v for k, v in row.items() if k != "num_tokens"} for row in rows])


def _evenly_spread(rows: list[dict[str, Any]], count: int) -> list[dict[str, Any]]:
    """`count` rows that stand for all of them: evenly spaced by length (the trainer shuffles them)."""
    by_length = sorted(rows, key=lambda row: row["num_tokens"])
    places = (np.arange(count) + 0.5) * len(rows) / count
    return [by_length[int(place)] for place in places]


def _check_counts(counted: list[int], expected: list[int]) -> None:
    if counted != expected:
        raise ValueError(f"TRL trains other tokens than we do: {counted} against {expected} of the data file")


if __name__ == "__main__":
    run(task_from_argv(), Turns())
