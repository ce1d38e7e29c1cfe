"""Graceful stop on SIGTERM: all processes of a job agree on the step, whichever of them got the signal."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from empathax import sigterm


class StopVote:
    """Whether any process of the job was asked to stop, in answers that all processes get at the same step.

    Signals reach processes at different moments, and a process that saves while another trains on waits for ever. So
    every process votes at every step, and the devices count the votes, in the order of the steps. With several
    processes each answer is that of the vote before, so that the devices never wait for the host.
    """

    def __init__(self, mesh: Mesh) -> None:
        self._sharding = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
        self._count = jax.jit(jnp.max, out_shardings=NamedSharding(mesh, PartitionSpec()))
        self._pending: jax.Array | None = None

    def vote(self) -> bool:
        """Votes, and says whether to stop now. From the first vote on there is something to save."""
        sigterm.hold()
        if jax.process_count() == 1:
            return sigterm.is_requested()
        before, self._pending = self._pending, self._cast()
        return before is not None and bool(before)

    def last_vote(self) -> bool:
        """Votes and waits for the answer."""
        sigterm.hold()
        if jax.process_count() == 1:
            return sigterm.is_requested()
        return bool(self._cast())

    def _cast(self) -> jax.Array:
        own = np.full(1, sigterm.is_requested(), np.int32)
        devices = self._sharding.mesh.devices.size
        return self._count(jax.make_array_from_callback((devices,), self._sharding, lambda index: own))
