"""Sets made with a language model: contexts -> candidates -> ranks -> pairs -> filters -> files.

Contexts are worked on in portions, one after another. What a model said is in the cache of answers before anything else
is done with it, and everything after that is computed from it: a run that was killed, or stopped by its budget, goes on
with the same command and ends with the files it would have written at once.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from empathax.errors import ConfigError, DataError, EmpathaxError
from empathax.evaluation import output
from empathax.preferences.backends import Backend
from empathax.preferences.candidates import ReplyOptions, Variant, Written, write_candidates
from empathax.preferences.filters import Filtered, FilterOptions, filter_pairs
from empathax.preferences.pairs import Context, Pair
from empathax.preferences.ranking import UNREADABLE, Ranker, Ranking, RankingTask, choose
from empathax.preferences.review import HumanRanker, agreement, check_all_used, is_unranked, write_review
from empathax.preferences.set_files import PreferenceSet, done_before, start, write_set
from empathax.preferences.source import Source

PORTION = 32  # contexts
CUT = 0.05  # share of replies cut at the token limit from which on a set is warned of
_SECONDS_A_LINE = 30.0  # of progress within a portion
_TOKEN_COUNTS = ("prompt_tokens", "completion_tokens")
_CANDIDATES, REVIEW = "candidates.jsonl", "review.csv"
_ORIGIN = {
    "levels": "Replies were written by a language model, one for each of the four levels of validation, and ranked.",
    "styles": "Replies were written by a language model in a supportive and in a prescriptive style, and ranked.",
    "samples": "Several replies of one language model were ranked.",
}


@dataclass(frozen=True)
class Recipe:
    """How a set is made.

    Attributes:
        kind: "levels", "styles" or "samples".
        variants, options: the replies asked for in each context, and how.
        splits: those wanted; empty = train and valid, where there are such.
        max_contexts: of each split, evenly spread; 0 = all.
        min_margin: pairs found to differ by less are dropped.
    """

    kind: str
    variants: tuple[Variant, ...]
    options: ReplyOptions
    splits: tuple[str, ...]
    max_contexts: int = 0
    min_margin: float = 0.0
    filters: FilterOptions = field(default_factory=FilterOptions)

    def settings(self, source: Source, writer: Backend, rankers: Sequence[Ranker]) -> dict[str, Any]:
        """Everything that decides what is in the set, plain values."""
        return {
            "candidates": self.kind,
            "source": source.path,
            "data": source.settings,
            "splits": list(source.contexts),
            "max_contexts": self.max_contexts,
            "contexts": source.digest(),
            "writer": dict(writer.identity),
            "prompts": {variant.name: variant.version for variant in self.variants},
            "sampling": vars(self.options),
            "rankers": {ranker.name: dict(ranker.settings) for ranker in rankers},
            "min_margin": self.min_margin,
            **vars(self.filters),
        }


@dataclass(frozen=True)
class Judged:
    """A context with what was written for it, and every ranker's view of the candidates. `is_ranked`: whether all
    rankers have one; people may not have come to it yet."""

    task: RankingTask
    written: Written
    rankings: tuple[Ranking, ...]
    is_ranked: bool


@dataclass
class _Done:
    """What was done so far, by split."""

    judged: dict[str, list[Judged]] = field(default_factory=dict)
    error: EmpathaxError | None = None

    @property
    def every(self) -> list[Judged]:
        return [one for part in self.judged.values() for one in part]


def build_llm_set(
    recipe: Recipe,
    source: Source,
    writer: Backend,
    rankers: Sequence[Ranker],
    *,
    facts: Callable[[], Mapping[str, Any]],
    out: Path,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Makes the set in `out` and returns its summary. `facts` tells of servers and costs at the end. Contexts that
    people are to rank and have not yet make no pairs, but candidates and lines of the file for annotators.

    Raises:
        ConfigError: `out` holds another set, pairs by people's ranks that were not given again, or a review.csv with
            ranks of other replies; or as `ChatServer.complete`.
        DataError: as `ChatServer.complete`. This, and a ConfigError once something is done, after the files were
            written with what was done, if that is more than they held.
        DataError: ranks that belong to none of the candidates, before any file is written.
    """
    settings = recipe.settings(source, writer, rankers)
    started = start(out, settings)
    contexts_before, pairs_before = done_before(out)
    if pairs_before and any(map(is_unranked, rankers)):
        raise ConfigError(f"{out} has {pairs_before:,} pairs by people's ranks: name these with --reviews again")
    done = _Done()
    for split, contexts in source.contexts.items():
        _work(split, contexts, recipe, writer, rankers, done, say)
    if done.error and contexts_before > len(done.every):
        say(f"{out} keeps the set of {contexts_before:,} contexts that was made before")
        raise done.error
    if not done.error:
        check_all_used(rankers, [one.task for one in done.every])
    pairs, unused = _pairs(done, recipe)
    splits = {split: filter_pairs(made, source.held_out[split], recipe.filters) for split, made in pairs.items()}
    notes = {**_notes(done, source, unused), **facts()}
    held_out = {split: len(source.held_out[split]) for split in splits}
    warnings = [*_incomplete(done, source), *_cut(splits.values(), recipe.options.max_tokens)]
    _write_candidate_files(out, done.judged, rankers)
    made = PreferenceSet(recipe.kind, _ORIGIN[recipe.kind], settings, splits, held_out, notes, warnings)
    summary = write_set(out, made, started)
    if done.error:
        say(f"{out} holds what was done before the error")
        raise done.error
    return summary


def _work(
    split: str,
    contexts: Sequence[Context],
    recipe: Recipe,
    writer: Backend,
    rankers: Sequence[Ranker],
    done: _Done,
    say: Callable[[str], None],
) -> None:
    """Candidates and ranks of one split, portion by portion; after an error nothing more is begun."""
    done.judged[split] = []
    for portion in _portions(contexts):
        if done.error:
            return
        try:
            written = write_candidates(
                writer, portion, recipe.variants, recipe.options, _ticking(say, f"{split}: replies")
            )
            done.judged[split] += _judged(portion, written, rankers, _ticking(say, f"{split}: verdicts"))
        except EmpathaxError as error:
            if not (done.every or isinstance(error, DataError)):
                raise  # a wrong key or name: nothing has begun
            done.error = error
            return
        say(f"{split}: {len(done.judged[split]):,} of {len(contexts):,} contexts; {writer.tally.in_words()}")


def _judged(
    contexts: Sequence[Context],
    written: Sequence[Written],
    rankers: Sequence[Ranker],
    on_progress: Callable[[int], None],
) -> list[Judged]:
    tasks = [RankingTask(context, one.candidates) for context, one in zip(contexts, written, strict=True)]
    ranked = [ranker.rank(tasks, on_progress) for ranker in rankers]
    return [
        Judged(
            task,
            one,
            rankings=tuple(ranking for found in ranked for ranking in found[number]),
            is_ranked=all(found[number] for found in ranked),
        )
        for number, (task, one) in enumerate(zip(tasks, written, strict=True))
    ]


def _ticking(say: Callable[[str], None], what: str) -> Callable[[int], None]:
    """Says now and then how many requests of a portion are done."""
    last = time.monotonic()

    def tick(done: int) -> None:
        nonlocal last
        if time.monotonic() - last >= _SECONDS_A_LINE:
            last = time.monotonic()
            say(f"  {what}: {done:,} of this portion")

    return tick


def _pairs(done: _Done, recipe: Recipe) -> tuple[dict[str, list[Pair]], Counter[str]]:
    """The pairs of each split, and why contexts have none."""
    pairs: dict[str, list[Pair]] = {}
    unused: Counter[str] = Counter()
    for split, part in done.judged.items():
        pairs[split] = []
        for one in part:
            found = choose(one.task, one.rankings if one.is_ranked else (), recipe.kind, recipe.min_margin)
            if isinstance(found, Pair):
                pairs[split].append(found)
            else:
                unused[found] += 1
    return pairs, unused


def _notes(done: _Done, source: Source, unused: Mapping[str, int]) -> dict[str, Any]:
    """Contexts; what became of the requests, what was left out and why, what the judge said that could not be read,
    tokens; Fleiss' kappa, where several people ranked."""
    judged = done.every
    left_out = Counter(why for one in judged for why, _ in one.written.left_out)
    unreadable = sum(ranking.facts.get(UNREADABLE, 0) for one in judged for ranking in one.rankings)
    sources = [reply.source for one in judged for reply in one.written.replies]
    agreed = agreement([one.task for one in judged], [one.rankings for one in judged])
    return {
        "contexts": {split: len(part) for split, part in done.judged.items()},
        "contexts_in_all": {split: len(part) for split, part in source.contexts.items()},
        "contexts_left_out_for_overlap": source.num_overlapping,
        "contexts_without_a_pair": dict(unused),
        "replies_asked_for": dict(Counter(status for one in judged for status in one.written.statuses)),
        **({"replies_left_out": dict(left_out)} if left_out else {}),
        **({UNREADABLE: unreadable} if unreadable else {}),
        "tokens_of_replies": {name: sum(source.get(name) or 0 for source in sources) for name in _TOKEN_COUNTS},
        **({"agreement": agreed._asdict()} if agreed.num_annotators > 1 else {}),
    }


def _incomplete(done: _Done, source: Source) -> list[str]:
    if not done.error:
        return []
    total = sum(map(len, source.contexts.values()))
    why = " ".join(str(done.error).split())
    return [f"Incomplete: {len(done.every):,} of {total:,} contexts. It was stopped: {why}"]


def _cut(splits: Iterable[Filtered], limit: int) -> list[str]:
    """A warning if many replies in the pairs end in the middle."""
    replies = [reply for part in splits for pair in part.kept for reply in (pair.chosen, pair.rejected)]
    num_cut = sum(reply.source.get("finish_reason") == "length" for reply in replies)
    if num_cut <= CUT * len(replies):
        return []
    return [
        f"{num_cut:,} of {len(replies):,} replies were cut at the limit of {limit} tokens and end in the middle: "
        "raise --max-new-tokens"
    ]


def _portions(contexts: Sequence[Context]) -> Iterator[Sequence[Context]]:
    for start_at in range(0, len(contexts), PORTION):
        yield contexts[start_at : start_at + PORTION]


def _write_candidate_files(out: Path, judged: Mapping[str, Sequence[Judged]], rankers: Sequence[Ranker]) -> None:
    """candidates.jsonl, and review.csv where people rank. Raises a ConfigError if that holds ranks of other replies."""
    if any(isinstance(ranker, HumanRanker) for ranker in rankers):
        write_review(out / REVIEW, [one.task for part in judged.values() for one in part])
    output.write_json_lines(out / _CANDIDATES, (_row(split, one) for split, part in judged.items() for one in part))


def _row(split: str, one: Judged) -> dict[str, Any]:
    context = one.task.context
    return {
        "split": split,
        "context_id": context.context_id,
        "prompt": [{"role": turn.role, "content": turn.content} for turn in context.prompt],
        "candidates": [{"text": reply.text, **reply.source} for reply in one.written.candidates],
        "left_out": [{"reason": why, "text": reply.text, **reply.source} for why, reply in one.written.left_out],
        "rankings": [{"ranker": found.ranker, "scores": found.scores, **found.facts} for found in one.rankings],
    }
