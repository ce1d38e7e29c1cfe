"""Levelling: the same items in rows no longer than before, the fullest row with fewer trained tokens."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from empathax.data import row_plan
from empathax.data.row_plan import best_fit, level_rows

ITEMS = st.lists(st.tuples(st.integers(1, 100), st.integers(1, 50)), max_size=60)


def loads(rows, values):
    return [sum(values[item] for item in row) for row in rows]


def test_by_hand():
    # a dense and a sparse row of equal items: one of each changes places
    assert [sorted(row) for row in level_rows([[0, 1], [2, 3]], [5] * 4, [4, 4, 1, 1], 10)] in (
        [[0, 2], [1, 3]],
        [[1, 2], [0, 3]],
        [[1, 3], [0, 2]],
        [[0, 3], [1, 2]],
    )
    # a lone large row has room for what fills another row twice over
    assert loads(level_rows([[0, 1], [2]], [3, 3, 4], [5, 4, 1], 10), [5, 4, 1]) == [5, 5]
    # the exchange that would level these is too long for the first row
    assert level_rows([[0, 1], [2, 3]], [5, 5, 6, 4], [4, 4, 1, 4], 10) == [[0, 1], [2, 3]]


def test_nothing_to_level():
    assert level_rows([], [], [], 10) == []
    assert level_rows([[0]], [3], [2], 10) == [[0]]


@given(ITEMS)
def test_items_stay_rows_fit_and_the_fullest_is_no_fuller(items):
    sizes, trained = [size for size, _ in items], [min(size, count) for size, count in items]
    rows = best_fit(sizes, 100)
    leveled = level_rows(rows, sizes, trained, 100)
    assert leveled == level_rows(rows, sizes, trained, 100)
    assert len(leveled) == len(rows)
    assert sorted(item for row in leveled for item in row) == list(range(len(items)))
    assert max(loads(leveled, sizes), default=0) <= 100
    before, after = sorted(loads(rows, trained)), sorted(loads(leveled, trained))
    assert max(after, default=0) <= max(before, default=0)
    assert np.var(after or [0]) <= np.var(before or [0]) + 1e-9


@settings(max_examples=20)
@given(ITEMS, st.integers(1, 5), st.integers(0, 20))
def test_it_may_stop_early_and_look_at_few_rows(items, partners, visits):
    sizes, trained = [size for size, _ in items], [count for _, count in items]
    rows = best_fit(sizes, 100)
    limits = row_plan.PARTNERS, row_plan.MAX_VISITS
    row_plan.PARTNERS, row_plan.MAX_VISITS = partners, visits
    try:
        leveled = level_rows(rows, sizes, trained, 100)
    finally:
        row_plan.PARTNERS, row_plan.MAX_VISITS = limits
    assert sorted(item for row in leveled for item in row) == list(range(len(items)))
    assert max(loads(leveled, sizes), default=0) <= 100
    assert max(loads(leveled, trained), default=0) <= max(loads(rows, trained), default=0)


def test_items_of_unlike_density_end_up_level():
    rng = np.random.default_rng(0)
    sizes = rng.integers(50, 400, 300).tolist()
    trained = [int(size * density) for size, density in zip(sizes, rng.uniform(0.2, 0.8, 300), strict=True)]
    rows = best_fit(sizes, 1000)
    before, after = (loads(some, trained) for some in (rows, level_rows(rows, sizes, trained, 1000)))
    assert max(after) < 1.06 * np.mean(after) < max(before)
