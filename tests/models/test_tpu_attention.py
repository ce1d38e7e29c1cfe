"""The TPU kernels, interpreted on CPU, against the dense reference: values, gradients, skipped blocks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from empathax.models.tpu_attention import block_size
from tests.models.forests import assert_close, random_inputs, run_attention, run_interpreted

KERNEL, T = "pallas_tpu", 384  # three blocks of 128


@pytest.mark.parametrize(("seed", "branching"), [(0, 0.0), (1, 0.01), (2, 0.1)])
def test_equals_dense_on_random_forests(seed, branching):
    q, k, v, layout = random_inputs(seed, T, batch=2, head_dim=64, branching=branching, padding=100)
    assert_close(run_interpreted(KERNEL, q, k, v, **layout), run_attention("dense", q, k, v, **layout))


@pytest.mark.parametrize(
    "options", [{"window": 40}, {"softcap": 2.0}, {"window": jnp.int32(140), "softcap": 2.0}, {"window": jnp.int32(1)}]
)
def test_window_and_softcap_equal_dense(options):
    q, k, v, layout = random_inputs(3, T, batch=2)
    dense = run_attention("dense", 4 * q, k, v, **layout, **options)
    assert_close(run_interpreted(KERNEL, 4 * q, k, v, **layout, **options), dense)


@pytest.mark.parametrize(("heads", "kv_heads"), [(3, 3), (6, 2), (4, 1)])
def test_groups_of_heads_equal_dense(heads, kv_heads):
    q, k, v, layout = random_inputs(4, T, heads=heads, kv_heads=kv_heads)
    assert_close(run_interpreted(KERNEL, q, k, v, **layout), run_attention("dense", q, k, v, **layout))


def test_bfloat16_is_close_to_dense():
    q, k, v, layout = random_inputs(5, T, head_dim=128, dtype=jnp.bfloat16)
    results = run_interpreted(KERNEL, q, k, v, **layout)
    assert all(result.dtype == jnp.bfloat16 for result in results)
    exact = run_attention("dense", *(x.astype(jnp.float32) for x in (q, k, v)), **layout)
    for result, reference in zip(results, exact, strict=True):
        scale = float(jnp.abs(reference).max())
        np.testing.assert_allclose(result.astype(jnp.float32), reference, atol=0.03 * scale)


def test_blocks_that_nothing_sees_are_not_read():
    # two trees of 256 tokens; 0 x NaN is NaN, so a key that is only masked would show
    q, k, v, _ = random_inputs(6, 512)
    index = jnp.arange(512, dtype=jnp.int32)
    layout = {"positions_BT": index[None] % 256, "subtree_end_BT": (index // 256 + 1)[None] * 256}
    poisoned = (x.at[:, :, :256].set(jnp.nan) for x in (q, k, v))
    clean, dirty = run_interpreted(KERNEL, q, k, v, **layout), run_interpreted(KERNEL, *poisoned, **layout)
    for expected, found in zip(clean, dirty, strict=True):
        np.testing.assert_array_equal(found[:, :, 256:], expected[:, :, 256:])
        assert bool(jnp.isnan(found[:, :, :256]).all())


def test_split_over_rows_and_heads_equals_dense():
    mesh = jax.make_mesh((2, 1, 2), ("data", "fsdp", "tensor"), (jax.sharding.AxisType.Auto,) * 3)
    q, k, v, layout = random_inputs(7, T, batch=2)
    assert_close(run_interpreted(KERNEL, q, k, v, **layout, mesh=mesh), run_attention("dense", q, k, v, **layout))


def test_block_sizes_divide_the_row_and_leave_blocks_to_skip():
    assert [block_size(T, 256) for T in (128, 384, 512, 1024, 2048, 4096)] == [128, 128, 128, 256, 512, 512]
    assert block_size(4096, 1024) == 256  # float32 heads of 256 numbers
