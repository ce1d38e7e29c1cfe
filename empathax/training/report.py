"""The before/after table of a run: base, +SFT, +SFT+DPO on the same held-out data, with sample replies."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

FILE = "evaluations.json"
# metric -> (heading, format); a column appears where any row has it.
COLUMNS = {
    "perplexity": ("perplexity", ".2f"),
    "token_accuracy": ("token accuracy", ".3f"),
    "reward_accuracy": ("reward accuracy", ".3f"),
    "reward_margin": ("reward margin", ".3f"),
    "logp_chosen": ("log-prob chosen", ".1f"),
    "logp_rejected": ("log-prob rejected", ".1f"),
    "bleu4_sentence": ("B-4", ".2f"),
    "rouge_l": ("R-L", ".2f"),
    "distinct_2": ("Dist-2", ".2f"),
    "validation_gap": ("validation_gap (reconstruction)", ".4f"),
}


@dataclass(frozen=True)
class Measured:
    """What held-out data say of one model. Parts that were not measured are None."""

    reply_sums: Mapping[str, Sequence[float]] | None  # on the SFT data: nll, entropy, correct, tokens by sequence id
    pair_logps: Sequence[float] | None  # of the DPO data's replies, by sequence id
    prompts: Sequence[str]
    replies: Sequence[str]
    answers: Sequence[str] = ()  # a reply to each of the turns that are scored


@dataclass(frozen=True)
class Row:
    """One model's line of the table: metrics under their names in docs/metrics.md, and its replies."""

    metrics: Mapping[str, float]
    prompts: Sequence[str]
    replies: Sequence[str]


class Evaluations:
    """The models measured so far, kept in the run's directory so that a resumed run does not measure them again.

    `fingerprint` names the held-out data and the base model; a file of another one is not used.
    """

    def __init__(self, workdir: Path, fingerprint: str) -> None:
        self._path = workdir / FILE
        self._fingerprint = fingerprint
        stored = json.loads(self._path.read_text(encoding="utf-8")) if self._path.exists() else {}
        known = stored.get("measured", {}) if stored.get("fingerprint") == fingerprint else {}
        self.measured = {name: Measured(**values) for name, values in known.items()}

    def add(self, name: str, measured: Measured, write: bool = True) -> None:
        """Records one model, on disk too if `write`."""
        self.measured[name] = measured
        if not write:
            return
        values = {name: asdict(measured) for name, measured in self.measured.items()}
        text = json.dumps({"fingerprint": self._fingerprint, "measured": values}, indent=1, ensure_ascii=False)
        temporary = self._path.with_suffix(".tmp")
        temporary.write_text(text + "\n", encoding="utf-8")
        temporary.replace(self._path)


def table(rows: Mapping[str, Row]) -> str:
    """The metrics of all rows as a Markdown table; a metric that a row lacks is "not measured"."""
    columns = {name: column for name, column in COLUMNS.items() if any(name in row.metrics for row in rows.values())}
    lines = [["model", *(heading for heading, _ in columns.values())]]
    lines += [
        [name, *(_cell(row.metrics.get(metric), spec) for metric, (_, spec) in columns.items())]
        for name, row in rows.items()
    ]
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    texts = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |" for line in lines
    ]
    return "\n".join([texts[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *texts[1:]])


def replies_text(rows: Mapping[str, Row]) -> str:
    """Each held-out prompt's last turn with every row's reply below it, as Markdown."""
    prompts = next(iter(rows.values())).prompts if rows else ()
    blocks = []
    for i, prompt in enumerate(prompts):
        answers = [f"- **{name}**: {row.replies[i]}" for name, row in rows.items() if i < len(row.replies)]
        blocks.append(f"> {_one_line(prompt)}\n\n" + "\n".join(answers))
    return "\n\n".join(blocks)


def markdown(title: str, rows: Mapping[str, Row], notes: Sequence[str]) -> str:
    """report.md: the table, what its numbers stand on, and the replies."""
    parts = [f"# {title}", table(rows), "\n".join(f"- {note}" for note in notes), "## Replies to held-out prompts"]
    return "\n\n".join([*parts, replies_text(rows)]) + "\n"


def _cell(value: float | None, spec: str) -> str:
    return "not measured" if value is None else format(value, spec)


def _one_line(text: str) -> str:
    return " ".join(text.split())
