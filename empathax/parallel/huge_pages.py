"""Memory in pages of 2 MiB instead of 4 KiB: a training step on CPU touches gigabytes of fresh memory each time."""

from __future__ import annotations

import os
import sys

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
