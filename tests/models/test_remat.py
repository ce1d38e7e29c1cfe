"""What is kept for the backward pass: less memory as the names say, the same values and gradients."""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from empathax.config.options import REMAT_POLICIES
from empathax.errors import ConfigError
from empathax.models.architecture.presets import preset
from empathax.models.remat import rematerialized
from empathax.models.transformer import ComputeOptions, abstract_params, hidden_states, init_params

NUM_LAYERS = 6
MODEL = dataclasses.replace(preset("tiny-llama"), num_layers=NUM_LAYERS, windows=(0,) * NUM_LAYERS)
ROWS, TOKENS = 2, 1024  # rows long enough for attention in blocks
FLOATS = 4 * ROWS * TOKENS  # bytes of one float a token


def _loss(remat):
    def loss(params, index_BT):
        end_BT = jnp.full_like(index_BT, index_BT.shape[1])
        return (hidden_states(params, MODEL, index_BT % 500, index_BT, end_BT, ComputeOptions(remat=remat)) ** 2).sum()

    return loss


@functools.cache
def _kept_bytes(remat):
    """Bytes that the forward pass hands to the backward pass in stacks of one entry a layer."""
    index_BT = jax.ShapeDtypeStruct((ROWS, TOKENS), jnp.int32)
    jaxpr = jax.make_jaxpr(jax.grad(_loss(remat)))(abstract_params(MODEL), index_BT)
    forward = next(equation for equation in jaxpr.eqns if equation.primitive.name == "scan")
    stacks = [out.aval for out in forward.outvars if out.aval.ndim and out.aval.shape[0] == NUM_LAYERS]
    return {space: sum(s.size * s.dtype.itemsize for s in stacks if _space(s) == space) for space in ("device", "host")}


def _space(aval):
    return "host" if "host" in str(aval.memory_space).lower() else "device"


def test_each_policy_keeps_what_its_name_says():
    D, F, query, kv, heads = MODEL.model_dim, MODEL.ff_dim, MODEL.query_dim, MODEL.kv_dim, MODEL.num_heads
    layer = NUM_LAYERS * FLOATS
    assert _kept_bytes("full") == {"device": layer * D, "host": 0}
    assert _kept_bytes("attention") == {"device": layer * (D + query + heads), "host": 0}
    dots = D + query + heads + query + 2 * kv + D + 2 * F  # of them the last matmul's result is not needed
    assert _kept_bytes("dots") == {"device": layer * dots, "host": 0}
    assert _kept_bytes("offload") == {"device": 0, "host": layer * D}
    assert _kept_bytes("offload_dots") == {"device": 0, "host": layer * dots}


@functools.cache
def _compiled(remat):
    return (
        jax.jit(jax.value_and_grad(_loss(remat)))
        .lower(abstract_params(MODEL), jax.ShapeDtypeStruct((ROWS, TOKENS), jnp.int32))
        .compile()
    )


def test_the_compiled_program_needs_less_with_each():
    temporaries = [
        _compiled(remat).memory_analysis().temp_size_in_bytes for remat in ("full", "attention", "dots", "none")
    ]
    saved = np.diff(temporaries)
    assert saved.min() > NUM_LAYERS * FLOATS * MODEL.query_dim / 2


@pytest.mark.parametrize("remat", REMAT_POLICIES[1:])
def test_values_and_gradients_stay(remat):
    params = init_params(MODEL, 0)
    index_BT = jnp.tile(jnp.arange(TOKENS, dtype=jnp.int32), (ROWS, 1))
    loss, grads = _compiled(remat)(params, index_BT)
    wanted_loss, wanted = _compiled("none")(params, index_BT)
    assert float(loss) == pytest.approx(float(wanted_loss), rel=1e-6)
    chex.assert_trees_all_close(grads, wanted, rtol=1e-4, atol=1e-4 * float(jnp.abs(jax.tree.leaves(wanted)[0]).max()))


class _Mesh:
    """A mesh of devices that keep to themselves."""

    class _Device:
        device_kind = "island"

        def addressable_memories(self):
            return [type("Memory", (), {"kind": "device"})]

    devices = np.array([_Device()])


def test_devices_without_the_hosts_memory_are_refused():
    with pytest.raises(ConfigError, match=r"'island' do not reach .they have device.: choose 'dots'"):
        rematerialized(lambda x, _: (x, None), "offload_dots", _Mesh())
    with pytest.raises(ConfigError, match="choose 'full'"):
        rematerialized(lambda x, _: (x, None), "offload", _Mesh())
    rematerialized(lambda x, _: (x, None), "dots", _Mesh())
