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

from empathax.config.hardware import parse_hardware, smaller_to_larger
from empathax.errors import ConfigError, EmpathaxError
from empathax.planning.topology import child_environment
from empathax.planning.worker import MARK, Request

_ERRORS = {kind.exit_code: kind for kind in EmpathaxError.__subclasses__()}


def run_plan(request: Request, say: Callable[[str], None]) -> dict[str, Any]:
    """The plan for `request`, made in a child process; `say` hears its progress.

    Raises the EmpathaxError that the child met, or a ConfigError that says what is not installed or how it ended.
    """
    is_kind = ":" not in request.topology
    topology = smaller_to_larger(request.topology)[-1] if is_kind else parse_hardware(request.topology)
    environment = child_environment(topology.kind, topology.num_devices, os.environ)
    command = [sys.executable, "-m", "empathax.planning.worker"]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with tempfile.TemporaryFile("w+", errors="replace") as log:
        with subprocess.Popen(command, stderr=log, env=environment, **pipes) as child:
            try:
                message = _conversation(child, request, say)
            except BaseException:  # Ctrl-C above all: the compiler would go on for minutes
                child.kill()
                raise
        if "plan" in message:
            return message["plan"]
        if "error" in message:
            raise _ERRORS.get(message["exit_code"], ConfigError)(message["error"])
        raise ConfigError(_how_it_ended(child.returncode, log))


def _conversation(child: subprocess.Popen[str], request: Request, say: Callable[[str], None]) -> dict[str, Any]:
    """Sends the request, passes progress on; the last message, {} if the child said nothing of ours."""
    assert child.stdin is not None
    assert child.stdout is not None
    message: dict[str, Any] = {}
    try:
        json.dump(dataclasses.asdict(request), child.stdin)
        child.stdin.close()
    except BrokenPipeError:
        return message
    for line in child.stdout:
        if line.startswith(MARK):
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
