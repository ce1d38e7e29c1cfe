"""Runs planning/worker.py in a process whose environment is set for the hardware; its errors become ours."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from typing import IO, Any

from empathax.errors import ConfigError, EmpathaxError
from empathax.planning.hardware import parse_topology, smaller_to_larger
from empathax.planning.topology import child_environment
from empathax.planning.worker import MARK, Request

_ERRORS = {kind.exit_code: kind for kind in EmpathaxError.__subclasses__()}


def run_plan(request: Request, say: Callable[[str], None]) -> dict[str, Any]:
    """The plan for `request`, made in a child process; `say` hears its progress.

    Raises the EmpathaxError that the child met, or a ConfigError that says what is not installed or how it ended.
    """
    is_kind = ":" not in request.topology
    topology = smaller_to_larger(request.topology)[-1] if is_kind else parse_topology(request.topology)
    environment = child_environment(topology.hardware, topology.num_devices, os.environ)
    command = [sys.executable, "-m", "empathax.planning.worker"]
    with tempfile.TemporaryFile("w+", errors="replace") as log:
        child = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, env=environment, text=True
        )
        assert child.stdin is not None
        assert child.stdout is not None
        try:
            json.dump(dataclasses.asdict(request), child.stdin)
            child.stdin.close()
            message = _last_message(child.stdout, say)
        finally:
            if sys.exc_info()[0] is not None:
                child.kill()
            child.wait()
        if "plan" in message:
            return message["plan"]
        if "error" in message:
            raise _ERRORS.get(message["exit_code"], ConfigError)(message["error"])
        raise ConfigError(_how_it_ended(child.returncode, log))


def _last_message(lines: IO[str], say: Callable[[str], None]) -> dict[str, Any]:
    message: dict[str, Any] = {}
    for line in lines:
        if not line.startswith(MARK):
            continue
        message = json.loads(line.removeprefix(MARK))
        if "progress" in message:
            say(message["progress"])
    return message


def _how_it_ended(code: int, log: IO[str]) -> str:
    log.seek(0)
    last = [line.strip() for line in log if line.strip()][-1:]
    if code == -9:
        return "the compiling process was killed: it probably took more memory than this machine has"
    ended = f"signal {-code}" if code < 0 else f"exit code {code}"
    return f"the compiling process ended with {ended}: {last[0] if last else 'it said nothing'}"
