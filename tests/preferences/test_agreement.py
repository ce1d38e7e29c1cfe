"""Fleiss' kappa against published tables."""

import pytest

from empathax.errors import DataError
from empathax.preferences.review import fleiss_kappa

# Fleiss (1971), table 1: 30 patients, each given one of 5 diagnoses by 6 psychiatrists.
PATIENTS = """444444 222555 233335 555555 222444 113333 333355 113334 114444 555555 144444 124444 222333 144444 224445
333335 111455 111112 224444 133555 555555 244444 224555 114444 144445 222224 111155 224444 133333 555555""".split()  # noqa: SIM905
# 14 raters, 10 subjects, 5 categories: the worked example of the article on Fleiss' kappa in Wikipedia.
COUNTS = (
    (0, 0, 0, 0, 14),
    (0, 2, 6, 4, 2),
    (0, 0, 3, 5, 6),
    (0, 3, 9, 2, 0),
    (2, 2, 8, 1, 1),
    (7, 7, 0, 0, 0),
    (3, 2, 6, 3, 0),
    (2, 5, 3, 2, 2),
    (6, 5, 2, 1, 0),
    (0, 2, 2, 3, 7),
)


def test_the_table_of_fleiss():
    assert round(fleiss_kappa(PATIENTS), 3) == 0.430  # as published


def test_a_worked_example():
    subjects = ["".join(str(number) * count for number, count in enumerate(row)) for row in COUNTS]
    # By hand: mean P = (1 + .253 + .308 + .440 + .330 + .462 + .242 + .176 + .286 + .286) / 10 = .378, Pe = .213
    assert fleiss_kappa(subjects) == pytest.approx(0.2099, abs=5e-5)


def test_four_labels_by_hand():
    # p = (3/4, 1/4): Pe = 10/16; P = 1 and 0, mean 1/2: kappa = (1/2 - 5/8) / (3/8)
    assert fleiss_kappa(["aa", "ab"]) == pytest.approx(-1 / 3)


def test_where_kappa_is_undefined():
    assert fleiss_kappa([]) is None
    assert fleiss_kappa(["aa", "aa"]) is None
    with pytest.raises(DataError, match="subjects with 2, 3 raters"):
        fleiss_kappa(["aa", "aab"])
