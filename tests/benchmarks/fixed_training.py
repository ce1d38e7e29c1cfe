"""Preference training on batches chosen by hand, and log-probs of any groups under the parameters that come out."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import numpy as np

from empathax.config import Config
from empathax.data.batch import Batch
from empathax.data.row_plan import Group
from empathax.evaluation.scoring import logps_by_sequence
from empathax.models.weights.source import ModelSource
from empathax.training.forward import make_score_step
from empathax.training.optimizer import make_optimizer
from empathax.training.reference import frozen_copy
from empathax.training.state import Tree, init_state
from empathax.training.step import make_train_step
from tests.benchmarks.fixed_steps import fixed_batches

ROW_LENGTH = 2048


def train(source: ModelSource, params: Tree, config: Config, batches: Sequence[Batch]) -> Tree:
    """The parameters after one step of stage dpo on each of `batches`."""
    tx, schedule = make_optimizer(config.dpo, len(batches))
    step = make_train_step("dpo", source.config, config, tx, schedule)
    state = init_state(frozen_copy(params), tx)
    for number, batch in enumerate(batches, start=1):
        state, scalars = step(state, batch)
        print(f"  step {number}/{len(batches)}: loss {float(scalars['loss']):.4f}", flush=True)
    return state.params


class Scorer:
    """Log-probs of groups under any parameters, compiled once for each set."""

    def __init__(self, source: ModelSource, config: Config) -> None:
        self._step = make_score_step(source.config, config.model)

    def logps(self, params: Tree, groups: Sequence[Group]) -> np.ndarray:
        """Log-probs by sequence id, which are 0 to one less than there are replies."""
        (batch,) = fixed_batches([groups], "tree", ROW_LENGTH)
        rows = [jax.tree.map(lambda array, i=i: array[i], batch) for i in range(len(batch.token_ids_BT))]
        return logps_by_sequence(self._step, params, rows, sum(len(unit) for group in groups for unit in group))[0]
