"""Digests of arrays against the count in docs/checkpoint_format.md, which uses nothing of ours."""

import re

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from empathax.models.weights.digests import leaf_digests
from tests.test_docs import ROOT


def _documented():
    """The function in the page's code block."""
    page = (ROOT / "docs" / "checkpoint_format.md").read_text()
    names: dict = {}
    exec(re.search(r"```python\n(.*?)```", page, re.DOTALL)[1], names)
    return names["leaf_digest"]


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16, np.float16, np.int32, np.uint32, np.int8, np.bool_])
@pytest.mark.parametrize("shape", [(), (7,), (3, 5), (2, 3, 4), (0, 3)])
def test_another_program_counts_the_same(dtype, shape):
    values = (np.random.default_rng(0).normal(size=shape) * 100).astype(dtype)
    assert leaf_digests({"a": jnp.asarray(values)}) == {"a": _documented()(values)}


VALUES = np.random.default_rng(1).normal(size=(8, 8)).astype(np.float32)


def _flipped(places, bit):
    bits = VALUES.view(np.uint32).ravel().copy()
    bits[list(places)] ^= np.uint32(1) << np.uint32(bit)
    return jnp.asarray(bits.view(np.float32).reshape(VALUES.shape))


@pytest.mark.parametrize("bit", range(32))
@pytest.mark.parametrize("places", [(0,), (63,), (0, 1), (5, 40), (1, 2, 3), (7, 8, 30, 31), range(64)], ids=str)
def test_the_same_bit_of_several_values_is_seen(bit, places):
    """Sums of bits alone would not: two flipped signs add up to 2^32."""
    assert leaf_digests({"a": _flipped(places, bit)}) != leaf_digests({"a": VALUES})


def test_values_that_change_places_are_seen():
    swapped = VALUES.copy()
    swapped[[0, 5]] = swapped[[5, 0]]
    wanted = leaf_digests({"a": VALUES})["a"]
    assert leaf_digests({"a": swapped})["a"] != wanted
    assert leaf_digests({"a": VALUES.T})["a"] != wanted
    assert leaf_digests({"a": jax.device_put(VALUES)})["a"] == wanted
