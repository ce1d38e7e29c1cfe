"""Directories of runs, known by a mark of their own: one run works in each, and only what a run writes is removed."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import sys
import threading
import time
from collections.abc import Iterable
from fnmatch import fnmatch
from pathlib import Path

from empathax import json_text
from empathax.atomic import whole_file
from empathax.errors import CheckpointError, ConfigError

MARK = ".empathax-run"  # written by nothing else: JSON, the newest step that was saved of each stage
SWEEP_MARK = ".empathax-sweep"
LOCK = ".lock"
WRITTEN = (  # all that a run puts into its directory
    MARK, "config.json", "metrics.jsonl", "evaluations.json", "report.md", "error.log", "rejected_rows_*.txt",
    "checkpoints", "best", "reference", "evaluations", "tensorboard", "profile", ".writable", ".seen_*",
)  # fmt: skip
BEAT = 10.0  # seconds between two touches of a lock
PATIENCE = 90.0  # seconds after which one that is not touched is nobody's; NFS may show a touch a minute late
_locks: dict[Path, int] = {}  # held until they are released, or the process ends
_toucher: threading.Thread | None = None


def open_workdir(workdir: Path, overwrite: bool = False, reads: Iterable[tuple[str, Path]] = ()) -> None:
    """Makes `workdir` a run's directory, or finds it to be one; nothing in it is touched without `overwrite`.

    `overwrite` removes what a run writes, says so first, and leaves all else. `reads` are the paths that the run is
    going to read, by setting: none of them may be among what is removed. Raises a ConfigError if the directory cannot
    be written or holds something else, a CheckpointError if another process works in it.
    """
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        is_run = (workdir / MARK).is_file()
        if not is_run:
            _check_empty(workdir)
        _lock(workdir)
        if overwrite and is_run:
            _empty(workdir, reads)
        (workdir / ".writable").touch()
        (workdir / ".writable").unlink()
        if not (workdir / MARK).is_file():
            _write_mark(workdir, {})
    except OSError as error:
        raise ConfigError(
            f"--workdir={workdir} cannot be written: {error.strerror}; choose another directory"
        ) from error


def open_sweep(workdir: Path) -> None:
    """Makes `workdir` a sweep's, whose runs are directories in it. Raises a ConfigError if it holds something else."""
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        if not (workdir / SWEEP_MARK).is_file():
            _check_empty(workdir, SWEEP_MARK)
            (workdir / SWEEP_MARK).touch()
    except OSError as error:
        raise ConfigError(
            f"--workdir={workdir} cannot be written: {error.strerror}; choose another directory"
        ) from error


def saved_step(workdir: Path, stage: str) -> int | None:
    """The newest step of `stage` that this directory's run has saved, whether it still is there or not; None: none."""
    return _read_mark(workdir).get(stage)


def record_saved(workdir: Path, stage: str, step: int) -> None:
    """Remembers that `step` of `stage` was saved. Raises OSError if the disk refuses."""
    _write_mark(workdir, {**_read_mark(workdir), stage: step})


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


def _check_empty(workdir: Path, mark: str = MARK) -> None:
    others = sorted(entry.name for entry in workdir.iterdir() if entry.name != LOCK)
    if not others:
        return
    shown = ", ".join(others[:3]) + (", ..." if len(others) > 3 else "")
    hint = ""
    if "metrics.jsonl" in others and "checkpoints" in others:
        hint = f"; if an older version has trained there, make it a run's with an empty file {workdir / mark}"
    raise ConfigError(
        f"--workdir={workdir} holds {shown}, and no {mark} says that training made them; choose an empty or a new "
        f"directory{hint}"
    )


def _empty(workdir: Path, reads: Iterable[tuple[str, Path]]) -> None:
    entries = sorted(entry for entry in workdir.iterdir() if entry.name != LOCK)
    ours = [entry for entry in entries if any(fnmatch(entry.name, name) for name in WRITTEN)]
    for setting, path in reads:
        inside = next((entry for entry in ours if path.resolve().is_relative_to(entry.resolve())), None)
        if inside is not None or path.resolve() == workdir.resolve():
            raise ConfigError(
                f"{setting} = {path} is in --workdir={workdir}, whose {inside.name if inside else 'run'} --overwrite "
                "would remove first; choose another --workdir"
            )
    left = [entry.name for entry in entries if entry not in ours]
    print(
        f"--overwrite: removing the run in {workdir}: {', '.join(entry.name for entry in ours)}"
        + (f"; left as it is: {', '.join(left)}" if left else ""),
        file=sys.stderr,
        flush=True,
    )
    for entry in ours:
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()


def _read_mark(workdir: Path) -> dict[str, int]:
    path = workdir / MARK
    try:
        text = path.read_text(encoding="utf-8") if path.exists() else ""
        saved = json_text.parse(text)["saved"] if text.strip() else {}
        return {str(stage): int(step) for stage, step in saved.items()}
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        raise CheckpointError(
            f"{path} cannot be read ({type(error).__name__}): it says which steps this run has saved; bring it back "
            "from a copy, or empty it to go on from what is in checkpoints/"
        ) from error


def _write_mark(workdir: Path, saved: dict[str, int]) -> None:
    with whole_file(workdir / MARK) as file:
        file.write(json.dumps({"format": 1, "saved": saved}) + "\n")
