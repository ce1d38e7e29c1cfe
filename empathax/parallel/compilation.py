"""Where compiled programs are kept, so that a run that starts again need not compile again."""

from __future__ import annotations

import os
from pathlib import Path

import jax


def use_compilation_cache(setting: str) -> str:
    """Turns JAX's persistent compilation cache on or off; returns its directory, "" if it is off.

    `setting` is a directory, "" (off) or "auto": the user's cache directory on accelerators, off on CPU, whose programs
    are for one kind of processor and may not run on another machine that sees the same home. A directory that is
    already set (JAX_COMPILATION_CACHE_DIR) stays.
    """
    already = jax.config.jax_compilation_cache_dir
    if already:
        return already
    directory = _default() if setting == "auto" and jax.default_backend() != "cpu" else setting
    if directory in ("", "auto"):
        return ""
    jax.config.update("jax_compilation_cache_dir", str(Path(directory).expanduser()))
    return jax.config.jax_compilation_cache_dir


def _default() -> str:
    return str(Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "empathax" / "compilation")
