"""Ten steps of SFT or DPO on uneven trees, on a mesh of any sizes and over any number of processes.

Every process of a job calls `ten_steps` with the same arguments and gets the same answer.
"""

import functools
import hashlib
from typing import NamedTuple

import jax
import numpy as np

from empathax.config import Config, DpoOptions, MeshOptions, ModelOptions, SftOptions
from empathax.models.transformer import abstract_params, init_params, logical_axes
from empathax.parallel.mesh import make_mesh
from empathax.parallel.processes import put_batch
from empathax.parallel.rules import batch_sharding, param_shardings
from empathax.training.optimizer import make_optimizer
from empathax.training.state import abstract_state, init_state, state_shardings
from empathax.training.step import make_train_step
from tests.training.tiny_rows import MODEL, dialogue_batch, with_steps

MESHES = ((8, 1, 1), (1, 8, 1), (2, 2, 2), (1, 2, 4))
NUM_STEPS = 10
NUM_ROWS = 8
CONFIG = Config(
    model=ModelOptions(vocab_chunk=128),
    sft=SftOptions(learning_rate=1e-3),
    dpo=DpoOptions(learning_rate=1e-3),
)


class TenSteps(NamedTuple):
    """What ten steps came to: [10] losses and gradient norms, and a hash of this process's shards of the last state."""

    losses: np.ndarray
    grad_norms: np.ndarray
    digest: str


def ten_steps(objective: str, sizes: tuple[int, int, int], repeats: int = 1) -> list[TenSteps]:
    """`repeats` runs from the same parameters over the same batches, on a mesh of `sizes`."""
    mesh = make_mesh(MeshOptions(*sizes), jax.devices()[: np.prod(sizes)])
    shardings = param_shardings(mesh, abstract_params(MODEL), logical_axes(MODEL))
    tx, schedule = make_optimizer(CONFIG.stage(objective), NUM_STEPS)
    of_state = state_shardings(abstract_state(abstract_params(MODEL), tx), shardings)
    step = make_train_step(objective, MODEL, CONFIG, tx, schedule, shardings=of_state)
    start = jax.device_get(init_state(_params(0), tx))
    reference = _placed(_params(1), shardings) if objective == "dpo" else None
    batches = [put_batch(rows, batch_sharding(mesh, num_leading=1)) for rows in _rows_of_this_process()]

    def run() -> TenSteps:
        state, seen = _placed(start, of_state), []
        for batch in batches:
            state, scalars = step(state, batch, reference)
            seen.append((scalars["loss"], scalars["grad_norm"]))
        losses, grad_norms = np.array(jax.device_get(seen)).T
        return TenSteps(losses, grad_norms, _digest(state))

    return [run() for _ in range(repeats)]


@functools.cache
def _params(seed):
    return jax.device_get(init_params(MODEL, seed))


def _placed(params, shardings):
    def place(value, sharding):
        return jax.make_array_from_callback(value.shape, sharding, lambda index: value[index])

    return jax.tree.map(place, params, shardings)


def _digest(state):
    shards = [shard.data for leaf in jax.tree.leaves(state) for shard in leaf.addressable_shards]
    return hashlib.sha256(b"".join(np.asarray(data).tobytes() for data in shards)).hexdigest()


def _rows_of_this_process():
    """Five batches, twice, of rows with 1 to 8 pairs each, of which a process holds an equal run."""
    share = NUM_ROWS // jax.process_count()
    own = slice(jax.process_index() * share, (jax.process_index() + 1) * share)
    for number in range(NUM_STEPS):
        batch = with_steps(dialogue_batch(NUM_ROWS, seed=100 * (number % 5)), 1)
        yield jax.tree.map(lambda leaf: leaf[:, own], batch)


def main() -> None:
    """Prints how far each mesh is from one device."""
    jax.config.update("jax_num_cpu_devices", 8)
    for objective in ("sft", "dpo"):
        wanted = ten_steps(objective, (1, 1, 1))[0]
        for sizes in MESHES:
            found, again = ten_steps(objective, sizes, repeats=2)
            losses, norms = (np.abs(np.divide(a, b) - 1).max() for a, b in zip(found[:2], wanted[:2], strict=True))
            same = found.digest == again.digest
            print(f"{objective} {'x'.join(map(str, sizes))}: losses {losses:.1e}, norms {norms:.1e}, repeats: {same}")


if __name__ == "__main__":
    main()
