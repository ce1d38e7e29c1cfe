"""What the checkpoints below a directory hold, and whether each is what was saved, as a table."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from empathax.errors import CheckpointError, raise_all
from empathax.models.weights.steps import ARRAYS, Step, open_converted, open_step, step_directories


@dataclass(frozen=True)
class Line:
    """One step directory, or one converted model: what it holds, or what is wrong with it."""

    directory: Path
    step: Step | None
    problem: str = ""

    def cells(self, top: Path) -> list[str]:
        """Its line of the table."""
        place = str(self.directory.relative_to(top)) if self.directory != top else "."
        if self.step is None:
            return [place, "", "", "", self.problem]
        meta = self.step.meta
        sizes = [_num_values(record) for records in self.step.leaves.values() for record in records.values()]
        params = [_num_values(record) for record in self.step.leaves["params"].values()]
        kind = "converted" if "step" not in meta else "finished" if meta.get("finished") else "going on"
        return [place, kind, f"{len(sizes)}", f"{sum(params):,}", self.problem or "as saved"]


def inspect(path: Path, verify: bool) -> list[Line]:
    """All checkpoints at or below `path`, stages in order, the newest step first.

    Files are compared with their records; with `verify` every array is read and compared with its digest too. Raises a
    CheckpointError if there are none.
    """
    path = Path(path).absolute()
    lines = [_line(directory, verify) for directory in _directories(path)]
    if not lines:
        raise CheckpointError(
            f"{path} holds no checkpoint: expected a run's --workdir, its checkpoints/, a stage, a step, or a "
            "directory of export --to=orbax"
        )
    return lines


def table(path: Path, lines: list[Line]) -> str:
    """The lines for the terminal."""
    rows = [["checkpoint", "kind", "arrays", "parameters", "state"], *(line.cells(path.absolute()) for line in lines)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    padded = [[cell.ljust(width) for cell, width in zip(row, widths, strict=True)] for row in rows]
    return "\n".join("  ".join(cells).rstrip() for cells in padded)


def check(lines: list[Line], path: Path) -> None:
    """Raises a CheckpointError that lists every damaged one; returns if there is none."""
    problems = [line.problem for line in lines if line.problem]
    raise_all(CheckpointError, f"{path}: {len(problems)} of {len(lines)} checkpoints cannot be used", problems)


def _directories(path: Path) -> Iterator[Path]:
    if (path / ARRAYS).is_file() or (path / "params").is_dir():
        yield path
        return
    yield from step_directories(path)
    for child in sorted(child for child in path.glob("*") if child.is_dir() and not child.name.isdigit()):
        if child.name in ("checkpoints", "best") or step_directories(child):
            yield from _directories(child)


def _line(directory: Path, verify: bool) -> Line:
    is_converted = (directory / "config.json").is_file() or (directory / ARRAYS).is_file()
    step = None
    try:
        step = open_converted(directory) if is_converted else open_step(directory)
        if verify:
            step.verify()
    except CheckpointError as error:
        return Line(directory, step, str(error))
    return Line(directory, step)


def _num_values(record: str) -> int:
    shape = record[record.index("[") + 1 : record.index("]")]
    return math.prod(int(size) for size in shape.split(",")) if shape else 1
