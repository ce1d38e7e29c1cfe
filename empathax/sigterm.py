"""SIGTERM from a command's first line to its last: at once where nothing would be lost, else when it has been saved.

Imports nothing heavy, so that a command can listen before it imports anything else.
"""

from __future__ import annotations

import faulthandler
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

EXIT_CODE = 75  # run the same command again to go on
STOP_SECONDS = 600.0  # from SIGTERM until a process of several gives up waiting for the others
_requested = threading.Event()
_held = threading.Event()
_is_listening = False
_give_up_seconds: float | None = None


def is_requested() -> bool:
    """True once this process got SIGTERM while it was held."""
    return _requested.is_set()


def hold(give_up_seconds: float | None = None) -> None:
    """From now on there is something to save: SIGTERM is noted (`is_requested`) and waits for `release`.

    If the process is still there `give_up_seconds` after it, a thread prints where all threads are and ends the process
    with exit code 75: a stuck process must not hold up the job.
    """
    global _give_up_seconds
    _give_up_seconds = give_up_seconds or _give_up_seconds
    _held.set()


def release() -> None:
    """From now on nothing would be lost: SIGTERM ends the process at once, with exit code 75."""
    _held.clear()


def block_until_listening() -> None:
    """Keeps a SIGTERM that comes from now on until `listening`, also over an exec of this process."""
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])


def ignore() -> None:
    """For the end of a command whose exit code is known: SIGTERM changes nothing any more."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


@contextmanager
def listening() -> Iterator[None]:
    """Inside, the first SIGTERM does what `hold` and `release` say, and a second one ends the process at once.

    It takes a thread, because a main thread that imports, compiles or waits for a device runs no signal handler. A
    `listening` inside another does nothing, nor does one outside the main thread.
    """
    global _is_listening, _give_up_seconds
    if _is_listening or threading.current_thread() is not threading.main_thread():
        yield
        return
    inbox, outbox = socket.socketpair()
    outbox.setblocking(False)
    handler_before = signal.signal(signal.SIGTERM, _to_the_watcher)
    wakeup_before = signal.set_wakeup_fd(outbox.fileno(), warn_on_full_buffer=False)
    watcher = threading.Thread(target=_watch, args=(inbox,), name="sigterm", daemon=True)
    watcher.start()
    _is_listening = True
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])
    try:
        yield
    finally:
        _is_listening, _give_up_seconds = False, None
        signal.set_wakeup_fd(wakeup_before)
        signal.signal(signal.SIGTERM, handler_before)
        outbox.close()
        watcher.join()
        inbox.close()
        _requested.clear()
        _held.clear()


def listen_again() -> None:
    """Inside `listening`: takes SIGTERM back from a library that has taken it, as jax.distributed does."""
    if _is_listening:
        signal.signal(signal.SIGTERM, _to_the_watcher)


def _to_the_watcher(signum: int, frame: object) -> None:
    """The number has gone through the socket; a main thread that runs Python knows at once."""
    if _held.is_set():
        _requested.set()


def _watch(inbox: socket.socket) -> None:
    """Reads the numbers of signals as they come, until the other end is closed."""
    count = 0
    while True:
        try:
            received = inbox.recv(1)
        except TimeoutError:
            _give_up()
        if not received:
            return
        if received[0] != signal.SIGTERM:
            continue
        count += 1
        if count > 1:
            os._exit(128 + signal.SIGTERM)
        _requested.set()
        if not _held.is_set():
            os.write(2, b"stopped by SIGTERM; nothing was lost: run the same command again to go on\n")
            os._exit(EXIT_CODE)
        if _give_up_seconds:
            inbox.settimeout(_give_up_seconds)


def _give_up() -> None:
    limit = _give_up_seconds or 0.0
    print(f"not stopped within {limit:g} s of SIGTERM; another process may be stuck or gone:", file=sys.stderr)
    faulthandler.dump_traceback(all_threads=True)
    sys.stderr.flush()
    os._exit(EXIT_CODE)
