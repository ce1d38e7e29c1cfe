"""Processes of one job on this machine: each with its own virtual CPU devices, found over loopback."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.launch.dry_runs import ROOT
from tests.launch.slurm_cluster import free_ports


def start(
    arguments: Sequence[str],
    log: Path,
    count: int = 2,
    devices: int = 4,
    under: Sequence[str] = (),
    last: tuple[Sequence[str], dict[str, str]] = ((), {}),
    **settings: str,
) -> list[subprocess.Popen]:
    """`count` processes of `python ARGUMENTS`; process N writes to LOG.N.

    `under`: a command that starts each of them, such as a supervisor. The last one also gets the arguments and
    environment in `last`.
    """
    port = free_ports(1)[0]
    common = os.environ | {
        "PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH")))),
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": str(devices),
        "GLIBC_TUNABLES": "glibc.malloc.hugetlb=0",  # else a command starts itself again
    }
    if count > 1:
        common |= {"JAX_COORDINATOR_ADDRESS": f"localhost:{port}", "JAX_NUM_PROCESSES": str(count)}
    started = []
    for number in range(count):
        with Path(f"{log}.{number}").open("w") as output:
            more, environment = last if number == count - 1 else ((), {})
            environment = common | settings | {"JAX_PROCESS_ID": str(number)} | environment
            command = [*under, sys.executable, *arguments, *more]
            started.append(
                subprocess.Popen(command, env=environment, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT)
            )
    return started


def finish(processes: Sequence[subprocess.Popen], seconds: float) -> list[int]:
    """Their exit codes; fails, and ends these very processes, if one is still there after `seconds`."""
    try:
        return [process.wait(timeout=seconds) for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()


def run(arguments: Sequence[str], log: Path, seconds: float = 400, **options: object) -> tuple[list[int], list[str]]:
    """Exit codes and outputs of all processes."""
    processes = start(arguments, log, **options)  # type: ignore[arg-type]
    codes = finish(processes, seconds)
    return codes, [Path(f"{log}.{number}").read_text() for number in range(len(processes))]
