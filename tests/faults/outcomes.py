"""A pytest plugin: writes the outcome of each test to the file that EMPATHAX_OUTCOMES names, a line of JSON each."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

VARIABLE = "EMPATHAX_OUTCOMES"


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Of a test that runs its body that outcome, of one that does not what its fixtures came to."""
    if report.when != "call" and report.passed:
        return
    crash = getattr(report.longrepr, "reprcrash", None)
    message = crash.message if crash else str(report.longrepr or "")
    line = {"test": report.nodeid, "when": report.when, "outcome": report.outcome, "message": message[:500]}
    with Path(os.environ[VARIABLE]).open("a") as file:
        file.write(json.dumps(line) + "\n")
