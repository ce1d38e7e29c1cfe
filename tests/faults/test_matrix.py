"""The matrix names tests and detectors that are there, and its page says the same."""

import ast
import functools
import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.faults import disabled
from tests.faults.__main__ import ROOT, Ran, without
from tests.faults.matrix import ROWS, Detector

DETECTORS = sorted({(one.target, one.replacement) for row in ROWS for one in row.detectors})


@functools.cache
def functions(file):
    return {node.name for node in ast.parse((ROOT / "tests" / file).read_text()).body if hasattr(node, "name")}


def test_all_rows_are_there():
    assert [row.name for row in ROWS] == [*map(str, range(1, 30)), *"ABCDEFGHI"]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_tests_of_a_row_are_there(row):
    for name in row.all_tests:
        file, _, function = name.partition("::")
        assert not function or function.partition("[")[0] in functions(file), name


@pytest.mark.parametrize(("target", "replacement"), DETECTORS)
def test_detectors_are_there(target, replacement):
    module, _, attribute = target.partition(":")
    functools.reduce(getattr, attribute.split("."), importlib.import_module(module))
    assert replacement in disabled.REPLACEMENTS


def test_the_page_is_the_matrix():
    text = (ROOT / "docs" / "reliability.md").read_text()
    missing = [row.name for row in ROWS if row.line not in text]
    assert not missing, "print the table anew: python -m tests.faults --table"


def test_a_test_that_passes_without_its_detector_is_named():
    detector = Detector("a:b", "nothing", ("x.py::test_a", "x.py::test_b", "x.py::test_c"))
    ran = Ran({"tests/x.py::test_a": ("passed", ""), "tests/x.py::test_b[1]": ("failed", "no")}, 1.0, "")
    assert without(ran, detector) == ["x.py::test_a: passed", "x.py::test_c: not run"]


CHILD = """
import json_module_user, sys
print(json_module_user.quoted("x"))
"""


def test_a_child_process_is_without_the_detector_too(tmp_path):
    """Also where another module took the function by name."""
    (tmp_path / "json_module_user.py").write_text("from empathax.shown import quoted\n")
    child = Path(disabled.__file__).parent / "child"
    search = os.pathsep.join(map(str, (child, ROOT, tmp_path)))
    environment = os.environ | {"PYTHONPATH": search, disabled.VARIABLE: "empathax.shown:quoted=nothing"}
    done = subprocess.run([sys.executable, "-c", CHILD], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "None\n"
