"""The plot of levels: a PNG of the expected size whose bars are the shares."""

import struct
import sys

import numpy as np
import pytest

from empathax.errors import ConfigError
from empathax.evaluation.metrics.levels import shares
from empathax.evaluation.report.level_plot import level_plot

REFERENCE = np.array([[8, 2, 0, 0], [4, 2, 2, 2], [1, 1, 4, 4], [0, 0, 0, 10]])
MODEL = np.array([[0, 0, 0, 5], [0, 0, 0, 5], [0, 0, 0, 5], [0, 0, 0, 0]])


def _drawn(monkeypatch, *arguments):
    """The PNG, and the figure that it was drawn from."""
    from matplotlib.figure import Figure

    figures, save = [], Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *a, **k: (figures.append(self), save(self, *a, **k))[1])
    return level_plot(*arguments), figures[0]


def test_bars_are_the_shares(monkeypatch):
    png, figure = _drawn(monkeypatch, [("model", MODEL), ("ESConv test", REFERENCE)])
    assert png.startswith(b"\x89PNG")
    width, height = struct.unpack(">II", png[16:24])
    assert width > 700
    assert height > 400
    for panel, counts in zip(figure.axes, (MODEL, REFERENCE), strict=True):
        heights = np.array([[bar.get_height() for bar in level] for level in panel.containers])
        np.testing.assert_allclose(heights.T, shares(counts, "quartile"), atol=1e-6)
    assert "validation_gap" in figure.axes[0].get_title()
    assert "reference" in figure.axes[1].get_title()


def test_without_matplotlib_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ConfigError, match=r"empathax\[plots\]"):
        level_plot([("model", MODEL)])
