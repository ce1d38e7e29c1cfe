"""Arguments of commands: paths that nothing can have, counts and numbers beyond what is computed with."""

import argparse

import pytest

from empathax.config.arguments import file_path, number, path_problem, path_text, whole_number


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("runs/a", ""),
        ("gs://bucket/model", ""),
        ("é" * 127, ""),
        ("a\0b", "NUL"),
        ("\ud800", "surrogate"),
        ("é" * 128, "a name in it has 256 bytes"),
        ("/a" * 2100, "it has 4,200 bytes"),
    ],
)
def test_paths(text, reason):
    assert reason in path_problem(text)
    assert bool(reason) == bool(path_problem(text))
    if reason:
        for read in (path_text, file_path):
            with pytest.raises(argparse.ArgumentTypeError, match="cannot be a path"):
                read(text)


@pytest.mark.parametrize(
    ("read", "text", "reason"),
    [
        (whole_number(1), "0", "'0': expected a whole number from 1 on"),
        (whole_number(), "2147483648", "from 0 to 2,147,483,647"),
        (whole_number(), "1.5", "expected a whole number from 0 on"),
        (whole_number(), "9" * 5000, "expected a whole number"),
        (number(), "1e39", r"from 0 to 3.40282e\+38"),
        (number(), "1e999", r"from 0 to 3.40282e\+38"),
        (number(0.0, 1.0), "nan", "expected a number from 0 to 1"),
        (number(), "9" * 5000, "expected a number"),
    ],
)
def test_numbers(read, text, reason):
    with pytest.raises(argparse.ArgumentTypeError, match=reason) as caught:
        read(text)
    assert len(str(caught.value)) < 300


def test_numbers_within():
    assert (whole_number()("7"), number()("1e38"), number(-1.0)("-1")) == (7, 1e38, -1.0)
