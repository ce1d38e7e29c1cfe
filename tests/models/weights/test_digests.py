"""Digests of arrays: equal on every mesh, unequal after any change, and what a plain loop over the elements counts."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from empathax.models.weights.digests import differing, file_records, leaf_digests, leaf_records
from tests.test_docs import ROOT

DTYPES = ["float32", "bfloat16", "int32", "int8", "uint8", "bool"]


def _documented():
    """The function in the page's code block, which uses nothing of ours."""
    page = (ROOT / "docs" / "checkpoint_format.md").read_text(encoding="utf-8")
    names: dict = {}
    exec(re.search(r"```python\n(.*?)```", page, re.DOTALL)[1], names)
    return names["leaf_digest"]


def _array(dtype, shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape) * 50).astype(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(), (7,), (3, 5), (2, 3, 4), (0, 3)])
def test_as_counted_by_hand(dtype, shape):
    array = _array(dtype, shape)
    by_hand = _documented()(array)
    assert leaf_digests({"x": array}) == {"x": by_hand}
    assert leaf_records({"x": array}) == {"x": f"{dtype}{list(shape)} {by_hand}"}


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**31), st.integers(0, 31), st.integers(0, 23))
def test_every_flipped_bit_changes_it(seed, bit, place):
    array = np.random.default_rng(seed).integers(0, 2**32, (2, 3, 4), dtype=np.uint32)
    changed = array.copy()
    changed.reshape(-1)[place] ^= np.uint32(1 << bit)
    assert leaf_digests([array]) != leaf_digests([changed])


def test_what_trades_places_changes_it():
    array = _array("float32", (4, 6))
    for other in (array[::-1], array[:, ::-1], array.T.reshape(4, 6), array.at[0, 0].set(-array[0, 0])):
        assert leaf_digests([array]) != leaf_digests([other])


def test_the_same_on_every_mesh():
    tree = {"a": _array("bfloat16", (8, 4)), "b": _array("float32", (4, 8, 2))}
    wanted = leaf_digests(tree)
    mesh = Mesh(np.array(jax.devices()).reshape(2, 4), ("x", "y"))
    for spec in (PartitionSpec(), PartitionSpec("y"), PartitionSpec("y", "x"), PartitionSpec(("x", "y"))):
        placed = {"a": jax.device_put(tree["a"], NamedSharding(mesh, spec)), "b": tree["b"]}
        assert leaf_digests(placed) == wanted


def test_files(tmp_path):
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "a").write_bytes(b"abc")
    (tmp_path / "left out").write_bytes(b"")
    sha = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # FIPS 180-2, appendix B.1
    assert file_records(tmp_path, {"left out"}) == {"d/a": [3, sha]}


def test_differences_are_named():
    assert differing({"a": "1", "c": "3"}, {"a": "2", "b": "4", "c": "3"}) == [
        "a: found 1, expected 2",
        "b: found nothing, expected 4",
    ]


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
