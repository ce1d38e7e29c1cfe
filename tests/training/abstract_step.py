"""A preference step of shapes only, for tests of what the compiler makes of it. No two sizes are the same."""

import dataclasses

import jax
import jax.numpy as jnp

from empathax.config import Config, MeshOptions
from empathax.data.batch import Batch
from empathax.models.architecture.presets import preset
from empathax.models.transformer import abstract_params, logical_axes
from empathax.parallel.mesh import make_mesh
from empathax.parallel.rules import batch_sharding, param_shardings
from empathax.training.optimizer import make_optimizer
from empathax.training.state import abstract_state, state_shardings
from empathax.training.step import make_train_step

MODEL = dataclasses.replace(preset("tiny-llama"), ff_dim=192, vocab_size=1024, num_kv_heads=4)
ROWS = 16
SIZES = {"T": 320, "M": 88, "S": 10, "P": 5}


def compiled_step(config: Config, mesh_sizes: tuple[int, int, int] = (1, 1, 1), resident: bool = False):
    """The step over ROWS rows in `config.dpo.accumulation_steps` micro-batches, compiled."""
    num_devices = mesh_sizes[0] * mesh_sizes[1] * mesh_sizes[2]
    mesh = make_mesh(MeshOptions(*mesh_sizes), jax.devices()[:num_devices])
    params = abstract_params(MODEL)
    shardings = param_shardings(mesh, params, logical_axes(MODEL))
    tx, schedule = make_optimizer(config.dpo, 10)
    of_state = state_shardings(abstract_state(params, tx), shardings)
    state = _placed(abstract_state(params, tx), of_state)
    reference = _placed(params, shardings) if resident else None
    step = make_train_step("dpo", MODEL, config, tx, schedule, shardings=of_state)
    batch = _batch(config.dpo.accumulation_steps, batch_sharding(mesh, num_leading=1), has_logps=not resident)
    return step.lower(state, batch, reference).compile()


def _placed(tree, shardings):
    return jax.tree.map(
        lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where), tree, shardings
    )


def _batch(num_micro, sharding, has_logps):
    floats = {"weight_BM", "pair_weight_BP", "ref_logps_BS"}
    lead = (num_micro, ROWS // num_micro)
    return Batch(
        **{
            name: jax.ShapeDtypeStruct(
                (*lead, SIZES[name[-1]]), jnp.float32 if name in floats else jnp.int32, sharding=sharding
            )
            for name in Batch.__dataclass_fields__
            if name != "replies" and (has_logps or name != "ref_logps_BS")
        }
    )
