"""What the processes of a job send each other, errors that all of them raise, and what they must have in common.

Messages go through the coordinator's store, so that processes can talk before jax looks for devices.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import jax

import empathax
from empathax import errors
from empathax.config import Config, to_dict
from empathax.config.fields import flat
from empathax.errors import ConfigError, EmpathaxError, raise_all
from empathax.parallel.processes import COORDINATOR_TIMEOUT_MS, coordinator, is_leader, num_processes, process_number

_HEADING = "the processes of this job differ; start all of them with the same code, settings and files"
_VISIBLE_SECONDS = 60.0  # network file systems show a new file to other hosts after a while
_exchanges = itertools.count()  # the same number on every process, as all of them exchange in the same order


def exchange_via_leader(message: str, decide: Callable[[Sequence[str]], str]) -> str:
    """What `decide` returns for the messages of all processes, in their order; the same on every process.

    It runs on process 0 only.
    """
    if num_processes() == 1:
        return decide([message])
    client, key = coordinator(), f"empathax/{next(_exchanges)}"
    if is_leader():
        timeout = COORDINATOR_TIMEOUT_MS
        others = [client.blocking_key_value_get(f"{key}/{i}", timeout) for i in range(1, num_processes())]
        answer = decide([message, *others])
        client.key_value_set(f"{key}/answer", answer)
        return answer
    client.key_value_set(f"{key}/{process_number()}", message)
    return client.blocking_key_value_get(f"{key}/answer", COORDINATOR_TIMEOUT_MS)


@contextmanager
def fail_together() -> Iterator[None]:
    """All processes get through the block, or none: an EmpathaxError of one is raised by all, with its number."""
    error: EmpathaxError | None = None
    try:
        yield
    except EmpathaxError as found:
        error = found
    if num_processes() > 1:
        answer = exchange_via_leader(json.dumps([_kind(error), str(error)]) if error else "", _first_error)
        if answer:
            kind, message = json.loads(answer)
            raise getattr(errors, kind)(message) from error
    if error:
        raise error


def first_error(message: str) -> str:
    """The message of the first process that has one ("": none), on all of them."""
    return exchange_via_leader(message, lambda messages: next((one for one in messages if one), ""))


def from_leader(compute: Callable[[], Any]) -> Any:
    """What `compute` returns on process 0, the only one that runs it, on all processes. A small JSON value.

    An EmpathaxError that it raises is raised by all.
    """
    if num_processes() == 1:
        return compute()
    message = ""
    with fail_together():
        if is_leader():
            message = json.dumps(compute())
    return json.loads(exchange_via_leader(message, lambda messages: messages[0]))


def check_agreement(facts: Mapping[str, Any]) -> None:
    """Raises one ConfigError, on every process, that says which process differs from process 0 and in what."""
    problems = json.loads(exchange_via_leader(json.dumps(facts, sort_keys=True, default=str), _differences))
    raise_all(ConfigError, _HEADING, problems)


def check_code_and_settings(configs: Mapping[str, Config]) -> None:
    """Compares version and source of the package, versions of jax, all settings, then devices. `configs` by name."""
    if num_processes() == 1:
        return
    settings = {name: to_dict(config) for name, config in configs.items()}
    text = json.dumps(settings, sort_keys=True, default=str)
    facts: dict[str, Any] = {
        "empathax version": _version("empathax"),
        "digest of empathax's source": source_digest(Path(empathax.__path__[0])),
        "jax version": _version("jax"),
        "jaxlib version": _version("jaxlib"),
        "digest of the settings": hashlib.sha256(text.encode()).hexdigest()[:16],
    }
    for name, values in settings.items():
        facts |= flat(values, f"{name}." if name else "")
    check_agreement(facts)
    # now, not before: jax finds its devices together with the other processes
    devices = jax.local_devices()
    check_agreement({"number of devices": len(devices), "kind of devices": devices[0].device_kind})


def source_digest(package: Path) -> str:
    """A digest of names and contents of all Python files below `package`."""
    digest = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        content = path.read_bytes()
        digest.update(f"{path.relative_to(package).as_posix()}:{len(content)}\0".encode() + content)
    return digest.hexdigest()[:16]


def check_shared_directory(directory: Path) -> None:
    """Raises a ConfigError, on every process, unless all of them see the same directory."""
    if num_processes() == 1:
        return
    mark = directory / str(from_leader(lambda: _new_file(directory)))
    deadline = time.monotonic() + _VISIBLE_SECONDS
    try:
        with fail_together():
            while mark.name not in {path.name for path in directory.glob(".seen_*")}:
                if time.monotonic() > deadline:
                    raise ConfigError(
                        f"{directory} is not the directory that process 0 has under this name: it must lie on a file "
                        "system that all processes share"
                    )
                time.sleep(0.2)
    finally:
        if is_leader():
            mark.unlink()


def _kind(error: EmpathaxError) -> str:
    """The name of the class in errors.py to raise an error by again: its own, or the nearest base class's."""
    return next(kind.__name__ for kind in type(error).__mro__ if getattr(errors, kind.__name__, None) is kind)


def _first_error(messages: Sequence[str]) -> str:
    """The first error among `messages` ("" from a process without one), with the numbers of those that met it."""
    failed = [number for number, message in enumerate(messages) if message]
    if not failed:
        return ""
    first = messages[failed[0]]
    alike = [number for number in failed if messages[number] == first]
    if len(alike) == len(messages):
        return first
    kind, text = json.loads(first)
    return json.dumps([kind, f"process {', '.join(map(str, alike))} of {len(messages)}: {text}"])


def _differences(messages: Sequence[str]) -> str:
    """One line for each process and fact that is not process 0's."""
    leader, *others = (json.loads(message) for message in messages)
    return json.dumps(
        [
            f"process {number}: {name} is {facts.get(name)!r}, process 0 has {leader.get(name)!r}"
            for number, facts in enumerate(others, start=1)
            for name in leader | facts
            if facts.get(name) != leader.get(name)
        ]
    )


def _new_file(directory: Path) -> str:
    name = f".seen_{secrets.token_hex(8)}"
    (directory / name).touch()
    return name


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:  # run from a checkout
        return "not installed"
