"""The process that compiles: a request in as JSON on stdin, progress and the plan out as lines of JSON on stdout."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from functools import partial
from typing import Any

from empathax.config import Config, from_config_dict
from empathax.errors import ConfigError, EmpathaxError

MARK = "empathax-plan "  # before each line of ours: compilers write on stdout too


@dataclass(frozen=True)
class Request:
    """What a plan is made of; plain values."""

    config: dict[str, Any]
    stage: str
    topology: str  # with --search perhaps a kind alone
    parts: tuple[str, ...]
    search: bool = False
    model_config: str = ""


def answer(request: Request) -> dict[str, Any]:
    """The plan that was asked for. Raises EmpathaxError for what cannot be planned."""
    from empathax.config.hardware import parse_hardware
    from empathax.planning.compile import Subject, compile_plan
    from empathax.planning.model import find_model
    from empathax.planning.rows import check_enough_rows, find_rows

    config: Config = from_config_dict(request.config)
    model = find_model(config.model.path, request.model_config)
    rows, origin = find_rows(config, request.stage, model)
    subject = Subject(config, request.stage, model, rows, origin)
    if request.search:
        return _search(subject, request)
    check_enough_rows(config, request.stage, rows)
    return compile_plan(subject, parse_hardware(request.topology), request.parts, _say)


def _search(subject: Any, request: Request) -> dict[str, Any]:
    """The plan of what was found, or of the last try where nothing fits, with all that was tried."""
    from empathax.config.hardware import parse_hardware, smaller_to_larger
    from empathax.planning.compile import compile_plan
    from empathax.planning.search import largest_rows, smallest_topology

    attempt = partial(compile_plan, parts=("train",), say=_say)
    if ":" in request.topology:
        topology = parse_hardware(request.topology)
        largest, tried = largest_rows(subject, topology, attempt)
        answer: dict[str, Any] = {"largest_rows_per_batch": largest.rows, "is_certain": largest.is_certain}
        fitting = (subject.with_rows_per_batch(largest.rows), topology) if largest.rows else None
    else:
        smallest, tried = smallest_topology(subject, smaller_to_larger(request.topology), attempt)
        answer = {"smallest_topology": str(smallest) if smallest else None}
        fitting = (subject, smallest) if smallest else None
    if fitting and request.parts != ("train",):
        plan = compile_plan(*fitting, request.parts, _say)
    else:
        plan = next((plan for plan in reversed(tried) if plan["fits"]), tried[-1])
    return plan | answer | {"searched": _tried(tried)}


def _tried(plans: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [
        {name: plan[name] for name in ("topology", "rows_per_batch", "fits", "compile_seconds")}
        | {"total_bytes": plan["bytes_per_device"]["total"]}
        for plan in plans
    ]


def _say(text: str) -> None:
    _write({"progress": text})


def _write(message: dict[str, Any]) -> None:
    print(MARK + json.dumps(message), flush=True)


def main() -> None:
    """Reads one Request from stdin; writes {"plan"} or {"error", "exit_code"} as the last line."""
    import jax

    values = json.load(sys.stdin)
    request = Request(**{**values, "parts": tuple(values["parts"])})
    try:
        _write({"plan": answer(request)})
    except EmpathaxError as error:
        _write({"error": str(error), "exit_code": error.exit_code})
    except jax.errors.JaxRuntimeError as error:
        reason = " ".join(str(error).split())[:600]
        _write({"error": f"the compiler refused the step: {reason}", "exit_code": ConfigError.exit_code})


if __name__ == "__main__":
    main()
