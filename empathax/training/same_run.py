"""What a stage was trained with, in its checkpoints: what it must be to be continued, and what export needs."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from empathax.errors import CheckpointError, raise_all
from empathax.training.checkpoint import latest_step, read_meta
from empathax.training.job import Job
from empathax.training.trainable import adapters_meta

_BEFORE = "stages before"
# Settings of a stage that its steps do not depend on, or that are compared by what follows from them.
_MAY_CHANGE = ("num_epochs", "max_steps", "rows_per_batch", "accumulation_steps", "max_nonfinite_steps")


def stage_meta(job: Job, stage: str, num_steps: int) -> dict[str, Any]:
    """What a checkpoint must have been trained with to be continued here, and what export needs."""
    options, adapters = job.config.model, adapters_meta(job, stage)
    tokenizer_path = options.tokenizer_path or options.path
    return {
        "model_path": options.path,
        "tokenizer_path": tokenizer_path,
        "model_config": dataclasses.asdict(job.source.config),
        "chat_template": job.datasets[stage].template.source,
        **adapters,
        "same_run": {
            "weights": job.weights_digest,
            "num_steps": str(num_steps),
            **_options(job, stage),
            **job.loader(stage).fingerprint(),
            **job.datasets[stage].fingerprint,
            **{name: json.dumps(value, sort_keys=True) for name, value in adapters.items()},
        },
    }


def _options(job: Job, stage: str) -> dict[str, str]:
    """The settings of the stage and of those before it, and which these are."""
    earlier = job.config.stages[: job.config.stages.index(stage)]
    found = {_BEFORE: ", ".join(earlier) or "none"}
    for name in (*earlier, stage):
        for option, value in vars(job.config.stage(name)).items():
            if option not in _MAY_CHANGE:
                found[f"{name}.{option}"] = json.dumps(value)
    return found


def check_resume(job: Job, stage: str) -> None:
    """Raises CheckpointError if the directory holds a checkpoint of `stage` that this job may not continue."""
    directory = job.workdir / "checkpoints" / stage
    step = latest_step(directory)  # not StageCheckpoints: two that clean up at a time stand in each other's way
    if step is not None:
        found = read_meta(directory / str(step))
        check_same_run(found, stage_meta(job, stage, job.num_steps(stage)), str(directory))


def check_same_run(found: Mapping[str, Any], wanted: Mapping[str, Any], directory: str) -> None:
    before, now = found["same_run"], wanted["same_run"]
    names = before.keys() | now.keys()
    if before.get(_BEFORE) != now.get(_BEFORE):  # then settings of those stages are on one side only
        names = {name for name in names if "." not in name or name in before.keys() & now.keys()}
    problems = [
        _difference(name, before.get(name, "absent"), now.get(name, "absent"))
        for name in sorted(names)
        if before.get(name) != now.get(name)
    ]
    raise_all(
        CheckpointError,
        f"{directory} was trained on other data or with other settings (use another --workdir, or --overwrite to start "
        "anew)",
        problems,
    )


def _difference(name: str, before: str, now: str) -> str:
    is_digest = len(before) == len(now) == 64
    return f"{name.replace('_', ' ')}: not the same" if is_digest else f"{name} was {before}, is {now}"
