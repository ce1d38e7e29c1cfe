"""`python -m empathax.build_preferences`: preference pairs, made by rules or with an LLM, ranked, filtered, known."""

from __future__ import annotations

import argparse
import dataclasses
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from empathax.config import Config
from empathax.errors import ConfigError, exit_on_error

if TYPE_CHECKING:
    from empathax.evaluation.judging.limits import Budget
    from empathax.preferences.backends import Backend
    from empathax.preferences.llm_sets import Recipe
    from empathax.preferences.ranking import Ranker

USAGE = """python -m empathax.build_preferences --source=PATH --out=DIR --rules=NAMES
       python -m empathax.build_preferences --source=PATH --out=DIR --candidates=KIND (--server=URL | --model=MODEL)
       python -m empathax.build_preferences --inspect=PATH --out=FILE.html"""
RANKERS = ("design", "judge", "levels", "human")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m empathax.build_preferences", usage=USAGE, description=__doc__)
    add = parser.add_argument
    add("--source", default="", help="dialogues, prompts or pairs: whatever data.path takes (else that of --config)")
    add("--out", type=Path, help="a new directory, or one that the same command began")
    add("--inspect", default="", metavar="PATH", help="look at any preference set: an HTML page goes to --out")
    add("--splits", default="train,valid", help="train, valid, test, with commas between")
    add("--seed", type=int, default=0)
    add("--max-length-ratio", type=float, default=3.0, help="words of one reply per word of the other; 0 = no limit")
    add("--near-duplicates", type=float, default=0.8, help="similarity from which on a pair is dropped; 0 = never")
    _add_rules(parser.add_argument_group("rules, which need no LLM"))
    _add_writing(parser.add_argument_group("replies that a model writes"))
    _add_ranking(parser.add_argument_group("ranking"))
    _add_servers(parser.add_argument_group("servers"))
    return parser


def _add_rules(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--rules", default="", help="names with commas between, or all: docs/preference_data.md")
    group.add_argument("--failed", default="", help="FailedESConv; left out: failed_esconv.json in --source")


def _add_writing(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add(
        "--candidates", choices=("levels", "styles", "samples"), help="a reply per level of validation, per style, or n"
    )
    add("--model", default="", help="writes in this process: directory, .gguf, hub name, package:NAME, random:PRESET")
    add("--max-contexts", type=int, default=0, help="of each split, evenly spread; 0 = all")
    add("--history-turns", type=int, default=0, help="turns of a dialogue that the writer sees, the last ones; 0 = all")
    add("--num-samples", type=int, default=4, help="replies of --candidates=samples")
    add("--temperature", type=float, default=0.7, help="0 = the likeliest reply")
    add("--top-p", type=float, default=1.0, help="1 = all tokens")
    add("--max-new-tokens", type=int, default=128)
    add("--dry-run", action="store_true", help="show the prompts and what they would cost, ask nobody")


def _add_ranking(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--rank", default="design", help=f"{', '.join(RANKERS)}: one, or several with commas between, by majority")
    add("--levels", default="", help="classifier of levels (train_classifier --task=levels), for --rank=levels")
    add("--reviews", default="", help="filled-in copies of DIR/review.csv, with commas between, for --rank=human")
    add("--min-margin", type=float, default=0.0, help="difference in score below which a pair is dropped, 0 to 1")
    add("--judge-max-tokens", type=int, default=512, help="of a judge's answer")


def _add_servers(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    for name, what in (("server", "writes replies"), ("judge", "judges, if not the writer itself")):
        add(f"--{name}", default="", metavar="URL", help=f"an OpenAI-compatible server, up to /v1, that {what}")
        add(f"--{name}-model", default="", help="the model's name there")
        add(f"--{name}-key-variable", default="OPENAI_API_KEY", help="the environment variable with its API key")
    add("--response-cache", type=Path, help="where answers are kept; left out: DIR/responses")
    add("--concurrency", type=int, default=8, help="requests under way at once")
    add("--timeout", type=float, default=120.0, help="seconds of one attempt")
    add("--max-attempts", type=int, default=6, help="of one request")
    add("--first-wait", type=float, default=1.0, help="seconds before a second attempt; doubles from one to the next")
    add("--requests-per-minute", type=float, default=0.0, help="0 = no limit")
    add("--tokens-per-minute", type=float, default=0.0, help="0 = no limit")
    add("--max-failed-share", type=float, default=0.0, help="of requests that may fail without an error")
    add("--prompt-price", type=float, default=0.0, help="of a million prompt tokens, in any currency")
    add("--answer-price", type=float, default=0.0, help="of a million answer tokens")
    add("--budget", type=float, default=0.0, help="the most to spend, in the prices' currency (none given: in tokens)")


@exit_on_error
def main(argv: Sequence[str]) -> int:
    """See docs/commands.md and docs/preference_data.md. Returns the exit code."""
    parser = _parser()
    flags, rest = parser.parse_known_args(argv)
    if sum(map(bool, (flags.rules, flags.candidates, flags.inspect))) != 1:
        parser.error("give one of --rules and --candidates (what pairs are made of), or --inspect")
    if not flags.out and not flags.dry_run:
        parser.error("--out is missing: where the set (--inspect: the page) is to be written")
    flags.source = flags.source or flags.inspect
    config = _config(flags, rest)
    if flags.inspect:
        return _inspect(flags, config)
    return _by_rules(flags, config) if flags.rules else _by_model(flags, config)


def _config(flags: argparse.Namespace, rest: Sequence[str]) -> Config:
    """The settings of --config, if there is one, with --source in place of its data.path."""
    from empathax.config_flags import load_config

    has_config = any(flag.split("=")[0] == "--config" for flag in rest)
    config, unknown = load_config(rest) if has_config else (Config(), list(rest))
    if unknown:
        raise ConfigError(f"unknown arguments: {' '.join(unknown)}; see --help and docs/commands.md")
    path = flags.source or config.data.path
    if not path:
        raise ConfigError("no source was given: --source=PATH, or --config=FILE with data.path")
    return dataclasses.replace(config, data=dataclasses.replace(config.data, path=path))


def _by_rules(flags: argparse.Namespace, config: Config) -> int:
    from empathax.preferences.filters import FilterOptions
    from empathax.preferences.rule_sets import build_rule_sets
    from empathax.preferences.rules import RULES

    build_rule_sets(
        tuple(RULES) if flags.rules == "all" else _names(flags.rules),
        config.data,
        failed_path=flags.failed,
        filters=FilterOptions(flags.max_length_ratio, flags.near_duplicates),
        splits=_names(flags.splits),
        seed=flags.seed,
        out=flags.out,
        say=_say,
    )
    return 0


def _by_model(flags: argparse.Namespace, config: Config) -> int:
    from empathax.evaluation.judging.limits import Budget, Prices
    from empathax.preferences.dry_run import describe_run
    from empathax.preferences.llm_sets import build_llm_set, read_source
    from empathax.preferences.ranking import check_rankers
    from empathax.preferences.rule_sets import describe

    recipe = _recipe(flags, config)
    ranks = _names(flags.rank)
    source = read_source(config.data, recipe.splits, recipe.max_contexts)
    check_rankers(ranks, recipe.kind, [context for part in source.contexts.values() for context in part])
    budget = Budget(Prices(flags.prompt_price, flags.answer_price), flags.budget)
    if flags.dry_run:
        _say(describe_run(recipe, source, "judge" in ranks, budget.prices))
        return 0
    flags.response_cache = flags.response_cache or flags.out / "responses"
    writer = _backend(flags, "server", flags.model, config, budget)
    if writer is None:
        raise ConfigError("nobody writes the replies: give --server=URL and --server-model=NAME, or --model=MODEL")
    judge = _backend(flags, "judge", "", config, budget) or writer
    rankers = _rankers(flags, ranks, recipe.kind, judge)
    began = time.monotonic()
    settings = recipe.settings(writer, rankers, source.contexts) | {"judge": dict(judge.identity)}
    summary = build_llm_set(
        recipe, source, writer, rankers, facts=budget.facts, settings=settings, out=flags.out, say=_say
    )
    _say(describe(summary, flags.out))
    _say(f"{writer.tally.in_words()}; {budget.in_words()}; {time.monotonic() - began:,.1f} s")
    if "human" in ranks and not flags.reviews:
        _say(f"{flags.out / 'review.csv'} is for annotators; then run the same with --reviews=FILE,FILE")
    return 0


def _inspect(flags: argparse.Namespace, config: Config) -> int:
    from empathax.evaluation import output
    from empathax.evaluation.classifiers.files import load_classifier
    from empathax.preferences.inspect_page import page
    from empathax.preferences.inspection import in_words, inspect_set

    output.check_writable(flags.out)
    classifier = load_classifier(flags.levels) if flags.levels else None
    found = inspect_set(flags.inspect, config.data, classifier)
    output.write_text(flags.out, page(flags.inspect, found))
    _say(in_words(flags.inspect, found))
    _say(f"wrote {flags.out}")
    return 0


def _recipe(flags: argparse.Namespace, config: Config) -> Recipe:
    """What is asked of the model. Raises a ConfigError for settings that cannot work."""
    from empathax.data.prompts import system_text
    from empathax.preferences.candidates import Sampling, variants
    from empathax.preferences.contexts import SPLITS
    from empathax.preferences.filters import FilterOptions
    from empathax.preferences.llm_sets import Recipe
    from empathax.preferences.rule_sets import check_names

    check_names("split", _names(flags.splits), SPLITS)
    check_names("ranker", _names(flags.rank), RANKERS)
    if flags.candidates == "samples" and (flags.num_samples < 2 or not flags.temperature):
        raise ConfigError(
            "--candidates=samples needs --num-samples of 2 or more and a temperature: they would be equal"
        )
    sampling = Sampling(
        seed=flags.seed,
        temperature=flags.temperature,
        top_p=flags.top_p,
        max_tokens=flags.max_new_tokens,
        history_turns=flags.history_turns,
        opening_user_turn=config.data.opening_user_turn,
    )
    asked = variants(flags.candidates, flags.num_samples, system_text(config.data.system_prompt))
    filters = FilterOptions(flags.max_length_ratio, flags.near_duplicates)
    splits = _names(flags.splits)
    return Recipe(flags.candidates, tuple(asked), sampling, splits, flags.max_contexts, flags.min_margin, filters)


def _backend(flags: argparse.Namespace, name: str, model: str, config: Config, budget: Budget) -> Backend | None:
    """The server of --NAME, or the model in this process; None without either."""
    from empathax.evaluation.judging.chat_server import server_of_flags
    from empathax.preferences.backends import ServerBackend
    from empathax.preferences.local_backend import LocalBackend

    server = server_of_flags(
        name,
        vars(flags),
        budget,
        concurrency=flags.concurrency,
        timeout_seconds=flags.timeout,
        max_attempts=flags.max_attempts,
        first_wait_seconds=flags.first_wait,
        max_failed_share=flags.max_failed_share,
        requests_per_minute=flags.requests_per_minute,
        tokens_per_minute=flags.tokens_per_minute,
    )
    if server and model:
        raise ConfigError("--server and --model both write: give one of them")
    if server:
        return ServerBackend(server)
    return LocalBackend(model, config, flags.response_cache, config.data.chat_template) if model else None


def _rankers(flags: argparse.Namespace, names: Sequence[str], kind: str, judge: Backend) -> list[Ranker]:
    from empathax.evaluation.classifiers.files import load_classifier
    from empathax.evaluation.judging.judge_material import JudgeOptions
    from empathax.preferences.rankers import RUBRICS, JudgeRanker, LevelRanker
    from empathax.preferences.ranking import DesignRanker
    from empathax.preferences.review import read_reviews

    if "levels" in names and not flags.levels:
        raise ConfigError("--rank=levels needs --levels=DIR, a classifier of `train_classifier --task=levels`")
    makers: dict[str, Callable[[], Ranker]] = {
        "design": DesignRanker,
        "judge": lambda: JudgeRanker(judge, RUBRICS[kind], JudgeOptions(flags.judge_max_tokens, seed=flags.seed)),
        "levels": lambda: LevelRanker(load_classifier(flags.levels)),
        "human": lambda: read_reviews([Path(name) for name in _names(flags.reviews)]),
    }
    return [makers[name]() for name in names]


def _names(text: str) -> tuple[str, ...]:
    return tuple(name for name in text.split(",") if name)


def _say(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
