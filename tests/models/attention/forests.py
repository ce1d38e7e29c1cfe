"""Random rows of prefix trees, and attention run with its gradients, for the tests of every kernel."""

import jax
import jax.numpy as jnp
import numpy as np

from empathax.models.attention.dispatch import attention
from empathax.models.attention.flash import Plan, flash_attention
from empathax.models.attention.tree_layout import ScoreOptions, TreeLayout

SCALE = 0.25


def random_forest(rng, num_tokens, branching):
    """subtree_end and positions of a random forest in depth-first preorder."""
    parent = np.full(num_tokens, -1)
    for i in range(1, num_tokens):
        path = [i - 1]
        while parent[path[-1]] >= 0:
            path.append(parent[path[-1]])
        jump = rng.random() < branching
        parent[i] = rng.choice([*path, -1]) if jump else i - 1
    end, depth = np.arange(1, num_tokens + 1), np.zeros(num_tokens, int)
    for i in range(num_tokens):
        depth[i] = depth[parent[i]] + 1 if parent[i] >= 0 else 0
    for i in reversed(range(num_tokens)):
        if parent[i] >= 0:
            end[parent[i]] = max(end[parent[i]], end[i])
    return end, depth


def random_inputs(
    seed, num_tokens, batch=1, heads=4, kv_heads=2, head_dim=16, branching=0.02, padding=0, dtype=jnp.float32
):
    """q, k, v and the layout of `attention`; the last `padding` tokens of each row see themselves only."""
    rng = np.random.default_rng(seed)
    forests = [random_forest(rng, num_tokens - padding, branching) for _ in range(batch)]
    own = np.arange(num_tokens - padding, num_tokens)
    end_BT = np.stack([np.concatenate([end, own + 1]) for end, _ in forests])
    positions_BT = np.stack([np.concatenate([depth, 0 * own]) for _, depth in forests])
    shapes = [(batch, n, num_tokens, head_dim) for n in (heads, kv_heads, kv_heads)]
    q, k, v = (jnp.asarray(rng.standard_normal(shape), dtype) for shape in shapes)
    return q, k, v, TreeLayout(jnp.asarray(positions_BT, jnp.int32), jnp.asarray(end_BT, jnp.int32))


def with_gradients(run, q, k, v):
    """run(q, k, v) and the gradients of a weighted sum of it."""

    def total(q, k, v):
        out = run(q, k, v)
        weight = jnp.cos(jnp.arange(out.size, dtype=jnp.float32)).reshape(out.shape)
        return (out.astype(jnp.float32) * weight).sum(), out

    grads, out = jax.jit(jax.grad(total, argnums=(0, 1, 2), has_aux=True))(q, k, v)
    return out, *grads


def run_attention(implementation, q, k, v, layout, *, window=0, **options):
    """Result and gradients of the public function."""
    layout, options = layout._replace(window=window), {"scale": SCALE, "implementation": implementation, **options}
    return with_gradients(lambda q, k, v: attention(q, k, v, layout, **options), q, k, v)


def run_interpreted(kernel, q, k, v, layout, *, window=0, softcap=0.0, mesh=None):
    """Result and gradients of a Pallas kernel, run as plain jax operations."""
    layout = layout._replace(window=window)
    plan = Plan(kernel, ScoreOptions(SCALE, softcap, layout.has_window, interpret=True), mesh)
    return with_gradients(lambda q, k, v: flash_attention(q, k, v, layout, plan), q, k, v)


def assert_close(results, references, forward=1e-5, gradient=1e-4):
    """Results and references are (out, dq, dk, dv); absolute tolerances."""
    for result, reference, tolerance in zip(results, references, (forward, *[gradient] * 3), strict=True):
        np.testing.assert_allclose(result.astype(jnp.float32), reference.astype(jnp.float32), atol=tolerance)
