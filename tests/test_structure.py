"""The shape of the package: imports point one way, its map is exact, what is declared is used, importing is cheap."""

from __future__ import annotations

import ast
import functools
import re
import subprocess
import sys
import tomllib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "empathax"
FILES = {path.relative_to(PACKAGE).as_posix(): path for path in sorted(PACKAGE.rglob("*.py"))}
MODULES = [name for name in FILES if not name.endswith("__init__.py")]
FOLDERS = {name.rpartition("/")[0] for name in FILES} - {""}

# A module imports from its own room and from earlier lines.
LAYERS = [
    {"shown", "sigterm"},
    {"__init__", "errors", "atomic"},
    {"json_text"},
    {"config"},
    {"models"},
    {"objectives", "data", "parallel"},
    {"evaluation"},
    {"training", "preferences"},
    {"planning"},
]
EVALUATION = [{"generation"}, {"metrics"}, {"classifiers", "judging"}, {"report"}]  # its other files: above or between
COMMANDS = {
    "train",
    "evaluate",
    "score",
    "chat",
    "export",
    "checkpoint",
    "report",
    "train_classifier",
    "plan",
    "build_preferences",
}
# Files that something below the rest of their room imports, or that import something above it. None may be added.
OUT_OF_ORDER = {
    "models/lora/files.py",
    "models/weights/source.py",
    "models/weights/export.py",
}
LIBRARIES = {  # library -> the only places that import it
    "orbax": {"training/checkpoint.py", "models/weights/orbax.py"},
    "ml_collections": {"config/"},
    "transformers": {"models/architecture/", "models/tokenizers/", "models/weights/export.py"},
    "tokenizers": {"models/tokenizers/"},
    "sentencepiece": {"models/"},
    "tensorboard": {"training/tracking.py"},
    "matplotlib": {"evaluation/report/level_plot.py"},
    "scipy": {"preferences/surface_cues.py"},
    "openai": {"evaluation/judging/openai_client.py"},
    "pyphen": {"evaluation/metrics/readability.py"},
    "markupsafe": {"evaluation/report/page.py"},
}
LATE = {"transformers", "datasets", "pyarrow"}  # imported inside functions only: they take seconds
DEVELOPMENT = {"test", "lint", "parity"}  # extras that the package itself never imports
IMPORT_NAMES = {"absl-py": "absl", "orbax-checkpoint": "orbax"}  # others: the name with _ for -
VAGUE_NAMES = {"utils", "util", "helpers", "helper", "common", "misc", "tools", "base", "core", "shared"}
FORBIDDEN_TEXT = ("trust_remote_code=True", "import pickle", "yaml.load(", "torch.load")
FORBIDDEN_CALLS = {"eval", "exec"}

each_file = pytest.mark.parametrize("name", FILES)


@functools.cache
def parsed(name: str) -> ast.Module:
    return ast.parse(FILES[name].read_text())


def imports(nodes: Iterable[ast.AST]) -> Iterator[tuple[str, str]]:
    """(module, name taken from it or "") of every import statement among `nodes`."""
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"relative import of {node.module}"
            yield from ((node.module or "", alias.name) for alias in node.names)


def imported_files(name: str) -> set[str]:
    """The package's files that `name` imports, inside functions too."""
    found = set()
    for module, taken in imports(ast.walk(parsed(name))):
        if module.split(".")[0] == "empathax":
            place = "/".join(module.split(".")[1:])
            spelled = [f"{place}/{taken}.py".lstrip("/"), f"{place}.py", f"{place}/__init__.py".lstrip("/")]
            found.add(next(file for file in spelled if file in FILES))
    return found - {name}


def libraries(nodes: Iterable[ast.AST]) -> set[str]:
    """Top-level names of the third-party packages that are imported."""
    names = {module.split(".")[0] for module, _ in imports(nodes)}
    return names - set(sys.stdlib_module_names) - {"empathax"}


# Imports


def layer_of(part: str, layers: list[set[str]]) -> int:
    return next((number for number, layer in enumerate(layers) if part in layer), len(layers))


def top(name: str) -> str:
    return name.split("/")[0].removesuffix(".py")


@each_file
def test_imports_point_one_way(name):
    own = top(name)
    assert own in COMMANDS.union(*LAYERS), f"{own} has no place in LAYERS"
    for other in map(top, imported_files(name)):
        assert other not in COMMANDS, f"{own} imports the command {other}"
        assert other == own or layer_of(other, LAYERS) < layer_of(own, LAYERS), f"{own} must not import {other}"


@pytest.mark.parametrize("name", [name for name in MODULES if name.startswith("evaluation/") and name.count("/") > 1])
def test_imports_point_one_way_inside_evaluation(name):
    own = name.split("/")[1]
    assert own in set().union(*EVALUATION), f"evaluation/{own}/ has no place in EVALUATION"
    for other in imported_files(name):
        if other.startswith("evaluation/") and other.count("/") > 1:
            room = other.split("/")[1]
            assert room == own or layer_of(room, EVALUATION) < layer_of(own, EVALUATION), f"{name} imports {other}"


def cycle(graph: Mapping[str, set[str]]) -> str:
    """One cycle of a graph in words; "" if there is none."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return " <- ".join(error.args[1])
    return ""


def room_graph(out_of_order: set[str]) -> dict[str, set[str]]:
    """Imports between rooms inside a room (evaluation/report/) and single files; `out_of_order` stand alone."""

    def node(name: str) -> str:
        return name if name.count("/") < 2 or name in out_of_order else name.rpartition("/")[0]

    graph: dict[str, set[str]] = {}
    for name in MODULES:
        graph.setdefault(node(name), set()).update({node(other) for other in imported_files(name)} - {node(name)})
    return graph


def test_no_import_goes_round():
    assert cycle({"a": {"b"}, "b": {"c"}, "c": {"a"}})
    assert cycle({name: imported_files(name) for name in FILES}) == ""
    assert cycle(room_graph(OUT_OF_ORDER)) == ""


@pytest.mark.parametrize("name", sorted(OUT_OF_ORDER))
def test_exceptions_are_still_needed(name):
    is_needed = name in FILES and cycle(room_graph(OUT_OF_ORDER - {name}))
    assert is_needed, f"{name} is in order, or gone: take it out of OUT_OF_ORDER"


@each_file
def test_libraries_stay_in_their_places(name):
    for library in libraries(ast.walk(parsed(name))):
        assert library not in ("torch", "tensorflow")
        places = LIBRARIES.get(library)
        assert places is None or any(name.startswith(place) for place in places), f"{name} imports {library}"
    assert not LATE & libraries(parsed(name).body)


@each_file
def test_nothing_runs_code_from_data(name):
    text = FILES[name].read_text()
    assert not [word for word in FORBIDDEN_TEXT if word in text]
    calls = [
        node.func.id
        for node in ast.walk(parsed(name))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    ]
    assert not FORBIDDEN_CALLS & set(calls)


def test_importing_is_cheap():
    code = (
        "import empathax, sys; print([m for m in ('torch', 'tensorflow', 'jax', 'transformers') if m in sys.modules])"
    )
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
    )


# Names


@pytest.mark.parametrize("name", [*MODULES, *sorted(FOLDERS)])
def test_names_say_what_is_inside(name):
    assert Path(name).stem.strip("_") not in VAGUE_NAMES


# The map: the docstring of empathax/__init__.py. A line is a heading at the left, a folder ("models/attention/: ..."),
# modules ("rope.py, remat.py    what they are"), or the rest of a description.


def read_map(text: str) -> tuple[list[str], set[str]]:
    """(paths of all modules, paths of all folders) that the map names; a folder's lines are indented below it."""
    modules: list[str] = []
    folders: dict[int, str] = {}  # indentation -> folder whose lines are indented more than that
    named = set()
    for line in filter(str.strip, text.splitlines()):
        indent = len(line) - len(line.lstrip())
        folder = re.match(r"\s*([\w/]+)/(?=:|\s|$)", line)
        files = re.match(r"\s*(\w+\.py(?:, \w+\.py)*)(?=\s|$)", line)
        if not (folder or files or indent == 0):
            continue
        folders = {depth: path for depth, path in folders.items() if depth < indent}
        parent = folders[max(folders)] if folders else ""
        if folder:
            folders[indent] = f"{parent}{folder[1]}/"
            named.add(f"{parent}{folder[1]}")
        elif files:
            modules += [f"{parent}{file}" for file in files[1].split(", ")]
    return modules, named


def map_errors(text: str, modules: list[str], folders: set[str]) -> list[str]:
    """What a map says too little, too much or twice about a package of these modules."""
    named, named_folders = read_map(text)
    return [
        *(f"missing: {name}" for name in sorted({*modules, *folders} - {*named, *named_folders})),
        *(f"not there: {name}" for name in sorted({*named, *named_folders} - {*modules, *folders})),
        *(f"twice: {name}" for name, count in Counter(named).items() if count > 1),
    ]


SMALL_MAP = """A package. The map:

Commands
    train.py             runs it
    plan.py              plans it, by means of
                         other things

models/: what a decoder is
    rope.py, remat.py    positions; what is kept
    attention/           one function, several kernels
        flash.py
    samples/             data only
"""
SMALL_MODULES = ["train.py", "plan.py", "models/rope.py", "models/remat.py", "models/attention/flash.py"]
SMALL_FOLDERS = {"models", "models/attention", "models/samples"}


@pytest.mark.parametrize(
    ("change", "errors"),
    [
        (("", ""), []),
        (("    plan.py              plans it, by means of\n", ""), ["missing: plan.py"]),
        (("rope.py, remat.py ", "rope.py "), ["missing: models/remat.py"]),
        (("plans it", "train.py plans it"), []),
        (("        flash.py", "        flash.py\n        tpu.py"), ["not there: models/attention/tpu.py"]),
        (("        flash.py", "    flash.py"), ["missing: models/attention/flash.py", "not there: models/flash.py"]),
        (("    rope.py,", "    train.py, rope.py,"), ["not there: models/train.py"]),
        (("    plan.py  ", "    train.py, plan.py  "), ["twice: train.py"]),
        (("    samples/             data only\n", ""), ["missing: models/samples"]),
        (("    attention/ ", "    kernels/ "), [
            "missing: models/attention", "missing: models/attention/flash.py",
            "not there: models/kernels", "not there: models/kernels/flash.py",
        ]),
        (("models/: what", "models: what"), [
            "missing: models", "missing: models/attention", "missing: models/attention/flash.py",
            "missing: models/remat.py", "missing: models/rope.py", "missing: models/samples",
            "not there: attention", "not there: attention/flash.py", "not there: remat.py", "not there: rope.py",
            "not there: samples",
        ]),
    ],
)  # fmt: skip
def test_a_wrong_map_is_found_out(change, errors):
    assert map_errors(SMALL_MAP.replace(*change), SMALL_MODULES, SMALL_FOLDERS) == errors


def test_full_paths_are_headings_too():
    assert read_map("models/attention/: kernels\n    flash.py") == (["models/attention/flash.py"], {"models/attention"})
    assert read_map("models/\n    rope.py remat.py    positions")[0] == ["models/rope.py"]  # so remat.py is missing


def test_the_map_names_every_module_once_and_nothing_else():
    assert map_errors(ast.get_docstring(parsed("__init__.py"), clean=False) or "", MODULES, FOLDERS) == []


# Dependencies


def declared() -> tuple[dict[str, Requirement], set[str]]:
    """(import name -> requirement of `dependencies`, import names of the extras that the package imports)."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    required = {import_name(entry): entry for entry in map(Requirement, project["dependencies"])}
    extras = {
        import_name(Requirement(text))
        for extra, entries in project["optional-dependencies"].items()
        if extra not in DEVELOPMENT
        for text in entries
    }
    return required, extras


def import_name(requirement: Requirement) -> str:
    name = requirement.name.lower()
    return IMPORT_NAMES.get(name, name.replace("-", "_"))


def test_every_required_dependency_is_imported():
    imported = set().union(*(libraries(ast.walk(parsed(name))) for name in FILES))
    assert sorted(set(declared()[0]) - imported) == []


@each_file
def test_every_import_is_declared(name):
    required, extras = declared()
    at_once = libraries(parsed(name).body)
    assert sorted(at_once - set(required)) == [], "imported as the file is: must be in dependencies"
    assert sorted(libraries(ast.walk(parsed(name))) - set(required) - extras) == [], "in dependencies or in an extra"


def test_pins_are_within_what_is_required():
    pins: dict[str, list[str]] = {}
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            pin = Requirement(line)
            pins.setdefault(pin.name.lower().replace("_", "-"), []).append(str(pin.specifier).removeprefix("=="))
    for requirement in declared()[0].values():
        versions = pins.get(requirement.name.lower(), [])
        assert versions, f"{requirement.name} is not in constraints.txt"
        assert all(version in requirement.specifier for version in versions), requirement
