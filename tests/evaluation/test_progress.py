"""Progress on stderr: lines in a log, a bar on a terminal, nothing where it is off."""

import io

import pytest
from rich.console import Console

from empathax.evaluation import progress
from empathax.evaluation.progress import LINE_SECONDS, ProgressBar


@pytest.fixture
def clock(monkeypatch):
    """Seconds that a test sets."""
    now = [1000.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_a_log_gets_a_line_now_and_then(clock, capsys):
    with ProgressBar("scoring", 12_000) as bar:
        bar.update(1)
        clock[0] += LINE_SECONDS
        bar.update(1_500)
        bar.update(1_501)
    assert capsys.readouterr().err == "scoring: 1,500 of 12,000\n"


def test_a_log_gets_the_first_values_at_once(clock, capsys):
    with ProgressBar("sft", 10, 3, status="compiling") as bar:
        bar.update(4, {"loss": 2.0})
        bar.update(5, {"loss": 1.0})
        clock[0] += LINE_SECONDS
        bar.update(6, {"loss": 0.51234, "tokens/s": 12345.6})
    assert capsys.readouterr().err == "sft: 4 of 10  loss 2\nsft: 6 of 10  loss 0.512  tokens/s 12,346\n"


def test_a_terminal_gets_a_bar(monkeypatch):
    file = io.StringIO()
    terminal = Console(file=file, force_terminal=True, width=100)
    monkeypatch.setattr(progress, "Console", lambda stderr: terminal)
    with ProgressBar("sft", 10, 3, status="compiling") as bar:
        bar.update(7, {"loss": 2.0})
    shown = file.getvalue()
    assert "7/10" in shown
    assert "loss 2" in shown


def test_one_that_is_off_shows_nothing(clock, capsys):
    with ProgressBar("sft", 10, enabled=False) as bar:
        bar.update(1, {"loss": 2.0})
        clock[0] += LINE_SECONDS
        bar.update(2, {"loss": 2.0})
    assert capsys.readouterr() == ("", "")
