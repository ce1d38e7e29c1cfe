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
from empathax.errors import ConfigError, Interrupted, exit_on_error
from empathax.preferences.flags import RANKERS, RULES, make_parser, names, without_effect

if TYPE_CHECKING:
    from empathax.evaluation.judging.limits import Budget
    from empathax.preferences.backends import Backend
    from empathax.preferences.inspection import SplitFacts
    from empathax.preferences.llm_sets import Recipe
    from empathax.preferences.ranking import Ranker


@exit_on_error
def main(argv: Sequence[str]) -> int:
    """See docs/commands.md and docs/preference_data.md. Returns the exit code."""
    parser = make_parser(__doc__)
    flags, rest = parser.parse_known_args(argv)
    if sum(map(bool, (flags.rules, flags.candidates, flags.inspect))) != 1:
        parser.error("give one of --rules and --candidates (what pairs are made of), or --inspect")
    if not flags.out and not (flags.dry_run and flags.candidates):
        parser.error("--out is missing: where the set (--inspect: the page) is to be written")
    if idle := without_effect(flags, parser):
        parser.error(f"{', '.join(idle)} would have no effect here; see --help")
    flags.source = flags.source or flags.inspect
    config = _config(flags, rest)
    if flags.inspect:
        return _inspect(flags, config)
    return _by_rules(flags, config) if flags.rules else _by_model(flags, config)


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


def _by_rules(flags: argparse.Namespace, config: Config) -> int:
    from empathax.preferences.filters import FilterOptions
    from empathax.preferences.rule_sets import build_rule_sets

    build_rule_sets(
        names(RULES) if flags.rules == "all" else names(flags.rules),
        config.data,
        failed_path=flags.failed,
        filters=FilterOptions(flags.max_length_ratio, flags.near_duplicates),
        splits=names(flags.splits),
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
    from empathax.preferences.set_files import check_not_empty, in_words

    recipe = _recipe(flags, config)
    ranks = names(flags.rank)
    source = read_source(config.data, recipe.splits, recipe.max_contexts)
    check_rankers(ranks, recipe.kind, [context for part in source.contexts.values() for context in part])
    budget = Budget(Prices(flags.prompt_price, flags.answer_price), flags.budget)
    _say(source.in_words)
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
    settings = recipe.settings(source, writer, rankers)
    try:
        summary = build_llm_set(
            recipe, source, writer, rankers, facts=budget.facts, settings=settings, out=flags.out, say=_say
        )
    except KeyboardInterrupt:
        kept = f"the answers so far are kept in {flags.response_cache}"
        raise Interrupted(f"{kept}: run the same again to go on") from None
    _say(in_words(summary, flags.out))
    spent = f"{budget.in_words()}; " if budget.spent else ""
    _say(f"{writer.tally.in_words()}; {spent}{time.monotonic() - began:,.1f} s")
    if "human" in ranks and not flags.reviews:
        _say(f"{flags.out / 'review.csv'} is for annotators; then run the same with --reviews=FILE,FILE")
        return 0
    check_not_empty(summary)
    return 0


def _inspect(flags: argparse.Namespace, config: Config) -> int:
    from empathax.evaluation import output
    from empathax.evaluation.classifiers.classifier import load_classifier
    from empathax.preferences.inspection import in_words, inspect_set, page

    output.check_writable(flags.out)
    classifier = load_classifier(flags.levels) if flags.levels else None
    found = inspect_set(flags.inspect, config.data, classifier)
    output.write_text(flags.out, page(flags.inspect, found))
    text = in_words(flags.inspect, found)
    if flags.tensorboard:
        _to_tensorboard(flags.tensorboard, found, text)
    _say(text)
    _say(f"wrote {flags.out}")
    return 0


def _to_tensorboard(directory: Path, found: dict[str, SplitFacts], text: str) -> None:
    """Scalars of each split, its samples, and the words of the terminal."""
    from empathax.evaluation import output
    from empathax.preferences.inspection import samples_in_markdown, scalars
    from empathax.training.tracking import Tracker

    output.make_directory(directory)
    with Tracker(directory, "preferences", 0, tensorboard=True) as tracker:
        tracker.text(0, "in words", text.replace("\n", "\n\n"))
        for split, facts in found.items():
            tracker.scalars(0, split, scalars(facts))
            tracker.text(0, f"{split}/samples", samples_in_markdown(facts))


def _recipe(flags: argparse.Namespace, config: Config) -> Recipe:
    """What is asked of the model. Raises a ConfigError for settings that cannot work."""
    from empathax.data.templates import system_text
    from empathax.preferences.candidates import Sampling, variants
    from empathax.preferences.contexts import SPLITS
    from empathax.preferences.filters import FilterOptions
    from empathax.preferences.llm_sets import Recipe
    from empathax.preferences.review import LETTERS
    from empathax.preferences.rule_sets import check_names

    check_names("split", names(flags.splits) or SPLITS, SPLITS)
    check_names("ranker", names(flags.rank), RANKERS)
    if "human" in names(flags.rank) and flags.candidates == "samples" and flags.num_samples > len(LETTERS):
        raise ConfigError(f"--num-samples={flags.num_samples}: people rank {len(LETTERS)} replies of a context at most")
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
    splits = names(flags.splits)
    return Recipe(flags.candidates, tuple(asked), sampling, splits, flags.max_contexts, flags.min_margin, filters)


def _backend(flags: argparse.Namespace, name: str, model: str, config: Config, budget: Budget) -> Backend | None:
    """The server of --NAME, or the model in this process; None without either."""
    from empathax.evaluation.judging.chat_server import server_of_flags
    from empathax.preferences.backends import LocalBackend, ServerBackend

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


def _rankers(flags: argparse.Namespace, ranks: Sequence[str], kind: str, judge: Backend) -> list[Ranker]:
    from empathax.evaluation.judging.judge import JudgeOptions
    from empathax.preferences.ranking import RUBRICS, DesignRanker, JudgeRanker
    from empathax.preferences.review import read_reviews

    if "levels" in ranks and not flags.levels:
        raise ConfigError("--rank=levels needs --levels=DIR, a classifier of `train_classifier --task=levels`")
    makers: dict[str, Callable[[], Ranker]] = {
        "design": DesignRanker,
        "judge": lambda: JudgeRanker(judge, RUBRICS[kind], JudgeOptions(flags.judge_max_tokens, seed=flags.seed)),
        "levels": lambda: _level_ranker(flags.levels),
        "human": lambda: read_reviews([Path(name) for name in names(flags.reviews)]),
    }
    return [makers[name]() for name in ranks]


def _level_ranker(path: str) -> Ranker:
    from empathax.evaluation.classifiers.classifier import CLASSIFIER_NAME, load_classifier
    from empathax.models.weights.source import digest_of_files
    from empathax.preferences.ranking import LevelRanker

    classifier, place = load_classifier(path), Path(path).expanduser()
    digest = digest_of_files([*sorted(place.glob("*.safetensors")), place / CLASSIFIER_NAME])
    return LevelRanker(classifier, f"{path}@{digest[:16]}")


def _say(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
