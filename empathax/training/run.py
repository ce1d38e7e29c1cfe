"""A whole run: the stages in order, each starting from the last one's result, with the before/after report."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from functools import partial

from empathax.config import to_dict
from empathax.objectives.preference import reference_kind
from empathax.parallel.distributed import is_leader
from empathax.training import report
from empathax.training.held_out import HeldOut
from empathax.training.job import Job, Params, record_settings
from empathax.training.report import Evaluations, Measured, Row
from empathax.training.stage import check_resume, run_stage

ROW_NAMES = {("sft",): "+SFT", ("dpo",): "+DPO", ("sft", "dpo"): "+SFT+DPO", ("dpo", "sft"): "+DPO+SFT"}
NOTES = (
    "perplexity and token accuracy: held-out replies, given the dialogue before them",
    "reward accuracy and margin: held-out pairs, rewards against the base model in every row (so 0 for base itself)",
)


def run(job: Job) -> str:
    """Trains all stages of `job`, or goes on where an earlier run of the same directory stopped.

    Returns report.md's text: metrics and replies of the base model and of every stage's result.
    """
    for stage in job.config.stages:
        check_resume(job, stage)
    record_settings(job)
    held_out = HeldOut(job)
    known = Evaluations(job.workdir, _fingerprint(job))
    source: Callable[[], Params] = job.load_params
    if "base" not in known.measured:
        params = source()
        known.add("base", held_out.measure(params, job.config.stages), write=is_leader())
        del params
    before = known.measured["base"]
    for number, stage in enumerate(job.config.stages, start=1):
        name = ROW_NAMES[job.config.stages[:number]]
        params = run_stage(job, stage, source, held_out, before)
        if name not in known.measured:
            known.add(name, held_out.measure(params, job.config.stages), write=is_leader())
        before = known.measured[name]
        source = partial(_same, params)
    return _report(job, held_out, known)


def _same(params: Params) -> Params:
    return params


def _fingerprint(job: Job) -> str:
    parts = {stage: dataset.fingerprint for stage, dataset in job.datasets.items()}
    text = json.dumps([job.source.fingerprint(), parts, to_dict(job.config)["eval"]], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _report(job: Job, held_out: HeldOut, known: Evaluations) -> str:
    base = known.measured["base"]
    rows = {name: _row(held_out, measured, base) for name, measured in known.measured.items()}
    notes = [*NOTES, *_against_own_reference(job, held_out, known)]
    text = report.markdown(f"{job.config.name}: before and after", rows, notes)
    if is_leader():
        (job.workdir / "report.md").write_text(text, encoding="utf-8")
    return text


def _against_own_reference(job: Job, held_out: HeldOut, known: Evaluations) -> list[str]:
    """The DPO stage as its own loss sees it: rewards against the model that it started from."""
    names = ["base", *(ROW_NAMES[job.config.stages[:n]] for n in range(1, len(job.config.stages) + 1))]
    if "dpo" not in job.config.stages or reference_kind(job.config.dpo) == "none":
        return []
    number = job.config.stages.index("dpo") + 1
    after, before = known.measured[names[number]], known.measured[names[number - 1]]
    values = held_out.pair_metrics(after.pair_logps or (), before.pair_logps or ())
    return [
        f"{names[number]} against the reference it started from ({names[number - 1]}): held-out reward accuracy "
        f"{values['reward_accuracy']:.3f}, margin {values['reward_margin']:.3f}"
    ]


def _row(held_out: HeldOut, measured: Measured, base: Measured) -> Row:
    values: dict[str, float] = {}
    if measured.pair_logps is not None and base.pair_logps is not None:
        values |= held_out.pair_metrics(measured.pair_logps, base.pair_logps)
    values |= measured.reply_metrics or {}
    return Row(values, measured.prompts, measured.replies)
