"""`--config=FILE` and `--config.a.b=VALUE` of a command line as checked settings: one run, or a sweep of several."""

from __future__ import annotations

import re
import runpy
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_collections
from absl import flags
from ml_collections import config_flags

from empathax.config.arguments import path_problem
from empathax.config.fields import flat, nearest_setting, plain
from empathax.config.options import Config
from empathax.config.read import from_config_dict
from empathax.errors import ConfigError, raise_all
from empathax.shown import quoted, shown

SWEEP = "get_sweep"
_FLAG = re.compile(r"--?config\.([\w.]+)(=|$)")
_SHOWN_CHARACTERS = 500


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
    file = "" if is_default else _config_file(argv)
    try:
        rest = values(seen, known_only=True)[1:]
        source = values.config.to_dict() if is_default or values["config"].present else None
    except (Exception, SystemExit) as error:  # a config file is a program: it may raise anything
        raise ConfigError(f"the --config flags cannot be used: {_reason(error, argv, file)}") from error
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
    try:
        get_sweep = runpy.run_path(path).get(SWEEP)
        if get_sweep is None:
            return None
        found = get_sweep()
    except (Exception, SystemExit) as error:
        said = _raised_in(error, path) or f"{path}: {type(error).__name__}: {shown(_said(error))}"
        raise ConfigError(f"{SWEEP}() failed: {said}") from error
    is_sweep = isinstance(found, Mapping) and all(isinstance(changes, Mapping) for changes in found.values())
    if not is_sweep or not found or not all(isinstance(name, str) and name.isidentifier() for name in found):
        raise ConfigError(
            f"{path}: {SWEEP}() returned {quoted(found)}: expected variations by name (letters, digits, _), each with "
            'the settings that it changes, such as {"dpo": {"stages": ("dpo",)}}'
        )
    return found


def _changed(source: dict[str, Any], changes: Mapping[str, Any], name: str) -> ml_collections.ConfigDict:
    changed = ml_collections.ConfigDict(source)
    try:
        changed.update_from_flattened_dict(dict(changes))
    except Exception as error:
        raise ConfigError(f"{SWEEP}(), variation {name!r}: {shown(_said(error))}") from error
    return changed


def _said(error: object) -> str:
    """An error's own words on one line: str() of a KeyError, which others wrap, is a repr."""
    while isinstance(error, KeyError | AttributeError) and error.args:
        error = error.args[0]
    return " ".join(str(error).split())


def _config_file(argv: Sequence[str]) -> str:
    """What `--config` names; "" if nothing. Raises a ConfigError if that can be no file."""
    file = ""
    for argument, following in zip(argv, [*argv[1:], ""], strict=False):
        name, is_joined, value = argument.lstrip("-").partition("=")
        if name == "config" and argument.startswith("-"):
            file = value if is_joined else following
    if problem := path_problem(file):
        raise ConfigError(f"--config={quoted(file)} cannot be a path: {problem}")
    if file and Path(file).exists() and not Path(file).is_file():
        raise ConfigError(f"--config={file} is no file: expected one such as configs/demo.py")
    return file


def _reason(error: BaseException, argv: Sequence[str], file: str) -> str:
    """Why the flags cannot be used: what the config file raised and where, or which flag has which fault."""
    if found := _raised_in(error, file):
        return found
    said = _said(error) or type(error).__name__
    for value in (argument.partition("=")[2] for argument in argv):
        if len(value) > _SHOWN_CHARACTERS // 5:
            said = said.replace(value, shown(value, _SHOWN_CHARACTERS // 5))
    is_of_a_flag = isinstance(error, flags.Error | AttributeError | KeyError)
    return shown(said if is_of_a_flag or file in said else f"{file}: {said}", _SHOWN_CHARACTERS)


def _raised_in(error: BaseException | None, file: str) -> str:
    """ "file:line: what was raised" if code of `file` raised `error`, or what it wraps; else ""."""
    while file and error is not None:
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if _is_same(frame.filename, file)]
        if isinstance(error, SyntaxError) and error.filename and Path(error.filename).name == Path(file).name:
            lines.append(error.lineno)
        inner = error.__cause__ or error.__context__
        if lines and not (isinstance(error, flags.Error) and inner):  # a flag's error around the file's own
            return f"{file}:{lines[-1]}: {type(error).__name__}: {shown(_said(error), _SHOWN_CHARACTERS)}"
        error = inner
    return ""


def _is_same(one: str, other: str) -> bool:
    return Path(one).absolute() == Path(other).absolute()
