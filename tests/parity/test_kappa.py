"""Fleiss' kappa equals statsmodels'."""

import numpy as np
import pytest

from empathax.preferences.review import fleiss_kappa
from tests.preferences.test_review import PATIENTS

inter_rater = pytest.importorskip("statsmodels.stats.inter_rater")


def of_statsmodels(subjects) -> float:
    labels = np.array([list(map(int, subject)) for subject in subjects])
    counts, _ = inter_rater.aggregate_raters(labels)
    return inter_rater.fleiss_kappa(counts, method="fleiss")


def test_on_the_published_table():
    assert fleiss_kappa(PATIENTS) == pytest.approx(of_statsmodels(PATIENTS), abs=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_on_random_labels(seed):
    draw = np.random.default_rng(seed)
    subjects = ["".join(map(str, row)) for row in draw.integers(0, 4, (25, 3 + seed))]
    assert fleiss_kappa(subjects) == pytest.approx(of_statsmodels(subjects), abs=1e-12)
