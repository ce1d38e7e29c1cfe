"""Update directions and learning rates against their formulas."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from empathax.config import StageOptions, default_config, from_config_dict
from empathax.config.read import BFLOAT16_MAX_DECAY
from empathax.errors import ConfigError
from empathax.models.architecture.presets import preset
from empathax.models.transformer import abstract_params
from empathax.models.weights.digests import leaf_digests
from empathax.training.optimizer import decay_mask, make_optimizer, make_schedule
from empathax.training.state import abstract_state, init_state, state_shardings

OPTIONS = StageOptions(learning_rate=1e-3, warmup_ratio=0.0, schedule="constant")


def _replace(**changes):
    return dataclasses.replace(OPTIONS, **changes)


def _directions(options, params, grads):
    """The directions of several steps, one gradient after another."""
    tx, _ = make_optimizer(options, 10)
    state, result = tx.init(params), []
    for grad in grads:
        direction, state = tx.update(grad, state, params)
        result.append(direction)
    return result, state


def test_adamw_two_steps_by_formula():
    params = {"mlp": {"kernel": jnp.array([2.0, -3.0])}, "norm": {"scale": jnp.array([5.0, 5.0])}}
    grads = [np.array([0.5, -0.1]), np.array([0.2, 0.4])]
    options = _replace(b1=0.9, b2=0.99, eps=1e-8, weight_decay=0.1)
    trees = [{"mlp": {"kernel": jnp.asarray(g)}, "norm": {"scale": jnp.asarray(g)}} for g in grads]
    directions, _ = _directions(options, params, trees)
    first, second = np.zeros(2), np.zeros(2)
    for count, (grad, direction) in enumerate(zip(grads, directions, strict=True), start=1):
        first = 0.9 * first + 0.1 * grad
        second = 0.99 * second + 0.01 * grad**2
        adam = first / (1 - 0.9**count) / (np.sqrt(second / (1 - 0.99**count)) + 1e-8)
        np.testing.assert_allclose(direction["mlp"]["kernel"], adam + 0.1 * np.array([2.0, -3.0]), rtol=1e-4)
        np.testing.assert_allclose(direction["norm"]["scale"], adam, rtol=1e-4)


def test_lion_by_formula():
    params = {"kernel": jnp.array([1.0, 1.0, 1.0])}
    grads = [{"kernel": jnp.array(g)} for g in ([0.5, -0.1, 0.0], [-4.0, -0.1, 2.0])]
    directions, _ = _directions(_replace(optimizer="lion", b1=0.9, b2=0.99), params, grads)
    np.testing.assert_array_equal(directions[0]["kernel"], [1, -1, 0])
    np.testing.assert_array_equal(
        directions[1]["kernel"], np.sign(0.9 * 0.01 * np.array([0.5, -0.1, 0]) + 0.1 * np.array([-4, -0.1, 2]))
    )


def test_adafactor_by_formula():
    params = {"kernel": jnp.ones((128, 256)), "scale": jnp.ones(3)}
    rng = np.random.default_rng(0)
    grad = {"kernel": rng.normal(size=(128, 256)).astype(np.float32), "scale": np.array([0.1, -2.0, 0.4], np.float32)}
    (direction,), state = _directions(_replace(optimizer="adafactor"), params, [grad])
    squared = grad["kernel"] ** 2
    rows, columns = squared.mean(1, keepdims=True), squared.mean(0, keepdims=True)
    update = grad["kernel"] / np.sqrt(rows * columns / rows.mean())
    update /= max(1.0, np.sqrt((update**2).mean()))
    np.testing.assert_allclose(direction["kernel"], update, rtol=1e-4)
    np.testing.assert_allclose(direction["scale"], [1, -1, 1], rtol=1e-5)
    assert sum(leaf.size for leaf in jax.tree.leaves(state)) < 128 * 256 / 10


@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma3"])
def test_decay_leaves_out_norms_and_biases_only(family):
    params = abstract_params(preset(f"tiny-{family}"))
    mask = jax.tree_util.tree_leaves_with_path(decay_mask(params, StageOptions().no_decay))
    decayed = {jax.tree_util.keystr(path, simple=True, separator="/") for path, decays in mask if decays}
    assert decayed == {
        jax.tree_util.keystr(path, simple=True, separator="/")
        for path, _ in mask
        if jax.tree_util.keystr(path[-1:], simple=True) == "kernel"
    }
    assert "embedding/kernel" in decayed


@pytest.mark.parametrize("optimizer", ["adamw", "lion"])
def test_a_first_moment_in_bfloat16_is_half_as_large_and_follows_the_gradients(optimizer):
    rng = np.random.default_rng(0)
    params = {"kernel": jnp.zeros(200)}
    grads = [{"kernel": jnp.asarray(rng.normal(0.1, 1.0, 200), jnp.float32)} for _ in range(100)]
    options = _replace(optimizer=optimizer, b1=0.9, b2=0.99)
    wanted, exact = _directions(options, params, grads)
    found, rounded = _directions(dataclasses.replace(options, first_moment_dtype="bfloat16"), params, grads)
    exact_mu, mu = exact[0].mu["kernel"], rounded[0].mu["kernel"]
    assert (exact_mu.dtype, mu.dtype) == (jnp.float32, jnp.bfloat16)
    assert float(jnp.linalg.norm(mu - exact_mu) / jnp.linalg.norm(exact_mu)) < 0.02
    if optimizer == "adamw":
        assert rounded[0].nu["kernel"].tobytes() == exact[0].nu["kernel"].tobytes()
        difference = jnp.linalg.norm(found[-1]["kernel"] - wanted[-1]["kernel"])
        assert float(difference / jnp.linalg.norm(wanted[-1]["kernel"])) < 0.02
    else:  # signs, of which a few lie near zero
        assert np.mean(found[-1]["kernel"] == wanted[-1]["kernel"]) > 0.98


@pytest.mark.parametrize(("decay", "reaches"), [(BFLOAT16_MAX_DECAY, True), (0.999, False)])
def test_why_a_slow_mean_is_not_kept_in_bfloat16(decay, reaches):
    """A gradient of 1 throughout: a mean that would move by less than half a spacing stays where it is."""
    params = {"kernel": jnp.zeros(1)}
    tx, _ = make_optimizer(_replace(optimizer="lion", b2=decay, first_moment_dtype="bfloat16"), 10)
    step = lambda state, grad: (tx.update({"kernel": grad}, state, params)[1], None)  # noqa: E731
    state, _ = jax.lax.scan(step, tx.init(params), jnp.ones((5000, 1)))
    assert bool(state[0].mu["kernel"][0] > 0.75) == reaches


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"optimizer": "adafactor"}, "adafactor has no first moment"),
        ({"optimizer": "lion"}, "with b2 = 0.999 a step moves it by a 1/1000 or so"),
        ({"optimizer": "adamw", "b1": 0.995}, "use b1 <= 0.99"),
    ],
)
def test_first_moments_that_bfloat16_cannot_hold_are_refused(changes, said):
    config = default_config()
    config.dpo.update(first_moment_dtype="bfloat16", **changes)
    with pytest.raises(ConfigError, match=said):
        from_config_dict(config)


@pytest.mark.parametrize("optimizer", ["adamw", "lion", "adafactor"])
def test_states_are_float32_whatever_the_parameters_are(optimizer):
    params = {"kernel": jnp.ones((2, 3), jnp.bfloat16)}
    (direction,), state = _directions(_replace(optimizer=optimizer, weight_decay=0.1), params, [params])
    assert direction["kernel"].dtype == jnp.float32
    assert {leaf.dtype for leaf in jax.tree.leaves(state) if jnp.issubdtype(leaf.dtype, jnp.floating)} == {
        jnp.dtype("float32")
    }


@pytest.mark.parametrize(
    ("schedule", "wanted"),
    [
        ("constant", [0, 0.5, 1, 1, 1, 1]),
        ("linear", [0, 0.5, 1, 0.775, 0.55, 0.1]),
        ("cosine", [0, 0.5, 1, 0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi / 4)), 0.55, 0.1]),
    ],
)
def test_schedules_by_hand(schedule, wanted):
    options = _replace(schedule=schedule, warmup_ratio=0.2, final_lr_ratio=0.1)
    rates = [float(make_schedule(options, 10)(step)) for step in (0, 1, 2, 4, 6, 10)]
    np.testing.assert_allclose(rates, 1e-3 * np.array(wanted), rtol=1e-6)
    assert float(make_schedule(options, 10)(25)) == pytest.approx(rates[-1])


def test_warm_up_rounds_up_and_may_take_every_step():
    assert float(make_schedule(_replace(warmup_ratio=0.01), 10)(0)) == 0.0
    assert float(make_schedule(_replace(warmup_ratio=1.0), 4)(3)) == pytest.approx(0.75e-3)
    assert float(make_schedule(_replace(schedule="cosine"), 1)(0)) == pytest.approx(1e-3)


@pytest.mark.parametrize("optimizer", ["adamw", "lion", "adafactor"])
def test_optimizer_state_lies_like_its_parameters(optimizer):
    mesh = Mesh(
        np.asarray(jax.devices()[:8]).reshape(1, 4, 2), ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3
    )
    shapes = {"embedding": {"kernel": (256, 128)}, "layers": {"norm": {"scale": (2, 64)}, "kernel": (2, 128, 256)}}
    specs = {
        "embedding": {"kernel": ("tensor", "fsdp")},
        "layers": {"norm": {"scale": (None, "fsdp")}, "kernel": (None, "fsdp", "tensor")},
    }
    is_leaf = lambda value: isinstance(value, tuple)  # noqa: E731
    param_shardings = jax.tree.map(lambda spec: NamedSharding(mesh, PartitionSpec(*spec)), specs, is_leaf=is_leaf)
    params = jax.tree.map(lambda shape, s: jax.device_put(jnp.ones(shape), s), shapes, param_shardings, is_leaf=is_leaf)
    tx, _ = make_optimizer(_replace(optimizer=optimizer), 10)
    abstract = abstract_state(params, tx)
    shardings = state_shardings(abstract, param_shardings)
    state = init_state(params, tx, shardings)
    assert jax.tree.structure(state) == jax.tree.structure(abstract)
    whole = {
        shape: NamedSharding(mesh, PartitionSpec(*spec))
        for shape, spec in zip(
            jax.tree.leaves(shapes, is_leaf=is_leaf), jax.tree.leaves(specs, is_leaf=is_leaf), strict=True
        )
    }
    factored = {(128,): ("fsdp",), (256,): ("tensor",), (2, 128): (None, "fsdp"), (2, 256): (None, "tensor")}
    whole |= {shape: NamedSharding(mesh, PartitionSpec(*spec)) for shape, spec in factored.items()}
    for leaf in jax.tree.leaves(state):
        wanted = whole.get(leaf.shape, NamedSharding(mesh, PartitionSpec()))
        assert leaf.sharding.is_equivalent_to(wanted, leaf.ndim), leaf.shape
    moments = [leaf for leaf in jax.tree.leaves(state.opt_state) if leaf.shape in whole]
    # two rows and two columns of the kernels; (2, 64) is too small to be factored
    assert len(moments) == {"adamw": 6, "lion": 3, "adafactor": 5}[optimizer]


def test_digests_are_equal_on_every_mesh_and_see_one_bit_and_a_swap():
    rng = np.random.default_rng(0)
    tree = {
        "a": rng.normal(size=(16, 8, 4)).astype(np.float32),
        "b": jnp.asarray(rng.normal(size=(8, 8)), jnp.bfloat16),
    }
    wanted = leaf_digests(tree)
    assert set(wanted) == {"a", "b"}
    for shape in ((8, 1, 1), (2, 2, 2), (1, 4, 2)):
        mesh = Mesh(np.asarray(jax.devices()[:8]).reshape(shape), ("x", "y", "z"), axis_types=(AxisType.Auto,) * 3)
        assert leaf_digests(jax.device_put(tree, NamedSharding(mesh, PartitionSpec("x", ("y", "z"))))) == wanted
    flipped = tree["a"].copy()
    flipped.view(np.uint32)[3, 5, 1] ^= 1 << 31
    swapped = tree["a"].copy()
    swapped[[2, 9]] = swapped[[9, 2]]
    for changed in (flipped, swapped):
        assert leaf_digests({**tree, "a": changed})["a"] != wanted["a"]
    assert leaf_digests({"a": jnp.float32(-0.0)}) != leaf_digests({"a": jnp.float32(0.0)})
