"""Sets made with a language model: contexts -> candidates -> ranks -> pairs -> filters -> files.

Contexts are worked on in portions, one after another. What a model said is in the cache of answers before anything else
is done with it, and everything after that is computed from it: a run that was killed, or stopped by its budget, goes on
with the same command and ends with the files it would have written at once.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from empathax.config import DataOptions
from empathax.errors import DataError
from empathax.evaluation import output
from empathax.preferences.backends import Backend
from empathax.preferences.candidates import Sampling, Variant, write_candidates
from empathax.preferences.contexts import Context, digest, load_contexts, load_rows
from empathax.preferences.filters import FilterOptions, filter_pairs
from empathax.preferences.overlap import HeldOutTexts, held_out_texts
from empathax.preferences.pairs import Pair
from empathax.preferences.ranking import Ranker, Ranking, Task, choose
from empathax.preferences.review import HumanRanker, agreement, write_review
from empathax.preferences.set_files import PreferenceSet, start, write_set

CANDIDATES, REVIEW = "candidates.jsonl", "review.csv"
PORTION = 32  # contexts


@dataclass(frozen=True)
class Recipe:
    """How a set is made.

    Attributes:
        kind: "levels", "styles" or "samples".
        variants: the replies asked for in each context.
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

    def settings(self, writer: Backend, rankers: Sequence[Ranker], contexts: Mapping[str, Any]) -> dict[str, Any]:
        """Everything that decides what is in the set, plain values."""
        return {
            "candidates": self.kind,
            "writer": dict(writer.identity),
            "prompts": {variant.name: variant.version for variant in self.variants},
            "sampling": vars(self.sampling),
            "rankers": [ranker.name for ranker in rankers],
            "contexts": digest(contexts.items()),
            "splits": list(self.splits),
            "min_margin": self.min_margin,
            **vars(self.filters),
        }


@dataclass
class _Progress:
    """What was done so far, by split."""

    tasks: dict[str, list[Task]] = field(default_factory=dict)
    rankings: dict[str, list[list[Ranking]]] = field(default_factory=dict)
    statuses: Counter[str] = field(default_factory=Counter)
    error: DataError | None = None


@dataclass(frozen=True)
class Source:
    """Contexts by split, those whose prompts show words of a later split left out, and these words."""

    contexts: dict[str, list[Context]]
    held_out: dict[str, HeldOutTexts]
    num_overlapping: int


def read_source(options: DataOptions, splits: Sequence[str], max_contexts: int) -> Source:
    """The contexts to write replies for. Raises a DataError if the source cannot be read or has none."""
    rows = load_rows(options)
    found = {split: part for split, part in load_contexts(rows, options).items() if split in splits and part}
    held_out = {split: held_out_texts(rows, split) for split in found}
    clean = {
        split: [one for one in part if not any(held_out[split].shared(turn.content) for turn in one.prompt)]
        for split, part in found.items()
    }
    lost = sum(map(len, found.values())) - sum(map(len, clean.values()))
    return Source({split: _spread(part, max_contexts) for split, part in clean.items()}, held_out, lost)


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
    """Makes the set in `out` and returns its summary. `facts` tells of servers and costs at the end. Where people
    rank and have not yet, there are no pairs, but candidates and the file for annotators.

    Raises:
        ConfigError: `out` holds another set; or as `ChatServer.complete`.
        DataError: as `ChatServer.complete`, after the files were written with what was done.
    """
    started = start(out, settings, now)
    progress = _Progress()
    for split, contexts in source.contexts.items():
        _work(split, contexts, recipe, writer, rankers, progress, say)
    pairs, unused = _pairs(progress, recipe)
    splits = {split: filter_pairs(made, source.held_out[split], recipe.filters) for split, made in pairs.items()}
    notes = {
        "contexts": {split: len(tasks) for split, tasks in progress.tasks.items()},
        "contexts_left_out_for_overlap": source.num_overlapping,
        "contexts_without_a_pair": dict(unused),
        "replies_asked_for": dict(progress.statuses),
        "tokens_of_replies": _tokens(progress),
        **_agreed(progress),
        **facts(),
    }
    held_out = {split: len(source.held_out[split]) for split in splits}
    _write_candidates(out, progress, rankers)
    summary = write_set(out, PreferenceSet(recipe.kind, settings, splits, held_out, notes), started)
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
    progress.tasks[split], progress.rankings[split] = [], []
    for portion in _portions(contexts):
        if progress.error:
            return
        try:
            written = write_candidates(writer, portion, recipe.variants, recipe.sampling)
            tasks = [Task(context, candidates) for context, (candidates, _) in zip(portion, written, strict=True)]
            ranked = [ranker.rank(tasks) for ranker in rankers]
        except DataError as error:
            progress.error = error
            return
        progress.statuses.update(outcome.status for _, outcomes in written for outcome in outcomes)
        progress.tasks[split] += tasks
        progress.rankings[split] += [[one for found in ranked for one in found[number]] for number in range(len(tasks))]
        say(f"{split}: {len(progress.tasks[split]):,} of {len(contexts):,} contexts; {writer.tally.in_words()}")


def _pairs(progress: _Progress, recipe: Recipe) -> tuple[dict[str, list[Pair]], Counter[str]]:
    """The pairs of each split, and why contexts have none."""
    pairs: dict[str, list[Pair]] = {}
    unused: Counter[str] = Counter()
    for split, tasks in progress.tasks.items():
        pairs[split] = []
        for task, rankings in zip(tasks, progress.rankings[split], strict=True):
            found = choose(task, rankings, recipe.kind, recipe.min_margin)
            if isinstance(found, Pair):
                pairs[split].append(found)
            else:
                unused[found] += 1
    return pairs, unused


def _tokens(progress: _Progress) -> dict[str, int]:
    """What the replies cost, as their writer counted."""
    sources = [one.source for tasks in progress.tasks.values() for task in tasks for one in task.candidates]
    return {name: sum(source.get(name) or 0 for source in sources) for name in ("prompt_tokens", "completion_tokens")}


def _agreed(progress: _Progress) -> dict[str, Any]:
    """Fleiss' kappa, where several people ranked."""
    tasks = [task for found in progress.tasks.values() for task in found]
    rankings = [ranking for found in progress.rankings.values() for ranking in found]
    found = agreement(tasks, rankings)
    return {"agreement": found._asdict()} if found.num_annotators > 1 else {}


def _write_candidates(out: Path, progress: _Progress, rankers: Sequence[Ranker]) -> None:
    """candidates.jsonl, and review.csv where people rank."""
    rows = [
        {
            "split": split,
            "context_id": task.context.context_id,
            "prompt": [{"role": turn.role, "content": turn.content} for turn in task.context.prompt],
            "candidates": [{"text": one.text, **one.source} for one in task.candidates],
            "rankings": [{"ranker": one.ranker, "scores": one.scores, **one.facts} for one in rankings],
        }
        for split, tasks in progress.tasks.items()
        for task, rankings in zip(tasks, progress.rankings[split], strict=True)
    ]
    output.write_json_lines(out / CANDIDATES, rows)
    if any(isinstance(ranker, HumanRanker) for ranker in rankers):
        write_review(out / REVIEW, [task for tasks in progress.tasks.values() for task in tasks])


def _portions(contexts: Sequence[Context]) -> Iterator[Sequence[Context]]:
    for start_at in range(0, len(contexts), PORTION):
        yield contexts[start_at : start_at + PORTION]


def _spread(contexts: Sequence[Context], most: int) -> list[Context]:
    """At most `most` contexts (0 = all), evenly over the whole."""
    if not most or most >= len(contexts):
        return list(contexts)
    return [contexts[place] for place in np.linspace(0, len(contexts) - 1, most).round().astype(int).tolist()]
