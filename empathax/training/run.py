"""A whole run: everything that can be refused is refused first, then the stages in order, then the report."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from empathax.config import Config, to_dict
from empathax.data.dataset import Dataset, build_dataset
from empathax.data.loader import Loader
from empathax.errors import CheckpointError, ConfigError
from empathax.evaluation.held_out import HeldOut
from empathax.models.model_config import ModelConfig
from empathax.models.source import ModelSource, resolve_model
from empathax.models.tokenizer import Tokenizer
from empathax.models.transformer import abstract_params, logical_axes
from empathax.parallel.distributed import is_leader, put_batch
from empathax.parallel.mesh import make_mesh
from empathax.parallel.rules import batch_sharding, check_batch, param_shardings
from empathax.training.checkpoint import StageCheckpoints, restore_params
from empathax.training.loop import train_stage
from empathax.training.optimizer import make_optimizer
from empathax.training.reference import precompute_reference
from empathax.training.report import Evaluations
from empathax.training.state import TrainState, abstract_state, init_state, state_shardings
from empathax.training.step import make_train_step
from empathax.training.tracking import Tracker


@dataclass
class Job:
    """What a run works with, checked and ready before anything compiles."""

    config: Config
    workdir: Path
    mesh: Mesh
    source: ModelSource
    tokenizer: Tokenizer
    datasets: dict[str, Dataset]
    shardings: Any  # of the parameters

    @property
    def model_config(self) -> ModelConfig:
        return self.source.config
