"""Graceful stop on SIGTERM: all processes of a job agree on the step, whichever of them got the signal."""

from __future__ import annotations

import faulthandler
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from empathax.errors import Preempted

STOP_SECONDS = 600.0  # from SIGTERM until a process of several gives up waiting for the others
_requested = threading.Event()
_is_listening = False


def is_requested() -> bool:
    """True once this process got SIGTERM inside `listening`."""
    return _requested.is_set()


@contextmanager
def listening(give_up_seconds: float | None = None) -> Iterator[None]:
    """Inside, the first SIGTERM is noted (`is_requested`) and a second one ends the process at once.

    If a process of several is still there `give_up_seconds` (STOP_SECONDS) after the first, a thread prints where all
    threads are and ends the process with exit code 75: a stuck process must not hold up the job. It takes a thread
    because a main thread that waits for a device runs no signal handler. A `listening` inside another does nothing.
    """
    global _is_listening
    if _is_listening:
        yield
        return
    limit = STOP_SECONDS if give_up_seconds is None else give_up_seconds
    inbox, outbox = socket.socketpair()
    outbox.setblocking(False)
    handler_before = signal.signal(signal.SIGTERM, lambda signum, frame: _requested.set())
    wakeup_before = signal.set_wakeup_fd(outbox.fileno(), warn_on_full_buffer=False)
    watcher = threading.Thread(target=_watch, args=(inbox, limit), name="sigterm", daemon=True)
    watcher.start()
    _is_listening = True
    try:
        yield
    finally:
        _is_listening = False
        signal.set_wakeup_fd(wakeup_before)
        signal.signal(signal.SIGTERM, handler_before)
        outbox.close()
        watcher.join()
        inbox.close()
        _requested.clear()


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
        """Votes, and says whether to stop now."""
        if jax.process_count() == 1:
            return is_requested()
        before, self._pending = self._pending, self._cast()
        return before is not None and bool(before)

    def last_vote(self) -> bool:
        """Votes and waits for the answer."""
        if jax.process_count() == 1:
            return is_requested()
        return bool(self._cast())

    def _cast(self) -> jax.Array:
        own = np.full(1, is_requested(), np.int32)
        devices = self._sharding.mesh.devices.size
        return self._count(jax.make_array_from_callback((devices,), self._sharding, lambda index: own))


def _watch(inbox: socket.socket, limit: float) -> None:
    """Reads the numbers of signals as they come, until the other end is closed."""
    count = 0
    while True:
        try:
            received = inbox.recv(1)
        except TimeoutError:
            _give_up(limit)
        if not received:
            return
        if received[0] != signal.SIGTERM:
            continue
        count += 1
        if count > 1:
            os._exit(128 + signal.SIGTERM)
        _requested.set()
        if jax.process_count() > 1:
            inbox.settimeout(limit)


def _give_up(limit: float) -> None:
    print(f"not stopped within {limit:g} s of SIGTERM; another process may be stuck or gone:", file=sys.stderr)
    faulthandler.dump_traceback(all_threads=True)
    sys.stderr.flush()
    os._exit(Preempted.exit_code)
