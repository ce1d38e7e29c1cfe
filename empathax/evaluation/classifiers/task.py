"""What a classifier can be trained for: levels of validation on ESConv, EPITOME-style empathy on Reddit answers."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from empathax.evaluation.classifiers import data as level_data
from empathax.evaluation.classifiers.card import model_card, score_table
from empathax.evaluation.classifiers.classifier import Example, Head, check_new, new_classifier, save_classifier
from empathax.evaluation.classifiers.data import EPITOME_HEADS, read_epitome_examples
from empathax.evaluation.classifiers.training import TrainingOptions, evaluate_classifier, train_classifier

_ESCONV = (
    "ESConv (Liu et al., ACL 2021): strategies of supporter utterances, mapped to levels as Question -> listening; "
    "Restatement or Paraphrasing, Reflection of feelings -> reflection; Affirmation and Reassurance -> validating; "
    "Self-disclosure, Providing Suggestions, Information -> genuineness; Others left out. Licence of the data: "
    "CC BY-NC 4.0, academic research only"
)
_EPITOME = (
    "EPITOME, the Reddit part (Sharma et al., EMNLP 2020), split by seeker post. The data's repository carries two "
    "University of Washington licences, one of them academic and non-commercial, and names none for the data alone"
)


@dataclass(frozen=True)
class Task:
    """Examples by split ("train", "valid", "test"), the heads to learn, and how."""

    name: str
    title: str
    heads: tuple[Head, ...]
    examples: dict[str, list[Example]]
    options: TrainingOptions
    data_note: str
    limits: dict[str, int]

    def describe(self) -> str:
        """For the line before training starts."""
        sizes = ", ".join(f"{len(examples):,} {split}" for split, examples in self.examples.items())
        return f"{self.title} ({sizes} examples)"


def read_task(name: str, data: Path) -> Task:
    """The task "levels" (a directory of ESConv) or "epitome" (a directory of the three CSV files)."""
    if name == "levels":
        files = level_data.split_files(data)
        examples = {split: level_data.read_level_examples(path) for split, path in files.items()}
        heads, limits = (level_data.LEVEL_HEAD,), {"max_text_tokens": 62, "max_context_tokens": 0}
        return Task(name, "levels of validation", heads, examples, TrainingOptions(), _ESCONV, limits)
    options = TrainingOptions(epochs=2, frozen_layers=3)
    limits = {"max_text_tokens": 94, "max_context_tokens": 31}
    title = "epitome-style empathy"
    return Task(name, title, EPITOME_HEADS, read_epitome_examples(data), options, _EPITOME, limits)


def run_task(
    task: Task,
    encoder_path: str,
    out: Path,
    changes: dict[str, Any],
    context_tokens: int | None = None,
    report: Callable[[str], None] = print,
) -> str:
    """Trains on "train", chooses the epoch on "valid", scores "test" once, writes `out`; returns the table of scores.

    `changes` are fields of TrainingOptions.
    """
    check_new(out)
    options = dataclasses.replace(task.options, **changes)
    limits = task.limits | ({} if context_tokens is None else {"max_context_tokens": context_tokens})
    classifier = new_classifier(encoder_path, task.heads, options.seed, **limits)
    trained = train_classifier(classifier, task.examples["train"], task.examples["valid"], options, report)
    test = evaluate_classifier(trained.classifier, task.examples["test"])
    scores = {"valid": trained.scores, "test": test}
    facts = {
        "task": task.name,
        "encoder": classifier.encoder.name,
        "training": dataclasses.asdict(options),
        "valid_macro_f1_by_epoch": trained.epochs,
        "scores": {split: {name: s.as_dict() for name, s in by_head.items()} for split, by_head in scores.items()},
    }
    card = model_card(task.title, classifier.encoder.name, classifier.config, task.data_note, options, scores)
    save_classifier(trained.classifier, out, card, facts)
    return score_table(scores)
