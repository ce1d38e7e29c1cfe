"""From evaluation.json files to a report's files: records read and checked against each other, judged, written."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from empathax.errors import DataError, raise_all
from empathax.evaluation import output
from empathax.evaluation.judging.chat_server import ChatServer
from empathax.evaluation.judging.judge import rubric_version
from empathax.evaluation.judging.judge_pairs import RUBRIC, compare_replies
from empathax.evaluation.report.page import page
from empathax.evaluation.report.paper import ROWS, PaperModel, orderings
from empathax.evaluation.report.record import FILE, EvaluationRecord, read_record
from empathax.evaluation.report.table import Results
from empathax.evaluation.report.text import Report, as_json, latex, markdown


def read_runs(directories: Sequence[Path]) -> list[EvaluationRecord]:
    """The records in `directories`, one level below, or in a run's or a sweep's evaluations/.

    base, +SFT, +DPO, +SFT+DPO come first, the others in their order.

    Raises a DataError for a directory without records, two records of one label, or records of different data.
    """
    paths = [path for directory in directories for path in _record_paths(directory)]
    records = [read_record(path) for path in paths]
    problems = []
    for number, record in enumerate(records):
        if record.label in [other.label for other in records[:number]]:
            problems.append(f"{paths[number]} has the label {record.label!r} again: give every model its own label")
        problems += [f"{paths[number]} {difference}" for difference in _differences(records[0], record)]
    raise_all(DataError, "these evaluations cannot stand in one table", problems)
    return sorted(records, key=lambda record: ROWS.index(record.label) if record.label in ROWS else len(ROWS))


def judged(judge: ChatServer, records: Sequence[EvaluationRecord]) -> list[EvaluationRecord]:
    """The records with `win_rate` against the first one, its counts, and what is needed for its interval.

    Raises a DataError if a record lacks replies to the first one's prompts, and what `compare_replies` raises.
    """
    first, *others = records
    if not first.replies or any(_asked(record) != _asked(first) for record in others):
        raise DataError("--judge compares replies to the same prompts: expected all of them in every evaluation.json")
    return [first, *(_against(judge, record, first) for record in others)]


def write_report(
    out: Path, records: Sequence[EvaluationRecord], papers: Sequence[PaperModel], title: str, seed: int
) -> Report:
    """Writes table.md, table.tex, table.json and report.html to `out`. Raises a ConfigError if the disk refuses."""
    results = Results(records, seed)
    report = Report(title, results, papers, orderings(results, papers))
    output.write_text(out / "table.md", markdown(report))
    output.write_text(out / "table.tex", latex(report))
    output.write_json(out / "table.json", as_json(report))
    output.write_text(out / "report.html", page(report))
    return report


def _record_paths(directory: Path) -> list[Path]:
    patterns = (FILE, f"*/{FILE}", f"evaluations/*/{FILE}", f"*/evaluations/*/{FILE}")
    found = next((paths for pattern in patterns if (paths := sorted(directory.glob(pattern)))), [])
    if not found:
        what = "no such directory" if not directory.is_dir() else f"no {FILE} in it or below"
        raise DataError(f"--runs={directory}: {what}; expected what `python -m empathax.evaluate` writes")
    return found


def _differences(first: EvaluationRecord, record: EvaluationRecord) -> list[str]:
    """In what the data of two records differ; the path may, since data move."""
    found = []
    for name in ("split", "num_turns", "num_dialogues", "num_pairs"):
        one, other = getattr(first.data, name), getattr(record.data, name)
        if one != other and not (name == "num_pairs" and 0 in (one, other)):
            found.append(f"has data.{name} = {other!r}, but {first.label} has {one!r}: evaluate all on the same data")
    if _dialogues(first) == _dialogues(record):  # a metric may lack some: Distinct of a reply of one word
        return found
    return found + [
        f"has {name} of other dialogues than {first.label}: evaluate all on the same data"
        for name in sorted(first.per_example.keys() & record.per_example.keys())
        if first.per_example[name].all_dialogues() != record.per_example[name].all_dialogues()
    ]


def _dialogues(record: EvaluationRecord) -> set[str]:
    return {dialogue for statistic in record.per_example.values() for dialogue in statistic.all_dialogues()}


def _against(judge: ChatServer, record: EvaluationRecord, first: EvaluationRecord) -> EvaluationRecord:
    comparison = compare_replies(
        judge,
        [reply.prompt for reply in record.replies],
        replies_a=[reply.reply for reply in record.replies],
        replies_b=[reply.reply for reply in first.replies],
    )
    statistic = comparison.statistic([reply.dialogue for reply in record.replies])
    return dataclasses.replace(
        record,
        metrics={**record.metrics, **comparison.metrics()},
        per_example={**record.per_example, **({"win_rate": statistic} if statistic else {})},
        decoding={**record.decoding, "judge of pairs": judge.options.model, "rubric pairs": rubric_version(RUBRIC)},
    )


def _asked(record: EvaluationRecord) -> list[object]:
    return [(reply.dialogue, reply.prompt) for reply in record.replies]
