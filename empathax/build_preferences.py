"""`python -m empathax.build_preferences`: preference pairs, made by rules or with an LLM, ranked, filtered, known."""

from __future__ import annotations

import argparse
import dataclasses
import functools
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from empathax.config import Config
from empathax.config.arguments import MAX_COUNT, MAX_FLOAT, file_path, number, whole_number
from empathax.errors import ConfigError, exit_on_error

if TYPE_CHECKING:
    from empathax.training.tracking import Tracker

USAGE = """python -m empathax.build_preferences --source=PATH --out=DIR --rules=NAMES
       python -m empathax.build_preferences --source=PATH --out=DIR --candidates=KIND (--server=URL | --model=MODEL)
       python -m empathax.build_preferences --inspect=PATH --out=FILE.html"""
_RULES = "premature_advice,failed_supporter,opposite_emotion,position"
_RANKERS = "design, judge, levels, human"
_OF_SERVERS = (
    *("server_model", "server_key_variable", "concurrency", "timeout", "max_attempts", "first_wait"),
    *("requests_per_minute", "tokens_per_minute", "max_failed_share", "budget"),
)


@exit_on_error
def main(argv: Sequence[str]) -> int:
    """See docs/commands.md and docs/preference_data.md. Returns the exit code."""
    flags, rest = _flags(argv)
    config = _config(flags, rest)
    if flags.inspect:
        from empathax.preferences.inspection import write_page

        tracker = functools.partial(_open_tracker, flags.tensorboard) if flags.tensorboard else None
        write_page(flags.inspect, config.data, flags.levels, out=flags.out, say=_say, open_tracker=tracker)
    elif flags.candidates:
        from empathax.preferences.llm_run import run

        run(flags, config, _say)
    else:
        from empathax.preferences.filters import FilterOptions
        from empathax.preferences.rules import RULES, build_rule_sets

        build_rule_sets(
            tuple(RULES) if flags.rules == ("all",) else flags.rules,
            config.data,
            failed_path=flags.failed,
            filters=FilterOptions(flags.max_length_ratio, flags.near_duplicates),
            splits=flags.splits,
            seed=flags.seed,
            out=flags.out,
            say=_say,
        )
    return 0


def _flags(argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """The checked flags, and the arguments that are left for --config."""
    parser = _parser()
    flags, rest = parser.parse_known_args(argv)
    if sum(map(bool, (flags.rules, flags.candidates, flags.inspect))) != 1:
        parser.error("give one of --rules and --candidates (what pairs are made of), or --inspect")
    if not flags.out and not (flags.dry_run and flags.candidates):
        parser.error("--out is missing: where the set (--inspect: the page) is to be written")
    if idle := _without_effect(flags, parser):
        parser.error(f"{', '.join(idle)} would have no effect here; see --help")
    flags.source = flags.source or flags.inspect
    for name in ("rules", "splits", "rank", "reviews"):
        setattr(flags, name, _names(getattr(flags, name)))
    return flags, rest


def _config(flags: argparse.Namespace, rest: Sequence[str]) -> Config:
    """The settings of --config, if there is one, with --source in place of its data.path."""
    from empathax.config import default_config
    from empathax.config.flags import load_config

    config, unknown = load_config(rest, default_config())
    if unknown:
        raise ConfigError(f"unknown arguments: {' '.join(unknown)}; see --help and docs/commands.md")
    path = flags.source or config.data.path
    if not path:
        raise ConfigError("no source was given: --source=PATH, or --config=FILE with data.path")
    return dataclasses.replace(config, data=dataclasses.replace(config.data, path=path))


def _open_tracker(directory: Path) -> Tracker:
    from empathax.evaluation import output
    from empathax.training.tracking import Tracker

    output.make_directory(directory)
    return Tracker(directory, "preferences", 0, tensorboard=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m empathax.build_preferences", usage=USAGE, description=__doc__)
    add = parser.add_argument
    add("--source", default="", help="dialogues, prompts or pairs: whatever data.path takes (else that of --config)")
    add("--out", type=file_path, help="a new directory, or one that the same command began")
    add("--inspect", default="", metavar="PATH", help="look at any preference set: an HTML page goes to --out")
    add(
        "--tensorboard",
        type=file_path,
        metavar="DIR",
        help="of --inspect: the same as scalars and text for TensorBoard",
    )
    add("--splits", default="", help="train, valid, test, with commas between; left out: train and, if there is, valid")
    add("--seed", type=whole_number(0), default=0)
    add("--max-length-ratio", type=number(), default=3.0, help="words of one reply per word of the other; 0 = no limit")
    add("--near-duplicates", type=number(), default=0.8, help="similarity from which on a pair is dropped; 0 = never")
    _add_rules(parser.add_argument_group("rules, which need no LLM"))
    _add_writing(parser.add_argument_group("replies that a model writes"))
    _add_ranking(parser.add_argument_group("ranking"))
    _add_servers(parser.add_argument_group("servers"))
    return parser


def _add_rules(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--rules", default="", help=f"all, or some of {_RULES} (docs/preference_data.md)")
    group.add_argument("--failed", default="", help="FailedESConv; left out: failed_esconv.json in --source")


def _add_writing(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add(
        "--candidates", choices=("levels", "styles", "samples"), help="a reply per level of validation, per style, or n"
    )
    add("--model", default="", help="writes in this process: directory, .gguf, hub name, package:NAME, random:PRESET")
    count, positive, share = whole_number(0), whole_number(1), number(0.0, 1.0)
    add("--max-contexts", type=count, default=0, help="of each split, evenly spread; 0 = all")
    add("--history-turns", type=count, default=0, help="of a dialogue that the writer sees, the last ones; 0 = all")
    add("--num-samples", type=positive, default=4, help="replies of --candidates=samples")
    add("--temperature", type=number(0.0), default=0.7, help="0 = the likeliest reply")
    add("--top-p", type=share, default=1.0, help="1 = all tokens")
    add("--max-new-tokens", type=positive, default=256, help="of a reply; those cut off there are warned of")
    add("--dry-run", action="store_true", help="show the prompts and what they would cost, ask nobody")


def _add_ranking(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--rank", default="design", help=f"{_RANKERS}: one, or several with commas between, by majority")
    add("--levels", default="", help="classifier of levels (train_classifier --task=levels), for --rank=levels")
    add("--reviews", default="", help="filled-in copies of DIR/review.csv, with commas between, for --rank=human")
    margin = number(0.0, 1.0)
    add("--min-margin", type=margin, default=0.0, help="difference in score below which a pair is dropped, 0 to 1")
    add("--judge-max-tokens", type=whole_number(1), default=512, help="of a judge's answer")


def _add_servers(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    whole, real = whole_number(-MAX_COUNT), number(-MAX_FLOAT)  # limits.py says what cannot work
    for name, what in (("server", "writes replies"), ("judge", "judges, if not the writer itself")):
        add(f"--{name}", default="", metavar="URL", help=f"an OpenAI-compatible server, up to /v1, that {what}")
        add(f"--{name}-model", default="", help="the model's name there")
        add(f"--{name}-key-variable", default="OPENAI_API_KEY", help="the environment variable with its API key")
    add("--response-cache", type=file_path, help="where answers are kept; left out: DIR/responses")
    add("--concurrency", type=whole, default=8, help="requests under way at once")
    add("--timeout", type=real, default=120.0, help="seconds of one attempt")
    add("--max-attempts", type=whole, default=6, help="of one request")
    add("--first-wait", type=real, default=1.0, help="seconds before a second attempt; doubles from one to the next")
    add("--requests-per-minute", type=real, default=0.0, help="0 = no limit")
    add("--tokens-per-minute", type=real, default=0.0, help="0 = no limit")
    add("--max-failed-share", type=real, default=0.0, help="of requests that may fail without an error")
    cost = number(0.0)
    add("--prompt-price", type=cost, default=0.0, help="of a million prompt tokens, in any currency")
    add("--answer-price", type=cost, default=0.0, help="of a million answer tokens")
    add("--budget", type=cost, default=0.0, help="the most to spend, in the prices' currency (none given: in tokens)")


def _without_effect(flags: argparse.Namespace, parser: argparse.ArgumentParser) -> list[str]:
    """Flags that were given and that nothing would read."""
    ranks = _names(flags.rank)
    servers = flags.server or flags.judge
    read = {
        **dict.fromkeys(_OF_SERVERS, flags.candidates and servers),
        **dict.fromkeys(("prompt_price", "answer_price"), flags.candidates and (servers or flags.dry_run)),
        **dict.fromkeys(("source", "out", "inspect", "rules", "candidates"), True),
        **dict.fromkeys(("judge", "judge_model", "judge_key_variable", "judge_max_tokens"), "judge" in ranks),
        **dict.fromkeys(("splits", "seed", "max_length_ratio", "near_duplicates"), not flags.inspect),
        "levels": flags.inspect or "levels" in ranks,
        "reviews": "human" in ranks,
        "tensorboard": flags.inspect,
        "failed": flags.rules,
        "num_samples": flags.candidates == "samples",
    }
    given = [name for name, value in vars(flags).items() if value != parser.get_default(name)]
    return [f"--{name.replace('_', '-')}" for name in given if not read.get(name, flags.candidates)]


def _names(text: str) -> tuple[str, ...]:
    """What stands between commas, each once."""
    return tuple(dict.fromkeys(name for name in text.split(",") if name))


def _say(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
