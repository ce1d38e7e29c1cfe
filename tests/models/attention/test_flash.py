"""The Pallas kernels, interpreted on CPU, against the dense reference: values, gradients, skipped blocks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from empathax.models.attention.tree_layout import TreeLayout
from tests.models.attention.forests import assert_close, random_inputs, run_attention, run_interpreted

# rows of several blocks each
each_kernel = pytest.mark.parametrize(("kernel", "num_tokens"), [("pallas_tpu", 384), ("pallas_gpu", 256)])


@pytest.mark.parametrize(("seed", "branching"), [(0, 0.0), (1, 0.01), (2, 0.1)])
@each_kernel
def test_equals_dense_on_random_forests(kernel, num_tokens, seed, branching):
    q, k, v, layout = random_inputs(seed, num_tokens, batch=2, head_dim=64, branching=branching, padding=100)
    assert_close(run_interpreted(kernel, q, k, v, layout), run_attention("dense", q, k, v, layout))


@pytest.mark.parametrize(
    "options", [{"window": 40}, {"softcap": 2.0}, {"window": jnp.int32(140), "softcap": 2.0}, {"window": jnp.int32(1)}]
)
@each_kernel
def test_window_and_softcap_equal_dense(kernel, num_tokens, options):
    q, k, v, layout = random_inputs(3, num_tokens, batch=2)
    dense = run_attention("dense", 4 * q, k, v, layout, **options)
    assert_close(run_interpreted(kernel, 4 * q, k, v, layout, **options), dense)


@pytest.mark.parametrize(("heads", "kv_heads"), [(3, 3), (6, 2), (4, 1)])
@each_kernel
def test_groups_of_heads_equal_dense(kernel, num_tokens, heads, kv_heads):
    q, k, v, layout = random_inputs(4, num_tokens, heads=heads, kv_heads=kv_heads)
    assert_close(run_interpreted(kernel, q, k, v, layout), run_attention("dense", q, k, v, layout))


@each_kernel
def test_bfloat16_is_close_to_dense(kernel, num_tokens):
    q, k, v, layout = random_inputs(5, num_tokens, head_dim=128, dtype=jnp.bfloat16)
    results = run_interpreted(kernel, q, k, v, layout)
    assert all(result.dtype == jnp.bfloat16 for result in results)
    exact = run_attention("dense", *(x.astype(jnp.float32) for x in (q, k, v)), layout)
    for result, reference in zip(results, exact, strict=True):
        scale = float(jnp.abs(reference).max())
        np.testing.assert_allclose(result.astype(jnp.float32), reference, atol=0.03 * scale)


@pytest.mark.parametrize("kernel", ["pallas_tpu", "pallas_gpu"])
def test_blocks_that_nothing_sees_are_not_read(kernel):
    # two trees of 256 tokens; 0 x NaN is NaN, so a key that is only masked would show
    q, k, v, _ = random_inputs(6, 512)
    index = jnp.arange(512, dtype=jnp.int32)
    layout = TreeLayout(index[None] % 256, (index // 256 + 1)[None] * 256)
    poisoned = (x.at[:, :, :256].set(jnp.nan) for x in (q, k, v))
    clean, dirty = run_interpreted(kernel, q, k, v, layout), run_interpreted(kernel, *poisoned, layout)
    for expected, found in zip(clean, dirty, strict=True):
        np.testing.assert_array_equal(found[:, :, 256:], expected[:, :, 256:])
        assert bool(jnp.isnan(found[:, :, :256]).all())


@each_kernel
def test_split_over_rows_and_heads_equals_dense(kernel, num_tokens):
    mesh = jax.make_mesh((2, 1, 2), ("data", "fsdp", "tensor"), (jax.sharding.AxisType.Auto,) * 3)
    q, k, v, layout = random_inputs(7, num_tokens, batch=2)
    assert_close(run_interpreted(kernel, q, k, v, layout, mesh=mesh), run_attention("dense", q, k, v, layout))
