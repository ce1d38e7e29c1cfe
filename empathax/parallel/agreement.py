"""What the processes of a job tell each other, and what they must have in common before they start."""

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
from jax._src import distributed as _jax_distributed  # the coordinator's store has no public door

import empathax
from empathax import errors
from empathax.config import Config, to_dict
from empathax.errors import ConfigError, EmpathaxError, raise_all

Judge = Callable[[Sequence[str]], str]  # the words of all processes, in their order -> the answer to all of them
PATIENCE_MS = 24 * 3600 * 1000  # a live process may read its data for long; a dead one is noticed by its heartbeat
_rounds = itertools.count()


def process_number() -> int:
    """This process's number, known before jax looks for devices; 0 for one alone."""
    return _state().process_id


def num_processes() -> int:
    """How many processes the job has, known before jax looks for devices."""
    return _state().num_processes if _state().client else 1


def exchange_via_leader(word: str, judge: Judge) -> str:
    """What `judge`, asked on process 0 only, answers to the words of all processes; the same answer everywhere."""
    if num_processes() == 1:
        return judge([word])
    client, key = _state().client, f"empathax/{next(_rounds)}"
    if process_number() == 0:
        others = [client.blocking_key_value_get(f"{key}/{i}", PATIENCE_MS) for i in range(1, num_processes())]
        answer = judge([word, *others])
        client.key_value_set(f"{key}/answer", answer)
        return answer
    client.key_value_set(f"{key}/{process_number()}", word)
    return client.blocking_key_value_get(f"{key}/answer", PATIENCE_MS)


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


def from_leader(compute: Callable[[], Any]) -> Any:
    """What `compute` returns on process 0, where alone it runs, on all of them. It must be JSON, and not large.

    An EmpathaxError of it is raised by all.
    """
    if num_processes() == 1:
        return compute()
    word = ""
    with fail_together():
        if process_number() == 0:
            word = json.dumps(compute())
    return json.loads(exchange_via_leader(word, lambda words: words[0]))


def _kind(error: EmpathaxError) -> str:
    """The name in errors.py that an error can be raised by again: its own, or that of the class it is a kind of."""
    return next(kind.__name__ for kind in type(error).__mro__ if getattr(errors, kind.__name__, None) is kind)


def _first_error(words: Sequence[str]) -> str:
    failed = [number for number, word in enumerate(words) if word]
    if not failed:
        return ""
    first = words[failed[0]]
    alike = [number for number in failed if words[number] == first]
    if len(alike) == len(words):
        return first
    kind, message = json.loads(first)
    return json.dumps([kind, f"process {', '.join(map(str, alike))} of {len(words)}: {message}"])


def _state() -> Any:
    return _jax_distributed.global_state


HEADING = "the processes of this job differ; start all of them with the same code, settings and files"
_SIGHT_SECONDS = 60.0  # network file systems show a new file to other hosts after a while


def check_agreement(facts: Mapping[str, Any]) -> None:
    """Raises one ConfigError, on every process, that says which process differs from process 0 and in what."""
    problems = json.loads(exchange_via_leader(json.dumps(facts, sort_keys=True, default=str), _differences))
    raise_all(ConfigError, HEADING, problems)


def check_code_and_settings(configs: Mapping[str, Config]) -> None:
    """Compares version and source of the package, versions of jax, all settings, then devices. `configs` by name."""
    if num_processes() == 1:
        return
    settings = {name: to_dict(config) for name, config in configs.items()}
    text = json.dumps(settings, sort_keys=True, default=str)
    check_agreement(
        {
            **code_facts(),
            "digest of the settings": hashlib.sha256(text.encode()).hexdigest()[:16],
            **dict(_flat(settings)),
        }
    )
    # now, not before: jax finds its devices together with the other processes
    devices = jax.local_devices()
    check_agreement({"number of devices": len(devices), "kind of devices": devices[0].device_kind})


def check_shared_directory(directory: Path) -> None:
    """Raises a ConfigError, on every process, unless all of them see the same directory."""
    if num_processes() == 1:
        return
    mark = directory / str(from_leader(lambda: _leave_mark(directory)))
    deadline = time.monotonic() + _SIGHT_SECONDS
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
        if process_number() == 0:
            mark.unlink()


def code_facts() -> dict[str, str]:
    """What code this process runs."""
    return {
        "empathax version": _version("empathax"),
        "digest of empathax's source": source_digest(Path(empathax.__path__[0])),
        "jax version": _version("jax"),
        "jaxlib version": _version("jaxlib"),
    }


def source_digest(package: Path) -> str:
    """A digest of names and contents of all Python files below `package`."""
    digest = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        content = path.read_bytes()
        digest.update(f"{path.relative_to(package).as_posix()}:{len(content)}\0".encode() + content)
    return digest.hexdigest()[:16]


def _differences(words: Sequence[str]) -> str:
    """One line for each process and fact that is not process 0's."""
    leader, *others = (json.loads(word) for word in words)
    return json.dumps(
        [
            f"process {number}: {name} is {facts.get(name)!r}, process 0 has {leader.get(name)!r}"
            for number, facts in enumerate(others, start=1)
            for name in leader | facts
            if facts.get(name) != leader.get(name)
        ]
    )


def _leave_mark(directory: Path) -> str:
    name = f".seen_{secrets.token_hex(8)}"
    (directory / name).touch()
    return name


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}." if key else prefix)
        else:
            yield prefix + key, value


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:  # run from a checkout
        return "not installed"
