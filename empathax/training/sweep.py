"""The variations of a config as runs side by side, one after another, and their results as one report.

A config without variations is a sweep of one run, in the directory itself.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from empathax.config import Config
from empathax.errors import ConfigError
from empathax.evaluation.report.files import read_runs, write_report
from empathax.evaluation.report.paper import paper_models
from empathax.evaluation.report.text import markdown
from empathax.parallel.agreement import check_code_and_settings, fail_together
from empathax.parallel.processes import is_leader
from empathax.training import job as jobs_of
from empathax.training.hparams import told_apart
from empathax.training.job import Job
from empathax.training.report import Measured
from empathax.training.run import begin, row_names
from empathax.training.run import run as run_one
from empathax.training.tracking import write_hparams
from empathax.training.trainable import check_trained

BASE = "base"


def prepare(variations: Mapping[str, Config], workdir: Path, overwrite: bool = False) -> dict[str, Job]:
    """The job of every variation in a directory of its name; see `job.read`. All are checked before any begins."""
    with fail_together():
        if len(variations) > 1 or "" not in variations:
            _check(variations)
            variations = on_one_ruler(variations)
    check_code_and_settings(variations)
    jobs = {name: jobs_of.read(config, workdir / name) for name, config in variations.items()}
    with fail_together():
        for job in jobs.values():
            check_trained(job)
    for job in jobs.values():
        jobs_of.open_workdir(job, overwrite)
    return jobs


def on_one_ruler(variations: Mapping[str, Config]) -> dict[str, Config]:
    """The variations with one beta of the rewards by which models are compared: the first one's, if none is named."""
    beta = next(iter(variations.values())).reward_beta
    return {
        name: config
        if config.eval.reward_beta
        else dataclasses.replace(config, eval=dataclasses.replace(config.eval, reward_beta=beta))
        for name, config in variations.items()
    }


def describe(jobs: Mapping[str, Job]) -> str:
    """What is about to be done, for the terminal."""
    return "\n\n".join(f"{name}\n{jobs_of.describe(job)}".lstrip("\n") for name, job in jobs.items())


def run(jobs: Mapping[str, Job], workdir: Path) -> str:
    """Runs every job, or goes on where it stopped; returns the text of the report.

    Of variations the records of all rows (their base model once) become `report`'s files in `workdir`.
    """
    for job in jobs.values():
        begin(job)
    with fail_together():
        if is_leader():
            _write_hparams(jobs)
    if "" in jobs:
        return run_one(jobs[""])
    labels, bases = row_labels(jobs), dict[str, Measured]()
    for name, job in jobs.items():
        run_one(job, labels[name], bases)
    with fail_together():
        return _report(jobs, labels, workdir) if is_leader() else ""


def _write_hparams(jobs: Mapping[str, Job]) -> None:
    """A trial for each stage of each run, for TensorBoard over the directory of a sweep or of many runs."""
    values = told_apart({name: job.config for name, job in jobs.items()})
    for name, job in jobs.items():
        for stage in job.config.stages if job.config.tracking.tensorboard else ():
            trial = f"{name or job.workdir.name} {stage}"
            write_hparams(job.workdir / "tensorboard" / stage, values[name], trial)


def _report(jobs: Mapping[str, Job], labels: Mapping[str, Mapping[str, str]], workdir: Path) -> str:
    config = next(iter(jobs.values())).config
    records = read_runs([job.workdir / "evaluations" for name, job in jobs.items() if labels[name]])
    return markdown(write_report(workdir, records, paper_models(config.compare_with), config.name, config.seed))


def left_behind(jobs: Mapping[str, Job]) -> str:
    """What stands in the directory afterwards."""
    if "" in jobs:
        return "report.md, metrics.jsonl, tensorboard/, checkpoints/" + (
            ", evaluations/" if jobs[""].config.eval.turns else ""
        )
    return (
        f"report.html, table.md, table.tex, table.json, and a run in each of {', '.join(f'{name}/' for name in jobs)}"
    )


def row_labels(jobs: Mapping[str, Job]) -> dict[str, dict[str, str]]:
    """Variation -> row -> its label in the report: the row's name, with the variation's where two have the same row.

    Base models that are the same have one row, the first variation's.
    """
    rows = {name: row_names(job.config.stages) for name, job in jobs.items()}
    counts = Counter(row for names in rows.values() for row in names)
    labels: dict[str, dict[str, str]] = {}
    seen_models: set[tuple[str, ...]] = set()
    for name, job in jobs.items():
        labels[name] = {row: row if counts[row] == 1 else f"{row} ({name})" for row in rows[name]}
        model = _base_model(job.config)
        if model in seen_models:
            del labels[name][BASE]
        elif not seen_models:
            labels[name][BASE] = BASE
        seen_models.add(model)
    return labels


def _base_model(config: Config) -> tuple[str, ...]:
    """What makes two variations' models the same before any training."""
    options = config.model
    return options.path, config.lora.path, options.quantization, options.param_dtype, options.compute_dtype


def _check(variations: Mapping[str, Config]) -> None:
    paper_models(next(iter(variations.values())).compare_with)
    without = [name for name, config in variations.items() if not config.eval.turns]
    if without:
        raise ConfigError(
            f"the variations {', '.join(without)} have eval.turns = 0: a sweep's report compares replies to held-out "
            "turns; set how many (-1 = all)"
        )
