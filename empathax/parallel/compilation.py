"""Where compiled programs are kept, so that a run that starts again need not compile again."""

from __future__ import annotations

import os
from pathlib import Path

import jax

OPTION = "jax_compilation_cache_dir"


def use_compilation_cache(setting: str) -> str:
    """Turns JAX's persistent compilation cache on or off; returns its directory, "" if it is off.

    `setting` is a directory, "" (off) or "auto": the user's cache directory on accelerators, off on CPU, whose programs
    are for one kind of processor and may not run on another machine that sees the same home. A directory that is
    already set (JAX_COMPILATION_CACHE_DIR) stays.
    """
    already = getattr(jax.config, OPTION)
    if already:
        return already
    directory = _default() if setting == "auto" and jax.default_backend() != "cpu" else setting
    if directory in ("", "auto"):
        return ""
    path = str(Path(directory).expanduser())
    jax.config.update(OPTION, path)
    return path


def _default() -> str:
    return str(Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "empathax" / "compilation")
