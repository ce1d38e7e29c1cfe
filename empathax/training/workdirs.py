"""Directories of runs: one run works in each, and nothing but a run's is ever emptied."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import threading
import time
from pathlib import Path

from empathax.errors import CheckpointError, ConfigError

LOCK = ".lock"
BEAT = 10.0  # seconds between two touches of a lock
PATIENCE = 90.0  # seconds after which one that is not touched is nobody's; NFS may show a touch a minute late
_locks: dict[Path, int] = {}  # held until they are released, or the process ends
_toucher: threading.Thread | None = None


def open_workdir(workdir: Path, overwrite: bool) -> None:
    """Makes `workdir`, or finds it to be an earlier run's; nothing of that run is touched without `overwrite`.

    Raises a ConfigError if it cannot be written or holds something else, a CheckpointError if another process works in
    it.
    """
    is_run = (workdir / "config.json").exists()
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        if not is_run and any(entry.name != LOCK for entry in workdir.iterdir()):
            raise ConfigError(f"--workdir={workdir} holds files of something else; choose an empty or a new directory")
        _lock(workdir)
        if overwrite and is_run:  # only ever a directory that a run has made
            for entry in workdir.iterdir():
                _remove(entry)
        probe = workdir / ".writable"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise ConfigError(
            f"--workdir={workdir} cannot be written: {error.strerror}; choose another directory"
        ) from error


def release() -> None:
    """Gives up the directories that this process has opened, for other processes."""
    while _locks:
        os.close(_locks.popitem()[1])


def _lock(workdir: Path) -> None:
    """A lock of the operating system's, which ends with this process however that ends. Over NFS the lock of a machine
    that is gone may stay: whoever holds one touches it, and one that nobody touches any more is taken over."""
    place = workdir.resolve()
    if place in _locks and _is_same(_locks[place], place / LOCK):
        return
    descriptor = _locked(place / LOCK)
    if descriptor is None and _is_touched(place / LOCK):
        raise CheckpointError(
            f"--workdir={workdir}: another process trains there; wait for it, or choose another directory"
        )
    if descriptor is None:
        (place / LOCK).unlink(missing_ok=True)
        descriptor = _locked(place / LOCK)
    if descriptor is not None:
        _locks[place] = descriptor
        _start_touching()


def _locked(path: Path) -> int | None:
    """The open file with our lock on it, or without one where the file system knows none; None if another has it."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        os.close(descriptor)
        return None
    except OSError:
        pass
    return descriptor


def _is_touched(path: Path) -> bool:
    """Whether somebody touches `path` within PATIENCE seconds."""
    first, deadline = path.stat().st_mtime_ns, time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        time.sleep(min(BEAT, 1.0))
        if path.stat().st_mtime_ns != first:
            return True
    return False


def _start_touching() -> None:
    global _toucher
    if _toucher is None:
        _toucher = threading.Thread(target=_touch_for_ever, name="workdir lock", daemon=True)
        _toucher.start()


def _touch_for_ever() -> None:
    while True:
        time.sleep(BEAT)
        for descriptor in list(_locks.values()):
            with contextlib.suppress(OSError):
                os.utime(descriptor)


def _is_same(descriptor: int, path: Path) -> bool:
    """Whether `path` still is the file that was opened: the directory may have been removed and made again."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except OSError:
        return False


def _remove(entry: Path) -> None:
    if entry.name == LOCK:
        return
    if entry.is_dir() and not entry.is_symlink():
        shutil.rmtree(entry)
    else:
        entry.unlink()
