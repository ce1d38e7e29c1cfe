"""A run of `build_preferences --candidates`: recipe, writer and rankers from its flags; then a set, or a dry run."""

from __future__ import annotations

import time
from argparse import Namespace
from collections.abc import Callable, Sequence
from pathlib import Path

from empathax.config import Config
from empathax.data.templates import system_text
from empathax.errors import ConfigError, Interrupted
from empathax.evaluation.classifiers.classifier import CLASSIFIER_NAME, load_classifier
from empathax.evaluation.judging.chat_requests import ChatRequest
from empathax.evaluation.judging.chat_server import server_of_flags
from empathax.evaluation.judging.judge import JudgeOptions
from empathax.evaluation.judging.limits import Budget, Prices, estimated_tokens
from empathax.models.weights.source import digest_of_files
from empathax.preferences.backends import Backend, LocalBackend, ServerBackend
from empathax.preferences.candidates import ReplyOptions, candidate_request, variants
from empathax.preferences.filters import FilterOptions
from empathax.preferences.llm_sets import REVIEW, Recipe, build_llm_set
from empathax.preferences.pairs import Candidate
from empathax.preferences.ranking import (
    RUBRICS,
    DesignRanker,
    JudgeRanker,
    LevelRanker,
    Ranker,
    RankingTask,
    check_rankers,
    judge_requests,
)
from empathax.preferences.review import LETTERS, read_reviews
from empathax.preferences.set_files import check_not_empty, in_words
from empathax.preferences.source import SPLITS, Source, check_names, read_source

RANKERS = ("design", "judge", "levels", "human")
_WORDS_PER_TOKEN = 0.75
_JUDGE_TOKENS = 60  # of an answer: a reason of a sentence


def run(flags: Namespace, config: Config, say: Callable[[str], None]) -> None:
    """Makes the set that the flags of the command ask for, or with --dry-run says what it would ask and cost.

    Raises:
        ConfigError, DataError: settings that cannot work, before anything is asked; else as `build_llm_set`, and a
            DataError for a set without pairs.
        Interrupted: Ctrl-C; the answers are kept.
    """
    recipe = _recipe(flags, config)
    source = read_source(config.data, recipe.splits).without_overlap(recipe.max_contexts)
    check_rankers(flags.rank, recipe.kind, [context for part in source.contexts.values() for context in part])
    budget = Budget(Prices(flags.prompt_price, flags.answer_price), flags.budget)
    say(source.in_words)
    if flags.dry_run:
        say(describe_run(recipe, source, "judge" in flags.rank, budget.prices))
        return
    cache_dir = flags.response_cache or flags.out / "responses"
    writer = _backend(flags, "server", config, budget, cache_dir)
    if writer is None:
        raise ConfigError("nobody writes the replies: give --server=URL and --server-model=NAME, or --model=MODEL")
    rankers = _rankers(flags, _backend(flags, "judge", config, budget, cache_dir) or writer)
    began = time.monotonic()
    try:
        summary = build_llm_set(recipe, source, writer, rankers, facts=budget.facts, out=flags.out, say=say)
    except KeyboardInterrupt:
        raise Interrupted(f"the answers so far are kept in {cache_dir}: run the same again to go on") from None
    say(in_words(summary, flags.out))
    spent = f"{budget.in_words()}; " if budget.spent else ""
    say(f"{writer.tally.in_words()}; {spent}{time.monotonic() - began:,.1f} s")
    if "human" in flags.rank and not flags.reviews:
        say(f"{flags.out / REVIEW} is for annotators; then run the same with --reviews=FILE,FILE")
        return
    check_not_empty(summary)


def _recipe(flags: Namespace, config: Config) -> Recipe:
    """What is asked of the model. Raises a ConfigError for settings that cannot work."""
    check_names("split", flags.splits or SPLITS, SPLITS)
    check_names("ranker", flags.rank, RANKERS)
    if flags.candidates == "samples":
        _check_samples(flags)
    return Recipe(
        flags.candidates,
        tuple(variants(flags.candidates, flags.num_samples, system_text(config.data.system_prompt))),
        ReplyOptions(
            seed=flags.seed,
            temperature=flags.temperature,
            top_p=flags.top_p,
            max_tokens=flags.max_new_tokens,
            history_turns=flags.history_turns,
            opening_user_turn=config.data.opening_user_turn,
        ),
        flags.splits,
        flags.max_contexts,
        flags.min_margin,
        FilterOptions(flags.max_length_ratio, flags.near_duplicates),
    )


def _check_samples(flags: Namespace) -> None:
    if "human" in flags.rank and flags.num_samples > len(LETTERS):
        raise ConfigError(f"--num-samples={flags.num_samples}: people rank {len(LETTERS)} replies of a context at most")
    if flags.num_samples < 2 or not flags.temperature:
        raise ConfigError(
            "--candidates=samples needs --num-samples of 2 or more and a temperature: they would be equal"
        )


def _backend(flags: Namespace, name: str, config: Config, budget: Budget, cache_dir: Path) -> Backend | None:
    """The server of --NAME; for the writer ("server") else the model in this process. None without either."""
    server = server_of_flags(
        name,
        {**vars(flags), "response_cache": cache_dir},
        budget,
        concurrency=flags.concurrency,
        timeout_seconds=flags.timeout,
        max_attempts=flags.max_attempts,
        first_wait_seconds=flags.first_wait,
        max_failed_share=flags.max_failed_share,
        requests_per_minute=flags.requests_per_minute,
        tokens_per_minute=flags.tokens_per_minute,
    )
    model = flags.model if name == "server" else ""
    if server and model:
        raise ConfigError("--server and --model both write: give one of them")
    if server:
        return ServerBackend(server)
    return LocalBackend(model, config, cache_dir, config.data.chat_template) if model else None


def _rankers(flags: Namespace, judge: Backend) -> list[Ranker]:
    if "levels" in flags.rank and not flags.levels:
        raise ConfigError("--rank=levels needs --levels=DIR, a classifier of `train_classifier --task=levels`")
    options = JudgeOptions(flags.judge_max_tokens, seed=flags.seed)
    makers: dict[str, Callable[[], Ranker]] = {
        "design": DesignRanker,
        "judge": lambda: JudgeRanker(judge, RUBRICS[flags.candidates], options),
        "levels": lambda: _level_ranker(flags.levels),
        "human": lambda: read_reviews([Path(name) for name in flags.reviews]),
    }
    return [makers[name]() for name in flags.rank]


def _level_ranker(path: str) -> Ranker:
    classifier, place = load_classifier(path), Path(path).expanduser()
    digest = digest_of_files([*sorted(place.glob("*.safetensors")), place / CLASSIFIER_NAME])
    return LevelRanker(classifier, f"{path}@{digest[:16]}")


def describe_run(recipe: Recipe, source: Source, is_judged: bool, prices: Prices) -> str:
    """What a run would ask and cost, in words: one prompt of each kind, and sums over all contexts.

    Tokens are estimated at four bytes each; replies as half their limit.
    """
    contexts = [context for part in source.contexts.values() for context in part]
    written = [candidate_request(one, variant, recipe.options) for one in contexts for variant in recipe.variants]
    answer = recipe.options.max_tokens // 2
    example = contexts[len(contexts) // 2]
    parts = [
        _shown(f"reply {variant.name}", candidate_request(example, variant, recipe.options))
        for variant in recipe.variants
    ]
    sums = [_sum("replies", written, answer, prices)]
    if is_judged:
        words = " ".join(["word"] * int(answer * _WORDS_PER_TOKEN))
        replies = tuple(Candidate(f"reply {variant.name}: {words}") for variant in recipe.variants)
        rubric = RUBRICS[recipe.kind]
        asked = [request for one in contexts for request in judge_requests(RankingTask(one, replies), rubric)]
        parts.append(_shown("judge", judge_requests(RankingTask(example, replies), rubric)[0]))
        sums.append(_sum("judge", asked, _JUDGE_TOKENS, prices))
    total = sum(cost for _, cost in sums)
    by_split = ", ".join(f"{split} {len(part):,}" for split, part in source.contexts.items())
    lines = [*parts, f"contexts: {by_split}", *(text for text, _ in sums), f"in all: about {prices.in_words(total)}"]
    return "\n".join(lines)


def _sum(name: str, requests: Sequence[ChatRequest], answer: int, prices: Prices) -> tuple[str, float]:
    prompt = sum(estimated_tokens(request)[0] for request in requests)
    cost = prices.cost(prompt, answer * len(requests))
    text = f"{name}: {len(requests):,} requests, about {prompt:,} + {answer * len(requests):,} tokens (prompt + answer)"
    return text, cost


def _shown(name: str, request: ChatRequest) -> str:
    turns = "\n".join(f"[{message.role}] {message.content}" for message in request.messages)
    return f"--- {name} (temperature {request.temperature:g}, at most {request.max_tokens} tokens)\n{turns}\n"
