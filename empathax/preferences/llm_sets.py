"""Sets made with a language model: contexts -> candidates -> ranks -> pairs -> filters -> files.

Contexts are worked on in portions, one after another. What a model said is in the cache of answers before anything else
is done with it, and everything after that is computed from it: a run that was killed, or stopped by its budget, goes on
with the same command and ends with the files it would have written at once.

The contexts that a model writes replies for: by split, clean of words of later splits, evenly spread.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from empathax.config import DataOptions
from empathax.data.sources import load_by_split
from empathax.errors import ConfigError, DataError, EmpathaxError
from empathax.preferences.backends import Backend
from empathax.preferences.candidates import Judged, Sampling, Variant, Written, write_candidates, write_files
from empathax.preferences.contexts import (
    Context,
    Pair,
    counts_in_words,
    data_settings,
    digest,
    in_splits,
    load_contexts,
)
from empathax.preferences.filters import Filtered, FilterOptions, filter_pairs
from empathax.preferences.overlap import HeldOutTexts, held_out_texts
from empathax.preferences.ranking import UNREADABLE, Ranker, Task, choose
from empathax.preferences.review import agreement, check_all_used, is_unranked
from empathax.preferences.set_files import PreferenceSet, done_before, start, write_set

PORTION = 32  # contexts
CUT = 0.05  # share of replies cut at the token limit from which on a set is warned of
_SECONDS_A_LINE = 30.0  # of progress within a portion


@dataclass(frozen=True)
class Recipe:
    """How a set is made.

    Attributes:
        kind: "levels", "styles" or "samples".
        variants: the replies asked for in each context.
        splits: those wanted; empty = train and valid, where there are such.
        max_contexts: of each split, evenly spread; 0 = all.
        min_margin: pairs found to differ by less are dropped.
    """

    kind: str
    variants: tuple[Variant, ...]
    sampling: Sampling
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
            "contexts": digest(source.contexts.items()),
            "writer": dict(writer.identity),
            "prompts": {variant.name: variant.version for variant in self.variants},
            "sampling": vars(self.sampling),
            "rankers": {ranker.name: dict(ranker.settings) for ranker in rankers},
            "min_margin": self.min_margin,
            **vars(self.filters),
        }


@dataclass
class _Progress:
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
    settings: Mapping[str, Any],
    out: Path,
    say: Callable[[str], None],
    now: Callable[[], float] = time.time,
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
    started = start(out, settings, now)
    contexts_before, pairs_before = done_before(out)
    if pairs_before and any(map(is_unranked, rankers)):
        raise ConfigError(f"{out} has {pairs_before:,} pairs by people's ranks: name these with --reviews again")
    progress = _Progress()
    for split, contexts in source.contexts.items():
        _work(split, contexts, recipe, writer, rankers, progress, say)
    if progress.error and contexts_before > len(progress.every):
        say(f"{out} keeps the set of {contexts_before:,} contexts that was made before")
        raise progress.error
    if not progress.error:
        check_all_used(rankers, [one.task for one in progress.every])
    pairs, unused = _pairs(progress, recipe)
    splits = {split: filter_pairs(made, source.held_out[split], recipe.filters) for split, made in pairs.items()}
    notes = {
        "contexts": {split: len(part) for split, part in progress.judged.items()},
        "contexts_in_all": {split: len(part) for split, part in source.contexts.items()},
        "contexts_left_out_for_overlap": source.num_overlapping,
        "contexts_without_a_pair": dict(unused),
        **_replies(progress.every),
        **_agreed(progress.every),
        **facts(),
    }
    held_out = {split: len(source.held_out[split]) for split in splits}
    warnings = [*_incomplete(progress, source), *_cut(splits.values(), recipe.sampling.max_tokens)]
    write_files(out, progress.judged, rankers)
    summary = write_set(out, PreferenceSet(recipe.kind, settings, splits, held_out, notes, warnings), started)
    if progress.error:
        say(f"{out} holds what was done before the error")
        raise progress.error
    return summary


def _work(
    split: str,
    contexts: Sequence[Context],
    recipe: Recipe,
    writer: Backend,
    rankers: Sequence[Ranker],
    progress: _Progress,
    say: Callable[[str], None],
) -> None:
    """Candidates and ranks of one split, portion by portion; after an error nothing more is begun."""
    progress.judged[split] = []
    for portion in _portions(contexts):
        if progress.error:
            return
        try:
            written = write_candidates(
                writer, portion, recipe.variants, recipe.sampling, _ticking(say, f"{split}: replies")
            )
            progress.judged[split] += _judged(portion, written, rankers, _ticking(say, f"{split}: verdicts"))
        except EmpathaxError as error:
            if not (progress.every or isinstance(error, DataError)):
                raise  # a wrong key or name: nothing has begun
            progress.error = error
            return
        say(f"{split}: {len(progress.judged[split]):,} of {len(contexts):,} contexts; {writer.tally.in_words()}")


def _judged(
    contexts: Sequence[Context],
    written: Sequence[Written],
    rankers: Sequence[Ranker],
    on_progress: Callable[[int], None],
) -> list[Judged]:
    tasks = [Task(context, one.candidates) for context, one in zip(contexts, written, strict=True)]
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


def _pairs(progress: _Progress, recipe: Recipe) -> tuple[dict[str, list[Pair]], Counter[str]]:
    """The pairs of each split, and why contexts have none."""
    pairs: dict[str, list[Pair]] = {}
    unused: Counter[str] = Counter()
    for split, part in progress.judged.items():
        pairs[split] = []
        for one in part:
            found = choose(one.task, one.rankings if one.is_ranked else (), recipe.kind, recipe.min_margin)
            if isinstance(found, Pair):
                pairs[split].append(found)
            else:
                unused[found] += 1
    return pairs, unused


def _replies(judged: Sequence[Judged]) -> dict[str, Any]:
    """What became of the requests, what was left out and why, what the judge said that could not be read, tokens."""
    left_out = Counter(why for one in judged for why, _ in one.written.left_out)
    unreadable = sum(ranking.facts.get(UNREADABLE, 0) for one in judged for ranking in one.rankings)
    sources = [reply.source for one in judged for reply in one.replies]
    names = ("prompt_tokens", "completion_tokens")
    return {
        "replies_asked_for": dict(Counter(status for one in judged for status in one.written.statuses)),
        **({"replies_left_out": dict(left_out)} if left_out else {}),
        **({UNREADABLE: unreadable} if unreadable else {}),
        "tokens_of_replies": {name: sum(source.get(name) or 0 for source in sources) for name in names},
    }


def _agreed(judged: Sequence[Judged]) -> dict[str, Any]:
    """Fleiss' kappa, where several people ranked."""
    found = agreement([one.task for one in judged], [one.rankings for one in judged])
    return {"agreement": found._asdict()} if found.num_annotators > 1 else {}


def _incomplete(progress: _Progress, source: Source) -> list[str]:
    if not progress.error:
        return []
    total = sum(map(len, source.contexts.values()))
    why = " ".join(str(progress.error).split())
    return [f"Incomplete: {len(progress.every):,} of {total:,} contexts. It was stopped: {why}"]


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


@dataclass(frozen=True)
class Source:
    """Contexts by split, those whose prompts show words of a later split left out, and these words.

    Attributes:
        path, settings: where they come from, and the settings that picked them.
        in_words: how many there are, before any limit.
    """

    path: str
    settings: dict[str, Any]
    in_words: str
    contexts: dict[str, list[Context]]
    held_out: dict[str, HeldOutTexts]
    num_overlapping: int


def read_source(options: DataOptions, splits: Sequence[str], max_contexts: int) -> Source:
    """The contexts to write replies for. Raises a DataError if the source cannot be read or a split has none."""
    rows = load_by_split(options)
    found = in_splits(load_contexts(rows, options), splits, options.path)
    held_out = {split: held_out_texts(rows, split) for split in found}
    clean = {
        split: [one for one in part if not any(held_out[split].shared(turn.content) for turn in one.prompt)]
        for split, part in found.items()
    }
    lost = sum(map(len, found.values())) - sum(map(len, clean.values()))
    picked = {split: _spread(part, max_contexts) for split, part in clean.items()}
    in_words = counts_in_words(options.path, rows, found)
    return Source(options.path, data_settings(options), in_words, picked, held_out, lost)


def _spread(contexts: Sequence[Context], most: int) -> list[Context]:
    """At most `most` contexts (0 = all), evenly over the whole."""
    if not most or most >= len(contexts):
        return list(contexts)
    return [contexts[place] for place in np.linspace(0, len(contexts) - 1, most).round().astype(int).tolist()]
