"""A tiny run for jobs of eight devices, however many processes have them: both stages, replies that are scored."""

import json
import random
from pathlib import Path

import ml_collections

from tests.training.tiny import tiny_settings

WORDS = [
    "I",
    "you",
    "feel",
    "hear",
    "alone",
    "tired",
    "today",
    "work",
    "home",
    "glad",
    "mother",
    "friend",
    "why",
    "how",
]


def get_config() -> ml_collections.ConfigDict:
    config = tiny_settings()
    config.mesh.data, config.mesh.fsdp = 1, 8
    config.data.max_train_dialogues = 0
    config.data.max_eval_dialogues = 4
    config.data.system_prompt = "none"
    config.data.max_length = 256
    config.data.row_length = 256
    config.eval.rows_per_batch = 8
    config.eval.in_loop_turns = 2
    config.eval.turns = 4
    config.tracking.tensorboard = False
    config.checkpoint.every_steps = 2
    for stage in (config.sft, config.dpo):
        stage.rows_per_batch = 8
        stage.learning_rate = 1e-3
    return config


def write_data(folder: Path) -> list[str]:
    """Short dialogues and pairs of unlike lengths, which share beginnings; returns the flags that name them."""
    rng = random.Random(0)

    def words(low: int, high: int) -> str:
        return " ".join(rng.choices(WORDS, k=rng.randint(low, high)))

    dialogues, pairs = [], []
    for _ in range(40):
        history = []
        for _ in range(rng.randint(1, 3)):
            history.append({"role": "user", "content": words(1, 6)})
            chosen, rejected = ([{"role": "assistant", "content": words(1, 8)}] for _ in range(2))
            pairs.append({"prompt": list(history), "chosen": chosen, "rejected": rejected})
            history += chosen
        dialogues.append({"messages": history})
    for name, rows in (("dialogues", dialogues), ("pairs", pairs)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return [f"--config.data.path={folder}/dialogues.jsonl", f"--config.data.preference_path={folder}/pairs.jsonl"]
