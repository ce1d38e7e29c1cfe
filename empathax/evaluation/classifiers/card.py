"""The model card of a trained classifier: what it is, what it learned from, how good it is, what it is not for."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from empathax.evaluation.classifiers.classifier import ClassifierConfig
from empathax.evaluation.classifiers.training import HeadScores, TrainingOptions

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


def model_card(
    title: str,
    encoder: str,
    config: ClassifierConfig,
    data_note: str,
    options: TrainingOptions,
    scores: Mapping[str, Mapping[str, HeadScores]],
) -> str:
    """The text of README.md."""
    reads_context = config.max_context_tokens > 0
    return _CARD.format(
        title=title[0].upper() + title[1:],
        context=" and the seeker's last turn" if reads_context else "",
        encoder=encoder,
        layers=config.encoder.num_layers,
        dim=config.encoder.model_dim,
        heads="; ".join(f"{head.name} ({', '.join(head.labels)})" for head in config.heads),
        text_tokens=config.max_text_tokens,
        context_tokens=f", last {config.max_context_tokens} of the seeker's turn" if reads_context else "",
        training=", ".join(f"{name} {value}" for name, value in dataclasses.asdict(options).items()),
        data=data_note,
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
