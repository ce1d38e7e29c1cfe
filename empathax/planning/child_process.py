"""A plan is compiled in a process of its own, whose environment is set for the hardware: both ends of the pipe to it.

The parent calls `run_plan`. The child, `python -m empathax.planning.child_process`, reads a request as JSON from stdin;
it writes progress and the plan as lines of JSON to stdout. Its errors are raised again by the parent.
"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import IO, Any

from empathax.config import Config, from_config_dict
from empathax.config.hardware import parse_hardware, smaller_to_larger
from empathax.errors import ConfigError, EmpathaxError
from empathax.planning.topology import child_environment

PARTS = ("train", "reference", "eval", "decode")
_MARK = "empathax-plan "  # before each line of ours: compilers write to stdout too
_ERRORS = {kind.exit_code: kind for kind in EmpathaxError.__subclasses__()}


@dataclass(frozen=True)
class Request:
    """What to plan, in plain values."""

    config: dict[str, Any]
    stage: str
    topology: str  # with `search` perhaps a kind alone
    parts: tuple[str, ...]
    search: bool = False
    model_config: str = ""


def run_plan(request: Request, say: Callable[[str], None]) -> dict[str, Any]:
    """The plan for `request`, made in a child process; `say` gets a line for each step of the work.

    Raises the EmpathaxError that the child met, or a ConfigError that says what is not installed or how it ended.
    """
    is_kind = ":" not in request.topology
    topology = smaller_to_larger(request.topology)[-1] if is_kind else parse_hardware(request.topology)
    environment = child_environment(topology.kind, topology.num_devices, os.environ)
    command = [sys.executable, "-m", "empathax.planning.child_process"]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with tempfile.TemporaryFile("w+", errors="replace") as log:
        with subprocess.Popen(command, stderr=log, env=environment, **pipes) as child:
            try:
                message = _last_message(child, request, say)
            except BaseException:  # Ctrl-C above all: the compiler would go on for minutes
                child.kill()
                raise
        if "plan" in message:
            return message["plan"]
        if "error" in message:
            raise _ERRORS.get(message["exit_code"], ConfigError)(message["error"])
        raise ConfigError(_how_it_ended(child.returncode, log))


def _last_message(child: subprocess.Popen[str], request: Request, say: Callable[[str], None]) -> dict[str, Any]:
    """Sends the request, passes progress on; the last message, {} if the child wrote none."""
    assert child.stdin is not None
    assert child.stdout is not None
    message: dict[str, Any] = {}
    try:
        json.dump(dataclasses.asdict(request), child.stdin)
        child.stdin.close()
    except BrokenPipeError:
        return message
    for line in child.stdout:
        if line.startswith(_MARK):
            message = json.loads(line.removeprefix(_MARK))
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


def main() -> None:
    """The child: reads one Request from stdin; the last line that it writes has "plan", or "error" and "exit_code"."""
    import jax

    values = json.load(sys.stdin)
    request = Request(**{**values, "parts": tuple(values["parts"])})
    try:
        _write({"plan": _plan(request)})
    except EmpathaxError as error:
        _write({"error": str(error), "exit_code": error.exit_code})
    except jax.errors.JaxRuntimeError as error:
        reason = " ".join(str(error).split())[:600]
        _write({"error": f"the compiler refused the step: {reason}", "exit_code": ConfigError.exit_code})


def _plan(request: Request) -> dict[str, Any]:
    """The plan that was asked for. Raises EmpathaxError for what cannot be planned."""
    from empathax.planning.compile import Subject, compile_plan
    from empathax.planning.model import find_model
    from empathax.planning.rows import check_enough_rows, find_rows

    config: Config = from_config_dict(request.config)
    model = find_model(config.model.path, request.model_config)
    rows, origin = find_rows(config, request.stage, model)
    subject = Subject(config, request.stage, model, rows, origin)
    if request.search:
        return _searched_plan(subject, request)
    check_enough_rows(config, request.stage, rows)
    return compile_plan(subject, parse_hardware(request.topology), request.parts, _say)


def _searched_plan(subject: Any, request: Request) -> dict[str, Any]:
    """The plan of what was found, or of the last attempt where nothing fits, with all attempts."""
    from empathax.planning.compile import compile_plan
    from empathax.planning.search import largest_rows, smallest_topology

    attempt = partial(compile_plan, parts=("train",), say=_say)
    if ":" in request.topology:
        topology = parse_hardware(request.topology)
        largest, tried = largest_rows(subject, topology, attempt)
        found: dict[str, Any] = {"largest_rows_per_batch": largest.rows, "is_certain": largest.is_certain}
        fitting = (subject.with_rows_per_batch(largest.rows), topology) if largest.rows else None
    else:
        smallest, tried = smallest_topology(subject, smaller_to_larger(request.topology), attempt)
        found = {"smallest_topology": str(smallest) if smallest else None}
        fitting = (subject, smallest) if smallest else None
    if fitting and request.parts != ("train",):
        plan = compile_plan(*fitting, request.parts, _say)
    else:
        plan = next((plan for plan in reversed(tried) if plan["fits"]), tried[-1])
    attempts = [
        {name: plan[name] for name in ("topology", "rows_per_batch", "fits", "compile_seconds")}
        | {"total_bytes": plan["bytes_per_device"]["total"]}
        for plan in tried
    ]
    return plan | found | {"searched": attempts}


def _say(text: str) -> None:
    _write({"progress": text})


def _write(message: dict[str, Any]) -> None:
    print(_MARK + json.dumps(message), flush=True)


if __name__ == "__main__":
    main()
