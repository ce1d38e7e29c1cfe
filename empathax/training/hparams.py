"""The settings by which runs are told apart, for TensorBoard's HParams tab."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from empathax.config import Config, to_dict

Value = bool | float | str
_NAMES = ("name",)  # of the run, not a setting of it


def told_apart(configs: Mapping[str, Config]) -> dict[str, dict[str, Value]]:
    """Each run's values of the settings in which the runs differ; of one run those that are not the defaults."""
    flat = {name: dict(_flat(to_dict(config))) for name, config in configs.items()}
    compared = [*flat.values(), dict(_flat(to_dict(Config())))] if len(flat) == 1 else list(flat.values())
    differing = [key for key in compared[0] if any(values[key] != compared[0][key] for values in compared)]
    return {name: {key: values[key] for key in differing} for name, values in flat.items()}


def _flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Value]]:
    for key, value in settings.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        elif prefix + key not in _NAMES:
            yield prefix + key, ", ".join(map(str, value)) if isinstance(value, tuple | list) else value
