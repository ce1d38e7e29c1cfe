"""What a run leaves in words: what was measured of each model, the before/after table with sample replies, records."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from empathax import json_text
from empathax.atomic import whole_file
from empathax.config import Config
from empathax.errors import CheckpointError
from empathax.evaluation.reply_metrics import ReplyScorer
from empathax.evaluation.report.curves import read_curves
from empathax.evaluation.report.level_plot import level_plot
from empathax.evaluation.report.record import Curve
from empathax.evaluation.report.table import COLUMNS, Column, table_1
from empathax.training.held_out import HeldOut, Measured
from empathax.training.tracking import METRICS_FILE

FILE = "evaluations.json"
GENERATION = (
    "max_new_tokens", "temperature", "top_k", "top_p", "min_p", "repetition_penalty", "num_samples",
)  # fmt: skip
# before the columns of Table 1; a column appears where any row has it
SHOWN = ("perplexity", "token_accuracy", "reward_accuracy", "reward_margin", "logp_chosen", "logp_rejected")


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
        self.measured = _known(self._path, fingerprint)

    def add(self, name: str, measured: Measured, write: bool = True) -> None:
        """Records one model, on disk too if `write`."""
        self.measured[name] = measured
        if not write:
            return
        values = {name: asdict(measured) for name, measured in self.measured.items()}
        text = json.dumps({"fingerprint": self._fingerprint, "measured": values}, indent=1, ensure_ascii=False)
        with whole_file(self._path) as file:
            file.write(text + "\n")


def _known(path: Path, fingerprint: str) -> dict[str, Measured]:
    """What the file holds; nothing, and a word about it, if it is damaged: it can be measured again."""
    try:
        stored = json_text.read(path, CheckpointError, max_bytes=1 << 30, half_pairs=True, non_finite=True)
        with json_text.content_of(path, CheckpointError):
            known = stored.get("measured", {}) if stored.get("fingerprint") == fingerprint else {}
            return {name: Measured(**values) for name, values in known.items()}
    except FileNotFoundError:
        return {}
    except CheckpointError as error:
        print(f"{error}; what it held is measured again", file=sys.stderr)
        return {}


def table(rows: Mapping[str, Row]) -> str:
    """The metrics of all rows as a Markdown table; a metric that a row lacks is "not measured"."""
    known = (*(COLUMNS[metric] for metric in SHOWN), *table_1())
    columns = [column for column in known if any(column.metric in row.metrics for row in rows.values())]
    lines = [["model", *(column.heading for column in columns)]]
    lines += [
        [name, *(_cell(row.metrics.get(column.metric), column) for column in columns)] for name, row in rows.items()
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
    if not any(row.metrics or row.prompts for row in rows.values()):
        models = ", ".join(rows)
        return f"# {title}\n\nNothing was held out (data.eval_fraction = 0), so no model was measured: {models}.\n"
    parts = [f"# {title}", table(rows), "\n".join(f"- {note}" for note in notes), "## Replies to held-out prompts"]
    return "\n\n".join([*parts, replies_text(rows)]) + "\n"


def _cell(value: float | None, column: Column) -> str:
    return "not measured" if value is None else column.number(value)


def _one_line(text: str) -> str:
    return " ".join(text.split())


def data_of(config: Config, scorer: ReplyScorer) -> dict[str, Any]:
    """What a record says of a config's held-out data, and of how replies to them were generated and scored."""
    options = dataclasses.asdict(config.eval)
    return {
        "path": config.data.eval_path or config.data.path,
        "split": config.data.eval_split,
        "seed": config.seed,
        "decoding": {
            **{name: options[name] for name in GENERATION},
            "stop_tokens": " ".join(options["stop_tokens"]),
            **scorer.facts(),
        },
    }


def curves_of(workdir: Path, stages: Sequence[str]) -> tuple[Curve, ...]:
    """The learning curves of a run's stages so far."""
    path = workdir / METRICS_FILE
    return tuple(curve for curve in read_curves(path) if curve.stage in stages) if path.exists() else ()


def in_loop_scores(
    held_out: HeldOut, scorer: ReplyScorer, answers: Sequence[str], name: str
) -> tuple[dict[str, float], bytes | None]:
    """Metrics of the answers to the in-loop turns, and the picture of their levels (None without a classifier, or
    without matplotlib)."""
    turns = held_out.in_loop_turns
    if not turns:
        return {}, None
    scores = scorer.score(turns, answers)
    if scores.gap is None or find_spec("matplotlib") is None:
        return dict(scores.metrics), None
    model_QL, reference_QL = scores.gap.counts()
    return dict(scores.metrics), level_plot([(name, model_QL), ("reference", reference_QL)], scorer.normalise)
