"""`python -m empathax.evaluate`: a model on a config's held-out data, or texts that something else wrote."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from empathax.config import EvalOptions
from empathax.config.arguments import file_path, path_text
from empathax.config.flags import load_config
from empathax.errors import ConfigError, exit_on_error
from empathax.parallel.host import restart_with_huge_pages

if TYPE_CHECKING:
    from empathax.evaluation.judging.chat_server import ChatServer
    from empathax.evaluation.reply_metrics import ReplyScorer
    from empathax.evaluation.report.record import EvaluationRecord

USAGE = "python -m empathax.evaluate --config=FILE [--config.a.b=VALUE] | --predictions=FILE --references=FILE"
SCORERS = {"levels": "levels_path", "epitome": "epitome_path", "encoder": "encoder_path"}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m empathax.evaluate", usage=USAGE, description=__doc__)
    add = parser.add_argument
    add("--model", type=path_text, default="", help="what to evaluate; left out: the config's own base model")
    add(
        "--adapter",
        type=path_text,
        action="append",
        default=[],
        metavar="DIR",
        help="in PEFT format, on top of the model; several add up",
    )
    add("--label", default="", help="the row's name in a table; left out: base, or the model's path")
    add("--out", type=file_path, help="one flat JSON object: metric name -> number")
    add("--record", type=file_path, help="a directory for evaluation.json, which `report` makes tables of")
    add("--predictions", type=file_path, help='texts to score instead of a model\'s: a line {"text": ...} each')
    add("--references", type=file_path, help="their references, row by row")
    add("--levels", type=path_text, help="classifier for validation_gap (train_classifier --task=levels)")
    add("--epitome", type=path_text, help="classifier of --task=epitome")
    add("--encoder", type=path_text, help="BERT-family encoder for semantic_similarity and BERTScore")
    add("--readability", action="store_true", help="Flesch-Kincaid grade and reading ease (English)")
    for name, what in (("server", "answers in place of a model"), ("judge", "judges the replies")):
        add(f"--{name}", default="", metavar="URL", help=f"an OpenAI-compatible server, up to /v1, that {what}")
        add(f"--{name}-model", default="", help="the model's name there")
        add(f"--{name}-key-variable", default="OPENAI_API_KEY", help="the environment variable with its API key")
    add("--judge-criteria", default="empathy,politeness,factuality", help="what is judged, with commas between")
    add("--multihost", action="store_true", help="one of several processes: find the others, then start")
    add(
        "--response-cache",
        type=file_path,
        help="directory in which servers' answers are kept: a rerun pays for none twice",
    )
    return parser


@exit_on_error
def main(argv: Sequence[str]) -> int:
    """See docs/commands.md. Returns the exit code."""
    parser = _parser()
    flags, rest = parser.parse_known_args(argv)
    if bool(flags.predictions) != bool(flags.references):
        parser.error("--predictions and --references belong together: give both")
    if flags.server and flags.model:
        parser.error("--server answers in place of --model: give one of them")
    if flags.adapter and (flags.server or flags.predictions):
        parser.error("--adapter belongs to a model: leave it out with --server and --predictions")
    if flags.predictions and flags.server:
        parser.error("--predictions are scored as they are: leave out --server")
    if flags.predictions and (flags.model or rest):
        parser.error(f"--predictions takes no model and no config: leave out {' '.join([flags.model, *rest]).strip()}")

    if flags.multihost and (flags.server or flags.predictions):
        parser.error("--multihost is for a model of several processes: leave it out with --server and --predictions")

    from empathax.parallel.agreement import fail_together
    from empathax.parallel.processes import is_leader, joined

    with joined(flags.multihost):
        with fail_together():
            if is_leader():
                _check_outputs(flags)
        record = _of_files(flags) if flags.predictions else _of_model(flags, rest)
        if record is not None:
            _write(flags, record)
    return 0


def _check_outputs(flags: argparse.Namespace) -> None:
    from empathax.evaluation import output

    if flags.out:
        output.check_writable(flags.out)
    if flags.record:
        output.make_directory(flags.record)


def _write(flags: argparse.Namespace, record: EvaluationRecord) -> None:
    from empathax.evaluation import output
    from empathax.evaluation.report import record as records

    if flags.out:
        output.write_json(flags.out, dict(record.metrics))
    if flags.record:
        records.write_record(flags.record / records.FILE, record)


def _of_model(flags: argparse.Namespace, rest: Sequence[str]) -> EvaluationRecord | None:
    """The model's record; None on all processes but the first."""
    from empathax.evaluation.judging.server_replies import check_options
    from empathax.parallel.agreement import check_code_and_settings, fail_together
    from empathax.parallel.processes import is_leader
    from empathax.training import evaluate_model

    with fail_together():
        config, unknown = load_config(rest)
        if unknown:
            raise ConfigError(f"unknown arguments: {' '.join(unknown)}; see --help and docs/commands.md")
        server = _server(flags, "server")
        if server:
            check_options(config.eval)
    check_code_and_settings({"": config})
    with fail_together():
        scorer = _scorer(config.eval, flags)
    evaluation = evaluate_model.prepare(config, flags.model, scorer, flags.adapter)
    if server:
        print(
            f"{len(evaluation.held_out.turns):,} held-out turns go to {flags.server_model} at {flags.server}",
            flush=True,
        )
        record: EvaluationRecord | None = evaluate_model.evaluate_server(
            evaluation, server, flags.label or flags.server_model
        )
    else:
        if is_leader():
            print(evaluation.describe(), flush=True)
        record = evaluate_model.evaluate(evaluation, flags.label or _label(flags))
    if record is not None:
        print(evaluate_model.in_words(record), flush=True)
    return record


def _label(flags: argparse.Namespace) -> str:
    return " + ".join([flags.model or "base", *flags.adapter])


def _of_files(flags: argparse.Namespace) -> EvaluationRecord:
    from empathax.training import evaluate_model

    print(f"scoring   {flags.predictions} against {flags.references}", flush=True)
    scorer, label = _scorer(EvalOptions(), flags), flags.label or flags.predictions.stem
    record = evaluate_model.record_of_files(scorer, flags.predictions, flags.references, label)
    print(evaluate_model.in_words(record))
    return record


def _scorer(options: EvalOptions, flags: argparse.Namespace) -> ReplyScorer:
    """The classifiers and encoders that flags name, else the config's, and the judge."""
    from empathax.evaluation.reply_metrics import ReplyScorer

    given = {name: getattr(flags, flag) for flag, name in SCORERS.items() if getattr(flags, flag) is not None}
    options = dataclasses.replace(options, readability=options.readability or flags.readability, **given)
    return ReplyScorer.of(options, _server(flags, "judge"), [name for name in flags.judge_criteria.split(",") if name])


def _server(flags: argparse.Namespace, name: str) -> ChatServer | None:
    """The client of --server or --judge; None without it. Raises a ConfigError for one that cannot work."""
    from empathax.evaluation.judging.chat_server import server_of_flags

    return server_of_flags(name, vars(flags))


if __name__ == "__main__":
    restart_with_huge_pages()
    sys.exit(main(sys.argv[1:]))
