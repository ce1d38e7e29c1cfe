"""This machine: memory in large pages, and where compiled programs are kept."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import jax

TUNABLE = "glibc.malloc.hugetlb"


def restart_with_huge_pages() -> None:
    """Starts this very command again, in the same process, with malloc asking for huge pages; returns if it does now.

    The C library reads the setting once, before Python runs. On Linux only; GLIBC_TUNABLES=glibc.malloc.hugetlb=0 keeps
    it off. Where the kernel or the C library knows no such pages, nothing changes.
    """
    tunables = os.environ.get("GLIBC_TUNABLES", "")
    if sys.platform != "linux" or TUNABLE in tunables:
        return
    os.environ["GLIBC_TUNABLES"] = ":".join(filter(None, (tunables, f"{TUNABLE}=1")))
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


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
