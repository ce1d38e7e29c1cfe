"""The shape of the house: imports point one way, heavy libraries stay in their rooms, importing is cheap."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "empathax"
FILES = sorted(PACKAGE.rglob("*.py"))
LAYERS = [
    {"errors", "atomic"},
    {"config"},
    {"models"},
    {"objectives", "data", "parallel"},
    {"evaluation"},
    {"training", "preferences"},
    {"planning"},
]
COMMANDS = {"train", "evaluate", "score", "chat", "export", "report", "train_classifier", "plan", "build_preferences"}
ROOMS = {
    "orbax": {"training/checkpoint.py", "models/weights/orbax.py"},
    "ml_collections": {"config/"},
    "transformers": {"data/chat.py", "models/"},
    "tokenizers": {"data/chat.py", "models/"},
    "sentencepiece": {"models/"},
    "tensorboard": {"training/tracking.py"},
    "matplotlib": {"evaluation/report/level_plot.py"},
    "scipy": {"preferences/surface_cues.py"},
    "openai": {"evaluation/judging/openai_client.py"},
    "pyphen": {"evaluation/metrics/readability.py"},
    "markupsafe": {"evaluation/report/page.py"},
}
FORBIDDEN_TEXT = ("trust_remote_code=True", "import pickle", "yaml.load(", "torch.load")
FORBIDDEN_CALLS = {"eval", "exec"}


def _imports(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def _layer(part: str) -> int:
    return next((i for i, layer in enumerate(LAYERS) if part in layer), len(LAYERS))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_one_way(path):
    own = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    for name in _imports(path):
        if not name.startswith("empathax."):
            continue
        other = name.split(".")[1]
        assert other not in COMMANDS, f"{own} imports the command {other}"
        assert _layer(other) < _layer(own) or other == own, f"{own} must not import {other}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_libraries_stay_in_their_rooms(path):
    relative = path.relative_to(PACKAGE).as_posix()
    for name in _imports(path):
        library = name.split(".")[0]
        assert library not in ("torch", "tensorflow")
        rooms = ROOMS.get(library)
        assert rooms is None or any(relative.startswith(room) for room in rooms), f"{relative} imports {library}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_nothing_runs_code_from_data(path):
    text = path.read_text()
    assert not [word for word in FORBIDDEN_TEXT if word in text]
    calls = [
        node.func.id
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    ]
    assert not FORBIDDEN_CALLS & set(calls)


def test_the_map_names_every_module():
    text = (PACKAGE / "__init__.py").read_text()
    modules = [path for path in FILES if path.name != "__init__.py"]
    missing = [str(path.relative_to(PACKAGE)) for path in modules if path.name not in text]
    assert not missing


def test_importing_is_cheap():
    code = (
        "import empathax, sys; print([m for m in ('torch', 'tensorflow', 'jax', 'transformers') if m in sys.modules])"
    )
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
    )
