"""A look at any preference set: surface cues, levels and places in the dialogue, duplicates, samples.

The result is one self-contained HTML page that loads nothing, a few lines for the terminal, and TensorBoard if asked.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from empathax.config import DataOptions
from empathax.config.losses import PAIRED_ROWS
from empathax.data.records import Message, PreferenceRow
from empathax.data.sources import load_splits
from empathax.errors import DataError
from empathax.evaluation import output
from empathax.evaluation.classifiers.classifier import Classifier, classify, load_classifier
from empathax.evaluation.classifiers.data import LEVEL_HEAD, level_of_strategy
from empathax.evaluation.metrics.levels import LEVELS
from empathax.evaluation.report.page import environment
from empathax.preferences.overlap import NearDuplicates, num_words, plain
from empathax.preferences.surface_cues import SurfaceCues, surface_cues

SIDES = ("chosen", "rejected")
NUM_SAMPLES = 12
UNKNOWN = "unknown"
_QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


@dataclass(frozen=True)
class Sample:
    """A pair to be read."""

    row: PreferenceRow
    facts: dict[str, Any]

    @property
    def turns(self) -> tuple[Message, ...]:
        prompt = self.row.prompt
        return (Message("user", prompt),) if isinstance(prompt, str) else prompt

    @property
    def last_words(self) -> str:
        """What was said before the reply; "" if the prompt is empty."""
        return self.turns[-1].content if self.turns else ""


@dataclass(frozen=True)
class SplitFacts:
    """What is in one split.

    Attributes:
        levels: side -> [quartile or "unknown", level or "unknown"] -> pairs; empty where nothing is known.
        words: side -> words of a reply at the quantiles 5, 25, 50, 75 and 95 %.
        repeated: side -> (reply, times) of the most repeated replies.
        duplicates, near_duplicates: pairs whose two replies are (nearly) those of an earlier pair.
    """

    num_pairs: int
    num_prompts: int
    cues: SurfaceCues
    levels: dict[str, dict[tuple[str, str], int]]
    words: dict[str, tuple[float, ...]]
    distinct: dict[str, int]
    repeated: dict[str, list[tuple[str, int]]]
    duplicates: int
    near_duplicates: int
    samples: tuple[Sample, ...]


class FactsTracker(Protocol):
    """What the numbers and samples of a set go to: TensorBoard."""

    def scalars(self, step: int, split: str, values: Mapping[str, float]) -> None: ...

    def text(self, step: int, tag: str, markdown: str) -> None: ...


def write_page(
    path: str,
    options: DataOptions,
    levels: str,
    *,
    out: Path,
    say: Callable[[str], None],
    open_tracker: Callable[[], AbstractContextManager[FactsTracker]] | None = None,
) -> None:
    """Writes the page of the set at `path` to `out`, and its numbers and samples to the tracker, if there is one.

    `levels` is the directory of a classifier, or "". Raises a ConfigError if `out` cannot be written, a DataError as
    `inspect_set`.
    """
    output.check_writable(out)
    classifier = load_classifier(levels) if levels else None
    found = inspect_set(path, options, classifier)
    output.write_text(out, page(path, found))
    text = _in_words(path, found)
    if open_tracker:
        with open_tracker() as tracker:
            _track(tracker, found, text)
    say(text)
    say(f"wrote {out}")


def inspect_set(path: str, options: DataOptions, classifier: Classifier | None = None) -> dict[str, SplitFacts]:
    """The facts of each split of the set at `path`: a file, a directory, a hub name or "samples".

    Levels of validation are read by `classifier`, else they are what was asked for, or those of ESConv's strategies,
    as the rows' provenance says.

    Raises:
        DataError: the set cannot be read, or has no pairs.
    """
    _check_is_one(Path(path))
    splits = load_splits(_for(path, options), PAIRED_ROWS)
    parts = {"train": splits.train, "held out": splits.eval}
    found = {
        split: _split_facts([row for row in rows if isinstance(row, PreferenceRow)], classifier)
        for split, rows in parts.items()
        if rows
    }
    if not found:
        raise DataError(f"{path}: there are no pairs in it")
    return found


def _split_facts(rows: Sequence[PreferenceRow], classifier: Classifier | None = None) -> SplitFacts:
    """The facts of some pairs."""
    replies = [(row.chosen, row.rejected) for row in rows]
    by_side = dict(zip(SIDES, zip(*replies, strict=True), strict=True))
    duplicates, near = _duplicates(replies)
    picked = np.unique(np.linspace(0, len(rows) - 1, min(NUM_SAMPLES, len(rows))).round().astype(int)).tolist()
    counts = {side: Counter(map(plain, texts)) for side, texts in by_side.items()}
    return SplitFacts(
        num_pairs=len(rows),
        num_prompts=len({repr(row.prompt) for row in rows}),
        cues=surface_cues(replies, [row.dialogue_id for row in rows]),
        levels=_levels(rows, classifier),
        words={side: tuple(np.quantile([num_words(t) for t in texts], _QUANTILES)) for side, texts in by_side.items()},
        distinct={side: len(found) for side, found in counts.items()},
        repeated={side: [item for item in found.most_common(3) if item[1] > 1] for side, found in counts.items()},
        duplicates=duplicates,
        near_duplicates=near,
        samples=tuple(Sample(rows[number], _provenance(rows[number])) for number in picked),
    )


def _check_is_one(path: Path) -> None:
    """Raises a DataError for a directory of several sets."""
    inside = sorted(place.parent.name for place in path.glob("*/train.jsonl")) if path.is_dir() else []
    if inside and not (path / "train.jsonl").exists():
        raise DataError(f"{path} holds several sets: inspect one of them, {', '.join(inside)}")


def _for(path: str, options: DataOptions) -> DataOptions:
    return DataOptions(path=path, preference_path=path, source=options.source, eval_fraction=0.0)


def _duplicates(replies: Sequence[tuple[str, str]]) -> tuple[int, int]:
    exact: set[tuple[str, str]] = set()
    index, num_exact, num_near = NearDuplicates(), 0, 0
    for chosen, rejected in replies:
        pair, document = (plain(chosen), plain(rejected)), f"{chosen}\n{rejected}"
        if pair in exact:
            num_exact += 1
        elif index.find(document) is not None and pair[::-1] not in exact:
            num_near += 1
        exact.add(pair)
        index.add(document)
    return num_exact, num_near


def _levels(rows: Sequence[PreferenceRow], classifier: Classifier | None) -> dict[str, dict[tuple[str, str], int]]:
    places = [_quartile(row) for row in rows]
    found = {}
    for side in SIDES:
        names = _read_levels(rows, side, classifier) if classifier else [_known_level(row, side) for row in rows]
        counts = Counter(zip(places, names, strict=True))
        found[side] = dict(counts) if any(name != UNKNOWN for _, name in counts) else {}
    return found


def _read_levels(rows: Sequence[PreferenceRow], side: str, classifier: Classifier) -> list[str]:
    seekers = [Sample(row, {}).last_words for row in rows]
    logits_EL = classify(classifier, [getattr(row, side) for row in rows], seekers)[LEVEL_HEAD.name]
    return [LEVELS[int(level)] for level in logits_EL.argmax(axis=-1)]


def _known_level(row: PreferenceRow, side: str) -> str:
    source = _provenance(row)[side]
    if source.get("variant") in LEVELS:
        return str(source["variant"])
    named = source.get("strategies")
    names = [name for name in named if isinstance(name, str)] if isinstance(named, list) else []
    levels = [level for name in names if (level := level_of_strategy(name)) is not None]
    return LEVELS[levels[-1]] if levels else UNKNOWN


def _quartile(row: PreferenceRow) -> str:
    place = _provenance(row).get("quartile")
    return str(place + 1) if isinstance(place, int) else UNKNOWN


def _provenance(row: PreferenceRow) -> dict[str, Any]:
    """What the row says of itself; of both replies too, whatever other tools write there."""
    found = row.meta.get("provenance")
    known = found if isinstance(found, dict) else {}
    return known | {side: known[side] if isinstance(known.get(side), dict) else {} for side in SIDES}


def page(path: str, splits: Mapping[str, SplitFacts]) -> str:
    """The HTML of a set's facts, by split."""
    quartiles = {
        split: [
            name
            for name in ("1", "2", "3", "4", UNKNOWN)
            if any(place == name for counts in facts.levels.values() for place, _ in counts)
        ]
        for split, facts in splits.items()
    }
    return (
        environment("empathax.preferences")
        .get_template("inspect.html")
        .render(path=path, splits=splits, sides=SIDES, levels=(*LEVELS, UNKNOWN), quartiles=quartiles)
    )


def _in_words(path: str, found: dict[str, SplitFacts]) -> str:
    """A few lines for the terminal."""
    lines = []
    for split, facts in found.items():
        cues = facts.cues
        lines.append(
            f"{path}, {split}: {facts.num_pairs:,} pairs; {cues.words_alone}, length alone "
            f"{cues.length_accuracy:.1%}; {facts.duplicates:,} duplicates, {facts.near_duplicates:,} "
            "near-duplicates"
        )
        lines += [f"  warning: {text}" for text in cues.warnings()]
    return "\n".join(lines)


def _track(tracker: FactsTracker, found: Mapping[str, SplitFacts], text: str) -> None:
    tracker.text(0, "in words", text.replace("\n", "\n\n"))
    for split, facts in found.items():
        tracker.scalars(0, split, _scalars(facts))
        tracker.text(0, f"{split}/samples", _samples_in_markdown(facts))


def _scalars(facts: SplitFacts) -> dict[str, float]:
    """The numbers of a split by name."""
    cues = facts.cues
    return {
        "pairs": facts.num_pairs,
        "words_alone_accuracy": cues.bag_accuracy,
        "words_alone_accuracy_with_repeats": cues.bag_accuracy_with_repeats,
        "length_alone_accuracy": cues.length_accuracy,
        "chosen_words": cues.chosen_words,
        "rejected_words": cues.rejected_words,
        "duplicates": facts.duplicates,
        "near_duplicates": facts.near_duplicates,
    }


def _samples_in_markdown(facts: SplitFacts) -> str:
    """The samples as a table: the last turn before the reply, and both replies."""
    rows = [(sample.last_words, sample.row.chosen, sample.row.rejected) for sample in facts.samples]
    lines = [" | ".join(" ".join(cell.replace("|", "/").split()) for cell in row) for row in rows]
    return "\n".join(["| seeker | chosen | rejected |", "|---|---|---|", *(f"| {line} |" for line in lines)])
