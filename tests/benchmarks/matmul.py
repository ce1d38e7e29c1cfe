"""Dense float32 matrix products of jax or torch: what the machine gives, to measure everything else by."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from tests.benchmarks.task import Task, Turns, task_from_argv

SECONDS = 0.5  # roughly, of one step, unless the contender's choice says otherwise
ASSUMED_FLOPS = 100e9


def run(task: Task, turns: Turns) -> None:
    """Multiplies [M, K] by [K, N], several times a turn."""
    M, K, N = task.choice.get("shape") or task.options["shape"]
    flops = 2 * M * K * N
    num_products = max(1, round(task.choice.get("seconds", SECONDS) * ASSUMED_FLOPS / flops))
    random = np.random.default_rng(0)
    left, right = (random.standard_normal(shape, np.float32) for shape in ((M, K), (K, N)))
    multiply = (_in_torch if task.choice.get("torch") else _in_jax)(left, right)
    while turns.begin():
        for _ in range(num_products):
            multiply()
        turns.end(flops=num_products * flops)
    turns.finish()


def _in_jax(left: np.ndarray, right: np.ndarray) -> Callable[[], object]:
    import jax

    product = jax.jit(lambda a, b: a @ b)
    arrays = jax.device_put((left, right))
    return lambda: product(*arrays).block_until_ready()


def _in_torch(left: np.ndarray, right: np.ndarray) -> Callable[[], object]:
    import torch

    arrays = torch.from_numpy(left), torch.from_numpy(right)
    return lambda: torch.matmul(*arrays)


if __name__ == "__main__":
    run(task_from_argv(), Turns())
