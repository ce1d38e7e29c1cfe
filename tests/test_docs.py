"""What README, CONTRIBUTING and docs/ name is there: links, anchors, files, functions, the size of the core path."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")])
ARCHITECTURE = (ROOT / "docs" / "architecture.md").read_text()
STOPS = [
    (file, name.strip())
    for file, names in re.findall(r"`(empathax/[\w/]+\.py): ([^`]+)`", ARCHITECTURE)
    for name in names.split(",")
]
CORE_LINES = 1500

each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


def prose(text: str) -> str:
    """`text` without its code blocks."""
    return re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)


def anchors(text: str) -> set[str]:
    """The anchors of a page's headings, as GitHub names them."""
    found: set[str] = set()
    for heading in re.findall(r"^#+ (.*)$", prose(text), re.MULTILINE):
        words = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower()
        anchor = re.sub(r"[^\w\- ]", "", words).strip().replace(" ", "-")
        number = sum(other == anchor or re.fullmatch(rf"{re.escape(anchor)}-\d+", other) is not None for other in found)
        found.add(f"{anchor}-{number}" if number else anchor)
    return found


def dead_links(text: str, page: Path) -> list[str]:
    """Relative links of a page that lead to no file, or to no heading of it."""
    dead = []
    for link in re.findall(r"\]\(([^)\s]+)\)", prose(text)):
        if re.match(r"\w+:", link):
            continue
        place, _, anchor = link.partition("#")
        target = page.parent / place if place else page
        if not target.exists() or (anchor and anchor not in anchors(text if target == page else target.read_text())):
            dead.append(link)
    return dead


def missing_files(text: str) -> list[str]:
    """Files of this repository that a page names and that do not exist. A path begins at the root or in empathax/."""
    folders = "|".join(path.name for parent in (ROOT, ROOT / "empathax") for path in parent.iterdir() if path.is_dir())
    pattern = rf"(?<![\w/.$~:-])((?:{folders})/[\w/.*-]+\.(?:py|sh|md|json|jsonl|yaml|txt|sbatch))(?![\w-])"
    named = re.findall(pattern, text)
    missing = [name for name in named if not any(any(parent.glob(name)) for parent in (ROOT, ROOT / "empathax"))]
    python_files = {path.name for folder in ("empathax", "tests", "configs") for path in (ROOT / folder).rglob("*.py")}
    return missing + [name for name in re.findall(r"`(\w+\.py)`", text) if name not in python_files]


def definitions(file: str) -> set[str]:
    """Functions and classes of a file, and the methods of its classes as Class.method."""
    found = set()
    for node in ast.parse((ROOT / file).read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        if isinstance(node, ast.ClassDef):
            found |= {f"{node.name}.{inner.name}" for inner in node.body if isinstance(inner, ast.FunctionDef)}
    return found


def lines_of_code(source: str) -> int:
    """Lines that hold code: not blank, no comment, no docstring."""
    docstrings = {
        line
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        for line in range(node.lineno, (node.end_lineno or node.lineno) + 1)
    }
    layout = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
    return len(
        {
            line
            for token in tokenize.generate_tokens(io.StringIO(source).readline)
            if token.type not in layout
            for line in range(token.start[0], token.end[0] + 1)
        }
        - docstrings
    )


@each_page
def test_links_lead_somewhere(page):
    assert dead_links(page.read_text(), page) == []


@each_page
def test_named_files_are_there(page):
    assert missing_files(page.read_text()) == []


@pytest.mark.parametrize(("file", "name"), STOPS)
def test_stops_of_the_architecture_are_there(file, name):
    assert name in definitions(file), f"docs/architecture.md: {file} has no {name}"


def test_every_page_is_in_the_index():
    listed = re.findall(r"\((?:\.\./)?(\w+\.md)\)", (ROOT / "docs" / "index.md").read_text())
    assert sorted(listed) == sorted(page.name for page in PAGES if page.name != "index.md")


def test_the_core_path_is_short():
    section = ARCHITECTURE.split("## The core path")[1].split("\n## ")[0]
    files = re.findall(r"^- `(empathax/[\w/]+\.py)`$", section, re.MULTILINE)
    assert len(files) >= 6  # batch, tree, forward pass, log-probs, loss, step
    assert sum(lines_of_code((ROOT / file).read_text()) for file in files) <= CORE_LINES


def test_what_is_not_there_is_found():
    page = ROOT / "docs" / "index.md"
    text = (
        "# A b\n# A b\n[x](nothing.md) [y](#a-b-1) [z](#c) [w](../README.md#limits) [v](scale.md#nothing) https://a.b/c"
    )
    assert dead_links(text, page) == ["nothing.md", "#c", "scale.md#nothing"]
    text = "`data/rows.py`, models/layers.py, empathax/no.py, `no.py`, configs/*_dpo.py, gs://data/a.json"
    assert missing_files(text) == ["data/rows.py", "empathax/no.py", "no.py"]
    assert definitions("empathax/data/loader.py") >= {"Loader", "Loader.batch_at", "eval_batches"}
    assert lines_of_code('"""Two\nlines."""\n\n# one\nx = [\n    1,\n]  # two\n') == 3
