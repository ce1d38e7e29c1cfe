"""The picture of validation_gap: shares of the four levels per quartile, model beside reference, as PNG."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np

from empathax.errors import ConfigError
from empathax.evaluation.metrics.levels import LEVELS, shares, validation_gap

_COLOURS = ("#b7d3f2", "#6ba3d6", "#f4b860", "#c8553d")  # listening to genuineness; they differ in grey too
_QUARTILES = ("1st", "2nd", "3rd", "4th")


def level_plot(named_counts: Sequence[tuple[str, np.ndarray]], normalise: str = "quartile") -> bytes:
    """A PNG with a panel for each (name, counts [quartile, level]).

    The last one is the reference; the others state their gap to it.

    Needs matplotlib (the extra `plots`); raises a ConfigError without it.
    """
    try:
        from matplotlib.figure import Figure  # a Figure of its own: no window, no global state
    except ImportError:
        raise ConfigError("plots need matplotlib: pip install 'empathax[plots]'") from None
    reference = named_counts[-1][1]
    figure = Figure(figsize=(3.2 * len(named_counts) + 1.4, 3.6), dpi=120, layout="constrained")
    panels = np.atleast_1d(figure.subplots(1, len(named_counts), sharey=True))
    for number, (panel, (name, counts)) in enumerate(zip(panels, named_counts, strict=True)):
        shares_QL, bottom = shares(counts, normalise), np.zeros(len(_QUARTILES))
        for level, (label, colour) in enumerate(zip(LEVELS, _COLOURS, strict=True)):
            panel.bar(_QUARTILES, shares_QL[:, level], bottom=bottom, color=colour, label=label, width=0.8)
            bottom += shares_QL[:, level]
        is_reference = number == len(named_counts) - 1
        gap = float(validation_gap(counts, reference, normalise)["validation_gap"])
        panel.set_title(f"{name}\n{'reference' if is_reference else f'validation_gap {gap:.4f}'}", fontsize=10)
        panel.set_xlabel("quartile of the dialogue")
        panel.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("share of replies" if normalise == "quartile" else "share of each level, stacked")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles[::-1], labels[::-1], loc="outside right center", frameon=False, fontsize=9)
    out = io.BytesIO()
    figure.savefig(out, format="png")
    return out.getvalue()
