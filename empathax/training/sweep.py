"""The variations of a config as runs side by side, one after another, and their results as one report.

A config without variations is a sweep of one run, in the directory itself.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from empathax.config import Config, to_dict
from empathax.config.fields import flat
from empathax.errors import ConfigError
from empathax.evaluation.report.files import read_runs, write_report
from empathax.evaluation.report.paper import paper_models
from empathax.evaluation.report.text import markdown
from empathax.parallel.agreement import check_code_and_settings, fail_together
from empathax.parallel.processes import is_leader
from empathax.training import run as runs_of
from empathax.training import workdirs
from empathax.training.held_out import Measured
from empathax.training.run import Run, execute
from empathax.training.stages.stage import row_names
from empathax.training.tracking import write_hparams
from empathax.training.trainable import check_trained

BASE = "base"


def prepare(variations: Mapping[str, Config], workdir: Path, overwrite: bool = False) -> dict[str, Run]:
    """The run of every variation, in a directory of its name; see `run.prepare`. All are checked before any begins."""
    with fail_together():
        if len(variations) > 1 or "" not in variations:
            _check(variations)
            variations = with_common_beta(variations)
    check_code_and_settings(variations)
    runs = {name: runs_of.prepare(config, workdir / name) for name, config in variations.items()}
    with fail_together():
        for run in runs.values():
            check_trained(run.experiment)
    if "" not in runs:
        with fail_together():
            if is_leader():
                workdirs.open_sweep(workdir)
    for run in runs.values():
        runs_of.open_workdir(run, overwrite)
    return runs


def with_common_beta(variations: Mapping[str, Config]) -> dict[str, Config]:
    """The variations with one beta of the rewards by which models are compared: the first one's, if none is named."""
    beta = next(iter(variations.values())).reward_beta
    return {
        name: config
        if config.eval.reward_beta
        else dataclasses.replace(config, eval=dataclasses.replace(config.eval, reward_beta=beta))
        for name, config in variations.items()
    }


def describe(runs: Mapping[str, Run]) -> str:
    """What is about to be done, for the terminal."""
    return "\n\n".join(f"{name}\n{runs_of.describe(run)}".lstrip("\n") for name, run in runs.items())


def run(runs: Mapping[str, Run], workdir: Path) -> str:
    """Executes every run, or goes on where it stopped; returns the text of the report.

    Of variations the records of all rows (their base model once) become `report`'s files in `workdir`.
    """
    for run in runs.values():
        runs_of.begin(run)
    with fail_together():
        if is_leader():
            _write_hparams(runs)
    if "" in runs:
        return execute(runs[""])
    labels, bases = row_labels(runs), dict[str, Measured]()
    for name, run in runs.items():
        execute(run, labels[name], bases)
    with fail_together():
        return _report(runs, labels, workdir) if is_leader() else ""


def _write_hparams(runs: Mapping[str, Run]) -> None:
    """A trial for each stage of each run, for TensorBoard over the directory of a sweep or of many runs."""
    values = differing_settings({name: run.config for name, run in runs.items()})
    for name, run in runs.items():
        for stage in run.config.stages if run.config.tracking.tensorboard else ():
            trial = f"{name or run.workdir.name} {stage}"
            write_hparams(run.workdir / "tensorboard" / stage, values[name], trial)


def differing_settings(configs: Mapping[str, Config]) -> dict[str, dict[str, bool | float | str]]:
    """Each run's values of the settings in which the runs differ; of one run those that are not the defaults."""
    found = {name: _settings(config) for name, config in configs.items()}
    compared = [*found.values(), _settings(Config())] if len(found) == 1 else list(found.values())
    differing = [key for key in compared[0] if any(values[key] != compared[0][key] for values in compared)]
    return {name: {key: values[key] for key in differing} for name, values in found.items()}


def _settings(config: Config) -> dict[str, bool | float | str]:
    """By their dotted names, but for the run's own name; tuples as text, for TensorBoard's HParams tab."""
    return {
        key: ", ".join(map(str, value)) if isinstance(value, tuple | list) else value
        for key, value in flat(to_dict(config)).items()
        if key != "name"
    }


def _report(runs: Mapping[str, Run], labels: Mapping[str, Mapping[str, str]], workdir: Path) -> str:
    config = next(iter(runs.values())).config
    records = read_runs([run.workdir / "evaluations" for name, run in runs.items() if labels[name]])
    return markdown(write_report(workdir, records, paper_models(config.compare_with), config.name, config.seed))


def output_files(runs: Mapping[str, Run]) -> str:
    """What stands in the directory afterwards."""
    if "" in runs:
        return "report.md, metrics.jsonl, tensorboard/, checkpoints/" + (
            ", evaluations/" if runs[""].config.eval.turns else ""
        )
    return (
        f"report.html, table.md, table.tex, table.json, and a run in each of {', '.join(f'{name}/' for name in runs)}"
    )


def row_labels(runs: Mapping[str, Run]) -> dict[str, dict[str, str]]:
    """Variation -> row -> its label in the report: the row's name, with the variation's where two have the same row.

    Base models that are the same have one row, the first variation's.
    """
    rows = {name: row_names(run.config.stages) for name, run in runs.items()}
    counts = Counter(row for names in rows.values() for row in names)
    labels: dict[str, dict[str, str]] = {}
    seen_models: set[tuple[str, ...]] = set()
    for name, run in runs.items():
        labels[name] = {row: row if counts[row] == 1 else f"{row} ({name})" for row in rows[name]}
        model = _base_model(run.config)
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
