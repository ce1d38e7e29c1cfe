"""What a classifier can be trained for, from its data to its directory with a model card.

The tasks: levels of validation on ESConv, EPITOME-style empathy on Reddit answers.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from empathax.evaluation.classifiers.classifier import (
    Classifier,
    Head,
    LabeledText,
    check_new,
    new_classifier,
    save_classifier,
)
from empathax.evaluation.classifiers.data import (
    EPITOME_HEADS,
    LEVEL_HEAD,
    read_epitome_examples,
    read_level_examples,
    split_files,
)
from empathax.evaluation.classifiers.training import (
    HeadScores,
    TrainingOptions,
    evaluate_classifier,
    train_classifier,
)

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
_CARD = """# {title}: a classifier for evaluation

Written by `python -m empathax.train_classifier`. Reads a reply{context} and gives, for each head, one of its classes.
It never sees where in the dialogue the reply stands.

| | |
|---|---|
| encoder | {encoder}, fine-tuned (embeddings kept), {layers} layers, {dim} dimensions |
| heads | {heads} |
| input | first {text_tokens} tokens of the reply{context_tokens} |
| training | {training} |

## Data and licence
{data}. These weights are derived from that data: use and pass them on under its terms only.

## Scores
Epoch chosen on the validation split; the test split was scored once.

{scores}

## Limits
English text of one corpus. The classes overlap, and annotators disagree: read differences between systems scored by
this same file, not its labels of single replies. Not for decisions about people.
"""


@dataclass(frozen=True)
class ClassifierTask:
    """Examples by split ("train", "valid", "test"), the heads to learn, and how."""

    name: str
    title: str
    heads: tuple[Head, ...]
    examples: dict[str, list[LabeledText]]
    options: TrainingOptions
    data_note: str
    limits: dict[str, int]

    def describe(self) -> str:
        """For the line before training starts."""
        sizes = ", ".join(f"{len(examples):,} {split}" for split, examples in self.examples.items())
        return f"{self.title} ({sizes} examples)"


def read_task(name: str, data: Path) -> ClassifierTask:
    """The task "levels" (a directory of ESConv) or "epitome" (a directory of the three CSV files)."""
    if name == "levels":
        files = split_files(data)
        examples = {split: read_level_examples(path) for split, path in files.items()}
        heads, limits = (LEVEL_HEAD,), {"max_text_tokens": 62, "max_context_tokens": 0}
        return ClassifierTask(name, "levels of validation", heads, examples, TrainingOptions(), _ESCONV, limits)
    options = TrainingOptions(epochs=2, frozen_layers=3)
    limits = {"max_text_tokens": 94, "max_context_tokens": 31}
    title = "epitome-style empathy"
    return ClassifierTask(name, title, EPITOME_HEADS, read_epitome_examples(data), options, _EPITOME, limits)


def run_task(
    task: ClassifierTask,
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
    save_classifier(trained.classifier, out, _model_card(task, trained.classifier, options, scores), facts)
    return score_table(scores)


def _model_card(
    task: ClassifierTask,
    classifier: Classifier,
    options: TrainingOptions,
    scores: Mapping[str, Mapping[str, HeadScores]],
) -> str:
    config = classifier.config
    reads_context = config.max_context_tokens > 0
    return _CARD.format(
        title=task.title[0].upper() + task.title[1:],
        context=" and the seeker's last turn" if reads_context else "",
        encoder=classifier.encoder.name,
        layers=config.encoder.num_layers,
        dim=config.encoder.model_dim,
        heads="; ".join(f"{head.name} ({', '.join(head.labels)})" for head in config.heads),
        text_tokens=config.max_text_tokens,
        context_tokens=f", last {config.max_context_tokens} of the seeker's turn" if reads_context else "",
        training=", ".join(f"{name} {value}" for name, value in dataclasses.asdict(options).items()),
        data=task.data_note,
        scores=score_table(scores),
    )


def score_table(scores: Mapping[str, Mapping[str, HeadScores]]) -> str:
    """A Markdown table: a row for each split and head."""
    lines = ["| split | head | examples | accuracy | macro-F1 | F1 by class |", "|---|---|---|---|---|---|"]
    for split, by_head in scores.items():
        for name, score in by_head.items():
            by_class = ", ".join(f"{label} {value:.3f}" for label, value in zip(score.labels, score.f1, strict=True))
            row = f"| {split} | {name} | {score.num_examples:,} | {score.accuracy:.3f} | {score.macro_f1:.3f} |"
            lines.append(f"{row} {by_class} |")
    return "\n".join(lines)
