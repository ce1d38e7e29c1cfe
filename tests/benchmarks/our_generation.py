"""Our side of the generation works."""

from __future__ import annotations

import json

from empathax.config import Config, EvalOptions, ModelOptions
from empathax.evaluation.generation.replies import generate_ids
from empathax.models.weights.source import resolve_model
from empathax.parallel.mesh import compute_dtype
from tests.benchmarks.task import Task, Turns, task_from_argv


def run(task: Task, turns: Turns) -> None:
    """Answers one batch of prompts each turn, greedily and past any stop token."""
    source = resolve_model(task.model_dir)
    params = source.load_params(compute_dtype(ModelOptions()))  # float32 on CPU, bfloat16 on accelerators
    options = EvalOptions(max_new_tokens=task.options["new_tokens"], generation_batch=task.options["batch"])
    config = Config(eval=options)

    def answers(prompts: list[list[int]]) -> list[list[int]]:
        return [token_ids for _, token_ids in sorted(generate_ids(params, source.config, (), prompts, config))]

    batches = json.loads(task.data_file.read_text())
    replies = []
    for step, prompts in enumerate(batches):
        if not turns.begin():
            return
        if step == 0:  # compiles for every shape that is to come
            for later in batches[1:]:
                answers(later)
        replies.append(answers(prompts))
        turns.end(tokens=sum(map(len, replies[-1])))
    turns.begin()
    turns.finish(replies=replies)


if __name__ == "__main__":
    run(task_from_argv(), Turns())
