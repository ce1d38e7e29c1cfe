"""Exact sums against Python's fractions."""

from fractions import Fraction

import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from empathax.evaluation.metrics.exact_sum import exact_sum

_value = st.one_of(st.just(0.0), st.floats(2.0**-60, 2.0**60, width=32))


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(_value, st.integers(-900, 0), st.booleans()), min_size=5, max_size=5))
def test_equals_fractions(rows):
    values, exponents, counted = (np.array(column) for column in zip(*rows, strict=True))
    total = exact_sum(jnp.float32(values), jnp.array(counted), jnp.array(exponents))
    expected = sum(Fraction(value) * Fraction(2) ** exponent for value, exponent, used in rows if used)
    assert total.total() == expected
    assert total.mean() == float(Fraction(expected) / max(int(counted.sum()), 1))
    assert total.merge(total).total() == 2 * expected


def test_of_nothing():
    assert exact_sum(jnp.zeros(3), jnp.zeros(3, bool)).mean() == 0
