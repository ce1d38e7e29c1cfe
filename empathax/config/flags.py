"""`--config=FILE` and `--config.a.b=VALUE` of a command line as checked settings: one run, or a sweep of several."""

from __future__ import annotations

import re
import runpy
from collections.abc import Mapping, Sequence
from typing import Any

import ml_collections
from absl import flags
from ml_collections import config_flags

from empathax.config.fields import flat, nearest_setting, plain
from empathax.config.options import Config
from empathax.config.read import from_config_dict
from empathax.errors import ConfigError, raise_all

SWEEP = "get_sweep"
_FLAG = re.compile(r"--?config\.([\w.]+)(=|$)")


def load_config(argv: Sequence[str], default: ml_collections.ConfigDict | None = None) -> tuple[Config, list[str]]:
    """Reads `--config=FILE` and `--config.a.b=VALUE` out of a command's arguments (without the program's name).

    Without `--config=FILE` the settings are `default`'s, if it is given. Returns the checked config and the arguments
    that are left. Raises ConfigError for a file that cannot be read, a key that does not exist or a value of the wrong
    type.
    """
    _, source, rest = _read(argv, default)
    return from_config_dict(source), rest


def load_sweep(argv: Sequence[str]) -> tuple[dict[str, Config], list[str]]:
    """The variations of a config file by name, and the arguments that are left; one named "" if the file has no sweep.

    A file with variations defines `get_sweep()` beside `get_config()`: name -> {"a.b": value}, the settings in which
    the variation differs from the file's config and the command line's changes to it. Raises ConfigError as
    `load_config`, and for a sweep of another form.
    """
    path, source, rest = _read(argv)
    variations = _variations(path)
    if variations is None:
        return {"": from_config_dict(source)}, rest
    return {name: from_config_dict(_changed(source, changes, name)) for name, changes in variations.items()}, rest


def _read(
    argv: Sequence[str], default: ml_collections.ConfigDict | None = None
) -> tuple[str, dict[str, Any], list[str]]:
    _check_names(argv)
    argv = _last_of_each(argv)
    values, seen = flags.FlagValues(), ["empathax", *argv]
    is_default = default is not None and not any(argument.lstrip("-").split("=")[0] == "config" for argument in argv)
    if is_default:
        config_flags.DEFINE_config_dict("config", default, flag_values=values, sys_argv=seen)
    else:
        config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=seen)
    try:
        rest = values(seen, known_only=True)[1:]
        source = values.config.to_dict() if is_default or values["config"].present else None
    except (flags.Error, AttributeError, KeyError, OSError, TypeError, ValueError) as error:
        raise ConfigError(f"the --config flags cannot be used: {_said(error)}") from error
    if source is None:
        raise ConfigError("no --config=FILE was given; configs/ holds ready ones, configs/demo.py for example")
    return config_flags.get_config_filename(values["config"]) if not is_default else "", source, rest


def _setting(argument: str) -> str:
    """The dotted name of the setting that a flag is about; "" for other arguments."""
    found = _FLAG.match(argument)
    return found[1] if found else ""


def _check_names(argv: Sequence[str]) -> None:
    """Raises a ConfigError with every flag whose setting does not exist, and what it may stand for."""
    settings = flat(plain(Config()))
    problems = []
    for name in filter(None, map(_setting, argv)):
        if any(other == name or other.startswith(f"{name}.") for other in settings):
            continue
        outer, _, key = name.rpartition(".")
        near = nearest_setting(name, settings)
        if outer in settings:  # a value of its own, such as the user's names and values
            problems.append(f"{name}: give {outer} as a whole, in JSON: --config.{outer}='{{\"{key}\": ...}}'")
        else:
            problems.append(f"unknown key {name}; " + (f"did you mean {near}?" if near else "see config/options.py"))
    raise_all(ConfigError, "the --config flags cannot be used", problems)


def _last_of_each(argv: Sequence[str]) -> list[str]:
    """The arguments without settings that are given again later: the last one holds, also of several names."""
    kept: list[str] = []
    seen: set[str] = set()
    for index in reversed(range(len(argv))):
        name = _setting(argv[index])
        if name in seen and name:
            if "=" not in argv[index] and kept and kept[-1] is argv[index + 1] and not kept[-1].startswith("-"):
                kept.pop()  # its value
            continue
        seen.add(name)
        kept.append(argv[index])
    return kept[::-1]


def _variations(path: str) -> Mapping[str, Mapping[str, Any]] | None:
    get_sweep = runpy.run_path(path).get(SWEEP)
    if get_sweep is None:
        return None
    found = get_sweep()
    is_sweep = isinstance(found, Mapping) and all(isinstance(changes, Mapping) for changes in found.values())
    if not is_sweep or not found or not all(isinstance(name, str) and name.isidentifier() for name in found):
        raise ConfigError(
            f"{path}: {SWEEP}() returned {found!r}: expected variations by name (letters, digits, _), each with the "
            'settings that it changes, such as {"dpo": {"stages": ("dpo",)}}'
        )
    return found


def _changed(source: dict[str, Any], changes: Mapping[str, Any], name: str) -> ml_collections.ConfigDict:
    changed = ml_collections.ConfigDict(source)
    try:
        changed.update_from_flattened_dict(dict(changes))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"{SWEEP}(), variation {name!r}: {_said(error)}") from error
    return changed


def _said(error: object) -> str:
    """An error's own words on one line: str() of a KeyError, which others wrap, is a repr."""
    while isinstance(error, KeyError | AttributeError) and error.args:
        error = error.args[0]
    return " ".join(str(error).split())
