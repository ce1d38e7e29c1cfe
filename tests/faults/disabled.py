"""A test-only seam: replaces one detector of the package, in a pytest process and in those that its tests start.

EMPATHAX_DISABLED=MODULE:ATTRIBUTE=REPLACEMENT names it, with a function of `REPLACEMENTS`. pytest loads this file with
`-p tests.faults.disabled`; child/sitecustomize.py does the same in every other Python. The attribute is replaced as
soon as its module has been run, before any other module can take it from there.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.abc
import importlib.machinery
import importlib.util
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

VARIABLE = "EMPATHAX_DISABLED"
Replacement = Callable[[Any], Any]  # what stood there -> what stands there now


def _returning(value: Callable[[], Any]) -> Replacement:
    return lambda original: lambda *args, **kwargs: value()


def _first_argument(original: Any) -> Any:
    return lambda first, *rest, **named: first


def _always_finite(original: Any) -> Any:
    """For the gate of a step: every update counts as finite."""
    import jax.numpy as jnp

    return lambda finite, *rest: original(jnp.array(True), *rest)


def _true_in_graph(original: Any) -> Any:
    import jax.numpy as jnp

    return lambda *args: jnp.array(True)


def _all_ones(original: Any) -> Any:
    import numpy as np

    return lambda size, dimension, multiplier: np.ones(size, np.uint32)


def _open_context(original: Any) -> Any:
    @contextlib.contextmanager
    def context(*args: Any, **kwargs: Any) -> Iterator[None]:
        yield

    return context


def _final_directory(original: Any) -> Any:
    """For `whole_directory`: files are written where they are to stand."""

    @contextlib.contextmanager
    def context(path: Any) -> Iterator[Any]:
        path.mkdir(parents=True, exist_ok=True)
        yield path

    return context


def _from_the_start(original: Any) -> Any:
    """For `Loader.iterate`: a resumed run reads from the first step on."""
    return lambda self, start=0, stop=None: original(self, 0, None if stop is None else stop - start)


def _without_seed(original: Any) -> Any:
    """For `Loader._ordered`: an order of its own each time."""
    import random

    return lambda self, seed, shuffle: original(self, random.getrandbits(30), shuffle)


def _without_streaks(original: Any) -> Any:
    """For `_opened` of checkpoint.py: each step is taken for one outside a streak of skipped updates."""
    import dataclasses

    def opened(directory: Any) -> Any:
        step = original(directory)
        return step and dataclasses.replace(step, meta={**step.meta, "nonfinite_streak": 0})

    return opened


def _unread(original: Any) -> Any:
    """For `_read` of loader.py: errors go on as they are."""
    return lambda rows, row, ref_logps: rows[row]


def _raising_at_once(original: Any) -> Any:
    """For what writes and is to survive a full disk: the error goes on."""

    def raises(*args: Any, **kwargs: Any) -> Any:
        raise OSError(28, "No space left on device")

    return raises


def _plain_template(original: Any) -> Any:
    import jinja2

    return jinja2.Environment


def _patient_supervisor(original: str) -> str:
    """For supervise.sh: a copy of launch/ whose supervisor gives up later than it is told to."""
    import shutil
    import tempfile

    place = Path(shutil.copytree(Path(original).parent, Path(tempfile.mkdtemp()) / "launch"))
    script = place / Path(original).name
    text, limit = script.read_text(), "((fruitless >= max_restarts))"
    assert limit in text
    script.write_text(text.replace(limit, "((fruitless >= max_restarts + 5))"))
    return str(script)


def _with_an_eval(original: Any) -> Any:
    """For `ast.parse`: every file runs code from data."""

    def parse(source: Any, *rest: Any, **named: Any) -> Any:
        is_plain = isinstance(source, str) and not rest and not named
        return original(source + "\neval(input())\n" if is_plain else source, *rest, **named)

    return parse


REPLACEMENTS: dict[str, Replacement] = {
    "nothing": _returning(lambda: None),
    "false": _returning(lambda: False),
    "no text": _returning(str),
    "empty list": _returning(list),
    "empty dict": _returning(dict),
    "empty JSON list": _returning(lambda: "[]"),
    "zero": _returning(lambda: 0),
    "first argument": _first_argument,
    "text unchanged": lambda original: lambda text, limit=0: text,
    "second argument": lambda original: lambda first, second, *rest, **named: second,
    "always finite": _always_finite,
    "true in the graph": _true_in_graph,
    "all ones": _all_ones,
    "open context": _open_context,
    "final directory": _final_directory,
    "from the start": _from_the_start,
    "without a seed": _without_seed,
    "without streaks": _without_streaks,
    "unread": _unread,
    "raises": _raising_at_once,
    "plain Jinja": _plain_template,
    "patient supervisor": _patient_supervisor,
    "with an eval": _with_an_eval,
}


def parse(text: str) -> tuple[str, str, str]:
    """(module, attribute, replacement) of MODULE:ATTRIBUTE=REPLACEMENT."""
    place, _, replacement = text.partition("=")
    module, _, attribute = place.partition(":")
    return module, attribute, replacement


def replace(module: ModuleType, attribute: str, replacement: str) -> None:
    """Puts the replacement in place of `attribute` of `module` ("name" or "Class.name"). KeyError if there is none."""
    *path, name = attribute.split(".")
    owner: Any = functools.reduce(getattr, path, module)
    stored = vars(owner)[name]
    original = stored.fget if isinstance(stored, property) else stored
    replaced = REPLACEMENTS[replacement](original)
    setattr(owner, name, property(replaced) if isinstance(stored, property) else replaced)


class _Finder(importlib.abc.MetaPathFinder):
    """Finds the module as everybody else does, and replaces the attribute once it has been run."""

    def __init__(self, module: str, attribute: str, replacement: str) -> None:
        self._module, self._rest = module, (attribute, replacement)

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != self._module:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        assert spec is not None
        assert spec.loader is not None
        run = spec.loader.exec_module

        def run_and_replace(module: ModuleType) -> None:
            run(module)
            replace(module, *self._rest)

        spec.loader.exec_module = run_and_replace  # type: ignore[method-assign]
        return spec


def install(text: str) -> None:
    """Replaces what `text` names as soon as it is there."""
    module, attribute, replacement = parse(text)
    if module in sys.modules:
        replace(sys.modules[module], attribute, replacement)
    else:
        sys.meta_path.insert(0, _Finder(module, attribute, replacement))


if os.environ.get(VARIABLE):
    install(os.environ[VARIABLE])
    if (child := str(Path(__file__).parent / "child")) not in os.environ.get("PYTHONPATH", ""):
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (child, os.environ.get("PYTHONPATH"))))
