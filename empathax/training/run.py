"""A whole run: the stages in order, each starting from the last one's result, with the before/after report."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial

from empathax.config import to_dict
from empathax.evaluation import output
from empathax.evaluation.reply_metrics import ReplyScorer, ReplyScores
from empathax.evaluation.reply_record import make_record, slug
from empathax.evaluation.report.record import FILE, write_record
from empathax.objectives.preference import reference_kind
from empathax.parallel.agreement import fail_together
from empathax.parallel.mesh import compute_dtype
from empathax.parallel.processes import is_leader
from empathax.parallel.stopping import listening
from empathax.training import report
from empathax.training.held_out import HeldOut
from empathax.training.job import Job, Params, record_settings
from empathax.training.records import curves_of, data_of, model_metrics, model_statistics
from empathax.training.report import Evaluations, Measured, Row
from empathax.training.same_run import check_resume
from empathax.training.stage import Evaluator, run_stage

ROW_NAMES = {(): "base", ("sft",): "+SFT", ("dpo",): "+DPO", ("sft", "dpo"): "+SFT+DPO", ("dpo", "sft"): "+DPO+SFT"}
NOTES = (
    "perplexity and token accuracy: held-out replies, given the dialogue before them",
    "reward accuracy and margin: held-out pairs, rewards against the base model in every row (so 0 for base itself)",
)


def run(job: Job, labels: Mapping[str, str] | None = None, bases: dict[str, Measured] | None = None) -> str:
    """Trains all stages of `job`, for which `begin` was called, or goes on where an earlier run of the same directory
    stopped.

    Returns report.md's text: metrics and replies of the base model and of every stage's result. With `eval.turns` each
    of them also leaves evaluations/NAME/evaluation.json, under the label that `labels` gives it (its own name, by
    default); rows that `labels` lacks leave none. `bases` holds what earlier runs measured of base models, by
    fingerprint, and takes this one's. Of several processes the first writes and returns the text, the others "".
    """
    with listening():
        return _run(job, labels, {} if bases is None else bases)


def begin(job: Job) -> None:
    """Marks the directory as this run's, by its settings. Raises CheckpointError if it holds another run's stages."""
    for stage in job.config.stages:
        check_resume(job, stage)
    record_settings(job)


def _run(job: Job, labels: Mapping[str, str] | None, bases: dict[str, Measured]) -> str:
    scorer = ReplyScorer.of(job.config.eval)
    held_out = HeldOut(job)
    fingerprint = _fingerprint(job)
    known = Evaluations(job.workdir, fingerprint)
    source: Callable[[], Params] = job.load_params
    if "base" not in known.measured:
        measured = bases.get(fingerprint) or held_out.measure(source(), job.datasets.keys())
        known.add("base", measured, write=is_leader())
    before = bases[fingerprint] = known.measured["base"]
    for name, stage in zip(row_names(job.config.stages)[1:], job.config.stages, strict=True):
        result = run_stage(job, stage, source, Evaluator(held_out, scorer, before))
        if name not in known.measured:
            measured = result.measured or held_out.measure(result.params, job.datasets.keys())
            known.add(name, measured, write=is_leader())
        before = known.measured[name]
        source = partial(_same, result.params)
    with fail_together():  # replies are scored once, also where a judge is paid for it
        if not is_leader():
            return ""
        scores = _scores(job, held_out, scorer, known)
        _write_records(job, held_out, scorer, known, scores, labels)
        return _report(job, held_out, known, scores)


def row_names(stages: Sequence[str]) -> list[str]:
    """The rows of a run's table: the base model, then every stage's result."""
    return [ROW_NAMES[tuple(stages[:number])] for number in range(len(stages) + 1)]


def _same(params: Params) -> Params:
    return params


def _fingerprint(job: Job) -> str:
    """Of everything that what is measured of the base model depends on."""
    parts = {stage: dataset.fingerprint for stage, dataset in job.datasets.items()}
    options = job.config.model
    model = [job.weights_digest, options.quantization, options.param_dtype, str(compute_dtype(options, job.mesh))]
    text = json.dumps([model, parts, to_dict(job.config)["eval"]], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _scores(job: Job, held_out: HeldOut, scorer: ReplyScorer, known: Evaluations) -> dict[str, ReplyScores]:
    """Row -> scores of its answers, if `eval.turns` asks for them."""
    if not job.config.eval.turns:
        return {}
    return {name: scorer.score(held_out.turns, known.measured[name].answers) for name in row_names(job.config.stages)}


def _write_records(
    job: Job,
    held_out: HeldOut,
    scorer: ReplyScorer,
    known: Evaluations,
    scores: Mapping[str, ReplyScores],
    labels: Mapping[str, str] | None,
) -> None:
    base = known.measured["base"]
    for number, name in enumerate(row_names(job.config.stages)):
        if name not in (scores if labels is None else labels):
            continue
        place = job.workdir / "evaluations" / slug(name)
        output.make_directory(place)
        measured = known.measured[name]
        record = make_record(
            labels[name] if labels else name,
            job.config.model.path if number == 0 else str(job.workdir / "checkpoints" / job.config.stages[number - 1]),
            held_out.turns,
            measured.answers,
            scores[name],
            **data_of(job, scorer),
            metrics=model_metrics(held_out, measured, base),
            per_example=model_statistics(job, measured, base),
            curves=curves_of(job.workdir, job.config.stages[:number]),
        )
        write_record(place / FILE, record)


def _report(job: Job, held_out: HeldOut, known: Evaluations, scores: Mapping[str, ReplyScores]) -> str:
    base = known.measured["base"]
    rows = {
        name: Row(
            model_metrics(held_out, measured, base) | dict(scores[name].metrics if name in scores else {}),
            measured.prompts,
            measured.replies,
        )
        for name, measured in known.measured.items()
    }
    notes = [*NOTES, *_against_own_reference(job, held_out, known)]
    if scores:
        notes.append(f"B-4, R-L, Dist-2, validation_gap: replies to {len(held_out.turns):,} held-out turns")
    text = report.markdown(f"{job.config.name}: before and after", rows, notes)
    (job.workdir / "report.md").write_text(text, encoding="utf-8")
    return text


def _against_own_reference(job: Job, held_out: HeldOut, known: Evaluations) -> list[str]:
    """The DPO stage as its own loss sees it: rewards against the model that it started from."""
    if "dpo" not in job.config.stages or reference_kind(job.config.dpo) == "none":
        return []
    names, number = row_names(job.config.stages), job.config.stages.index("dpo") + 1
    after, before = known.measured[names[number]], known.measured[names[number - 1]]
    values = held_out.reward_metrics(after.pair_logps or (), before.pair_logps or ())
    measured = [
        f"{name} {values[f'reward_{name}']:.3f}" for name in ("accuracy", "margin") if f"reward_{name}" in values
    ]
    return [
        f"{names[number]} against the reference it started from ({names[number - 1]}): held-out reward "
        f"{', '.join(measured)}"
    ]
