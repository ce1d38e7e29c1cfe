"""What the processes of a job must have in common, compared before anything is done: code, settings, devices, files."""

from __future__ import annotations

import hashlib
import json
import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import jax

import empathax
from empathax.config import Config, to_dict
from empathax.errors import ConfigError, raise_all
from empathax.parallel.exchange import from_leader, num_processes, process_number, settle, together

HEADING = "the processes of this job differ; start all of them with the same code, settings and files"
_SIGHT_SECONDS = 60.0  # network file systems show a new file to other hosts after a while


def check_agreement(facts: Mapping[str, Any]) -> None:
    """Raises one ConfigError, on every process, that says which process differs from process 0 and in what."""
    problems = json.loads(settle(json.dumps(facts, sort_keys=True, default=str), _differences))
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
        with together():
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
