"""The DBT paper's own Table 1 (Son and So, "Improving Empathetic Response Generation in LLMs Using DPO"), ESConv."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from empathax.errors import ConfigError

Figures = tuple[float, float, float, float]  # B-4, R-L, Dist, DBT metric
CITATION = "Son and So, Improving Empathetic Response Generation in LLMs Using DPO, Table 1"
ROWS = ("base", "+SFT", "+DPO", "+SFT+DPO")
_METRICS = ("bleu4_sentence", "rouge_l", "distinct_2", "validation_gap")


@dataclass(frozen=True)
class PaperModel:
    """One block of the paper's table."""

    name: str
    figures: Mapping[str, Figures]

    def values(self, metric: str) -> dict[str, float]:
        """Row label -> the paper's figure for what our `metric` corresponds to."""
        return {label: figures[_METRICS.index(metric)] for label, figures in self.figures.items()}


def _block(name: str, *rows: Figures) -> PaperModel:
    return PaperModel(name, dict(zip(ROWS, rows, strict=True)))


PAPER = {
    "llama8b": _block(
        "Llama-3-8B",
        (0.11, 10.78, 13.02, 0.2753),
        (0.29, 13.40, 33.40, 0.0255),
        (0.07, 10.55, 12.85, 0.2087),
        (0.38, 13.62, 33.70, 0.0205),
    ),
    "mistral7b": _block(
        "Mistral-7B",
        (0.05, 8.58, 7.45, 0.2835),
        (0.11, 14.30, 33.40, 0.0672),
        (0.06, 8.10, 6.75, 0.2735),
        (0.12, 14.25, 33.65, 0.0508),
    ),
    "gemma7b": _block(
        "Gemma-7B",
        (0.20, 2.98, 3.05, 0.1885),
        (0.21, 2.85, 2.90, 0.2002),
        (0.34, 5.75, 12.35, 0.1304),
        (0.40, 5.85, 12.80, 0.0175),
    ),
}


def paper_models(names: Sequence[str]) -> list[PaperModel]:
    """The blocks of these names; all of them for no name. Raises a ConfigError for an unknown one."""
    if unknown := [name for name in names if name not in PAPER]:
        raise ConfigError(f"--paper={unknown[0]} is not in the paper's table: expected one of {', '.join(PAPER)}")
    return [PAPER[name] for name in names or PAPER]
