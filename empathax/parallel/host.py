"""This machine: memory in huge pages, and where compiled programs are kept.

Importing this module does not import jax: a command that asks for huge pages re-executes itself before it does.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from empathax.sigterm import block_until_listening

_HUGE_PAGES = "glibc.malloc.hugetlb"
_CACHE_OPTION = "jax_compilation_cache_dir"


def restart_with_huge_pages() -> None:
    """Re-executes this command, in the same process, with malloc asking for huge pages; returns if it already does.

    The C library reads the setting once, before Python runs. On Linux only; GLIBC_TUNABLES=glibc.malloc.hugetlb=0 keeps
    it off. Where the kernel or the C library has no such pages, nothing changes.
    """
    tunables = os.environ.get("GLIBC_TUNABLES", "")
    if sys.platform != "linux" or _HUGE_PAGES in tunables:
        return
    block_until_listening()
    os.environ["GLIBC_TUNABLES"] = ":".join(filter(None, (tunables, f"{_HUGE_PAGES}=1")))
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def use_compilation_cache(setting: str) -> str:
    """Turns JAX's persistent compilation cache on or off; returns its directory, "" if it is off.

    `setting` is a directory, "" (off) or "auto": the user's cache directory on accelerators, off on CPU, whose programs
    are for one kind of processor and may not run on another machine that shares the home directory. A directory that
    is already set (JAX_COMPILATION_CACHE_DIR) stays.
    """
    import jax

    already = getattr(jax.config, _CACHE_OPTION)
    if already:
        return already
    if setting == "auto":
        caches = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
        setting = "" if jax.default_backend() == "cpu" else f"{caches}/empathax/compilation"
    if not setting:
        return ""
    path = str(Path(setting).expanduser())
    jax.config.update(_CACHE_OPTION, path)
    return path
