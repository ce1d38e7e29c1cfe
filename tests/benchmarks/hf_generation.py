"""transformers' side of the generation works."""

from __future__ import annotations

import json

import torch
import transformers

from tests.benchmarks.task import Task, Turns, task_from_argv


def run(task: Task, turns: Turns) -> None:
    """Answers one batch of prompts each turn, greedily and past any stop token; in bfloat16 where there is a GPU."""
    device, dtype = ("cuda", torch.bfloat16) if torch.cuda.is_available() else ("cpu", torch.float32)
    model = transformers.AutoModelForCausalLM.from_pretrained(task.model_dir, dtype=dtype).eval().to(device)
    model.generation_config.eos_token_id = None
    replies = []
    for prompts in json.loads(task.data_file.read_text()):
        if not turns.begin():
            return
        replies.append(_answers(model, prompts, task.options["new_tokens"]))
        turns.end(tokens=sum(map(len, replies[-1])))
    turns.begin()
    turns.finish(replies=replies)


def _answers(model: transformers.PreTrainedModel, prompts: list[list[int]], num_new: int) -> list[list[int]]:
    length = max(map(len, prompts))
    padded = torch.tensor([[0] * (length - len(prompt)) + prompt for prompt in prompts], device=model.device)
    mask = torch.tensor([[0] * (length - len(prompt)) + [1] * len(prompt) for prompt in prompts], device=model.device)
    out = model.generate(padded, attention_mask=mask, max_new_tokens=num_new, do_sample=False, pad_token_id=0)
    return out[:, length:].tolist()


if __name__ == "__main__":
    run(task_from_argv(), Turns())
