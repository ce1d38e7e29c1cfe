"""Files and directories that appear whole or not at all, also when the process is killed or the disk is full."""

from __future__ import annotations

import os
import shutil
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO


@contextmanager
def whole_file(path: Path, mode: str = "w") -> Iterator[IO]:
    """A file to write to ("w" for text in UTF-8, "wb" for bytes) that takes `path`'s place at the end of the block.

    An earlier file stays where the block fails. Raises OSError where the disk refuses.
    """
    place = path.absolute()
    encoding = None if "b" in mode else "utf-8"
    with tempfile.NamedTemporaryFile(
        mode, encoding=encoding, dir=place.parent, prefix=f".{path.name}.", delete=False
    ) as file:
        try:
            yield file
            file.flush()
            os.fsync(file.fileno())
            os.chmod(file.name, 0o644)  # a temporary file's own mode keeps other users out
            os.replace(file.name, place)
        except BaseException:
            os.unlink(file.name)
            raise


@contextmanager
def whole_directory(path: Path) -> Iterator[Path]:
    """A directory to write to that becomes `path` (new, or an empty directory) at the end of the block.

    It is removed where the block fails, and what a killed process left of one is when the next begins. Raises OSError
    where the disk refuses.
    """
    target = path.absolute()
    target.parent.mkdir(parents=True, exist_ok=True)
    prefix = f".{target.name}.partial-{socket.gethostname()}-"
    _remove_left(target.parent, prefix)
    partial = Path(tempfile.mkdtemp(prefix=f"{prefix}{os.getpid()}-", dir=target.parent))
    try:
        yield partial
        partial.chmod(0o755)  # mkdtemp's own mode keeps other users out
        os.replace(partial, target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _remove_left(parent: Path, prefix: str) -> None:
    """Removes directories of `prefix` and the number of a process that is gone from this machine."""
    for entry in parent.iterdir():
        process = entry.name.removeprefix(prefix).partition("-")[0]
        if entry.name.startswith(prefix) and process.isdigit() and not _is_running(int(process)):
            shutil.rmtree(entry, ignore_errors=True)


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # another user's
        return True
    return True
