"""Every metric of a set of replies, as per-reply statistics, their values, and what scores them.

A metric is what one entry of MEASURES returns: a `Statistic`, whose estimate with every dialogue once is the value and
whose estimates on resamples are the interval, or a plain number, which has no interval. A new metric is computed in one
place: a column of the family that it belongs to (metrics/text_metrics.py, dialogue_health.py, readability.py,
semantic.py), or a measure of its own in MEASURES. It stands in a table of the report by a `Column` in report/table.py,
and in docs/metrics.md.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from empathax.config import EvalOptions
from empathax.errors import ConfigError, DataError
from empathax.evaluation.classifiers.classifier import Classifier, classify, load_classifier
from empathax.evaluation.classifiers.data import LEVEL_HEAD
from empathax.evaluation.judging.chat_server import ChatServer
from empathax.evaluation.judging.judge import CRITERIA, judge_replies, rubric_version
from empathax.evaluation.metrics.dialogue_health import health_columns, repeated_replies, top_4gram_share
from empathax.evaluation.metrics.levels import NORMALISATIONS, most_likely
from empathax.evaluation.metrics.readability import count_text, readability_values
from empathax.evaluation.metrics.semantic import semantic_values
from empathax.evaluation.metrics.statistics import ReplyLevels, Statistic, mean_of_known
from empathax.evaluation.metrics.text_metrics import text_statistics
from empathax.evaluation.metrics.words import TokenizedPairs, tokenized
from empathax.evaluation.reply_set import Turn
from empathax.models.encoder.files import LoadedEncoder, load_encoder

EPITOME_PREFIX = "epitome_style_"


@dataclass(frozen=True)
class ReplyScores:
    """Metrics by their names in docs/metrics.md and, reply by reply, what most of them are computed from."""

    metrics: Mapping[str, float]
    per_example: Mapping[str, Statistic]

    @property
    def gap(self) -> ReplyLevels | None:
        """The levels (0 to 3) of replies and references, in the replies' order; None where no classifier read them."""
        gap = self.per_example.get("validation_gap")
        return gap if isinstance(gap, ReplyLevels) else None


@dataclass(frozen=True)
class ScoredReplies:
    """What measures look at: `replies`, one to each of `turns`."""

    turns: tuple[Turn, ...]
    replies: tuple[str, ...]

    @property
    def dialogues(self) -> tuple[str, ...]:
        return tuple(turn.dialogue for turn in self.turns)

    @property
    def references(self) -> tuple[str, ...]:
        return tuple(turn.reference for turn in self.turns)

    @property
    def seekers(self) -> tuple[str, ...]:
        return tuple(turn.seeker for turn in self.turns)

    @functools.cached_property
    def ids_of(self) -> TokenizedPairs:
        """The word ids of replies and references, for all measures that count words."""
        return tokenized(self.replies, self.references)

    def means(self, columns: Mapping[str, np.ndarray]) -> dict[str, Statistic | float]:
        """The means of columns with a value for each reply, without replies that have none (NaN)."""
        found = {name: mean_of_known(self.dialogues, values_E) for name, values_E in columns.items()}
        return {name: statistic for name, statistic in found.items() if statistic is not None}


@dataclass
class ReplyScorer:
    """The models that scoring needs, loaded once; references are classified once for all rows of a table."""

    levels: Classifier | None = None
    epitome: Classifier | None = None
    encoder: LoadedEncoder | None = None
    readability: bool = False
    judge: ChatServer | None = None
    criteria: tuple[str, ...] = CRITERIA
    normalise: str = NORMALISATIONS[0]
    _reference_levels: dict[tuple[Turn, ...], tuple[int, ...]] = field(default_factory=dict, repr=False)

    @classmethod
    def of(
        cls, options: EvalOptions, judge: ChatServer | None = None, criteria: Sequence[str] = CRITERIA
    ) -> ReplyScorer:
        """What the settings name, and a judge if there is one.

        Raises WeightsError for a classifier or encoder that cannot be read, ConfigError for a classifier of another
        task or a criterion without a rubric.
        """
        if unknown := sorted(set(criteria) - set(CRITERIA)):
            raise ConfigError(f"a judge has no rubric for {', '.join(unknown)}: expected some of {', '.join(CRITERIA)}")
        if options.readability:
            count_text("listening")  # the dictionary must be there before any work is done
        return cls(
            levels=_classifier(options.levels_path, "eval.levels_path", of_levels=True),
            epitome=_classifier(options.epitome_path, "eval.epitome_path", of_levels=False),
            encoder=load_encoder(options.encoder_path) if options.encoder_path else None,
            readability=options.readability,
            judge=judge,
            criteria=tuple(criteria),
        )

    def facts(self) -> dict[str, str]:
        """What the replies are scored with, by name: numbers of other classifiers, encoders or judges are others."""
        found = {"validation_gap shares": f"of each {self.normalise}"} if self.levels else {}
        if self.encoder:
            found["encoder"] = self.encoder.name
        if self.judge:
            found["judge"] = self.judge.options.model
            found |= {f"rubric {name}": rubric_version(name) for name in self.criteria}
        return found

    def score(self, turns: Sequence[Turn], replies: Sequence[str]) -> ReplyScores:
        """Scores `replies`, one to each of `turns`. Raises a DataError if there are none, or not as many."""
        if not turns or len(turns) != len(replies):
            raise DataError(
                f"found {len(replies)} replies to {len(turns)} turns: expected one to each, and at least one"
            )
        scored = ScoredReplies(tuple(turns), tuple(replies))
        metrics: dict[str, float] = {}
        statistics: dict[str, Statistic] = {}
        for measure in MEASURES.values():
            for name, found in measure(self, scored).items():
                if isinstance(found, Statistic):
                    statistics[name] = found
                    metrics |= found.metrics(name)
                else:
                    metrics[name] = found
        return ReplyScores(metrics, statistics)

    def levels_of_references(self, turns: tuple[Turn, ...]) -> tuple[int, ...]:
        """The levels of the turns' own replies, read once for all models."""
        if turns not in self._reference_levels:
            references = ScoredReplies(turns, tuple(turn.reference for turn in turns))
            self._reference_levels[turns] = _classes(self.levels, references)[LEVEL_HEAD.name]
        return self._reference_levels[turns]


Measured = Mapping[str, Statistic | float]


def _text(scorer: ReplyScorer, scored: ScoredReplies) -> Measured:
    return text_statistics(scored.ids_of, scored.dialogues)


def _health(scorer: ReplyScorer, scored: ScoredReplies) -> Measured:
    words, _ = scored.ids_of("treebank")
    columns = health_columns(scored.replies, words)
    # what one sample says is no repetition of another's
    dialogues = list(zip(scored.dialogues, _sample_numbers(scored.turns), strict=True))
    histories = [turn.supporter for turn in scored.turns]
    if len(set(dialogues)) < len(dialogues) or any(histories):  # else nobody knows which replies follow each other
        columns["repeated_replies"] = repeated_replies(scored.replies, dialogues, histories)
    return {**scored.means(columns), "top_4gram_share": top_4gram_share(words)}


def _readability(scorer: ReplyScorer, scored: ScoredReplies) -> Measured:
    return scored.means(readability_values(scored.replies)) if scorer.readability else {}


def _semantic(scorer: ReplyScorer, scored: ScoredReplies) -> Measured:
    if scorer.encoder is None:
        return {}
    return scored.means(semantic_values(scorer.encoder, scored.replies, scored.references))


def _epitome(scorer: ReplyScorer, scored: ScoredReplies) -> Measured:
    """The mean degree (none 0, weak 1, strong 2) of each head."""
    if scorer.epitome is None:
        return {}
    degrees = _classes(scorer.epitome, scored)
    return scored.means({f"{EPITOME_PREFIX}{name}": np.array(values, float) for name, values in degrees.items()})


def _judged(scorer: ReplyScorer, scored: ScoredReplies) -> Measured:
    if scorer.judge is None:
        return {}
    print(f"{scorer.judge.options.model} judges {len(scored.replies):,} replies ...", file=sys.stderr, flush=True)
    prompts = [turn.prompt for turn in scored.turns]
    judged = judge_replies(
        scorer.judge, prompts, replies=scored.replies, references=scored.references, criteria=scorer.criteria
    )
    found: dict[str, Statistic | float] = {}
    for name, judgements in judged.items():
        print(judgements.in_words(), file=sys.stderr)
        statistic = judgements.statistic(scored.dialogues)
        found |= judgements.metrics() | ({name: statistic} if statistic else {})
    return found


def _validation_gap(scorer: ReplyScorer, scored: ScoredReplies) -> Measured:
    quartiles = tuple(turn.quartile for turn in scored.turns if turn.quartile is not None)
    if scorer.levels is None or len(quartiles) < len(scored.turns):
        return {}
    levels, references = _classes(scorer.levels, scored)[LEVEL_HEAD.name], scorer.levels_of_references(scored.turns)
    sides = (scored.dialogues, scorer.normalise, levels, quartiles, scored.dialogues, references, quartiles)
    return {"validation_gap": ReplyLevels(*sides)}


# All that is measured of replies, in the order in which it is printed.
MEASURES: dict[str, Callable[[ReplyScorer, ScoredReplies], Measured]] = {
    "text": _text,
    "health": _health,
    "readability": _readability,
    "semantic": _semantic,
    "epitome": _epitome,
    "judge": _judged,
    "validation_gap": _validation_gap,
}


def _classes(classifier: Classifier | None, scored: ScoredReplies) -> dict[str, tuple[int, ...]]:
    """The likeliest class of each reply for every head of a classifier, which may read the seeker's last words."""
    assert classifier is not None
    logits = classify(classifier, scored.replies, scored.seekers)
    return {name: tuple(most_likely(logits_EC).tolist()) for name, logits_EC in logits.items()}


def _sample_numbers(turns: Sequence[Turn]) -> list[int]:
    """Of each reply, how many before it answer the same turn: samples of one turn stand side by side."""
    found: list[int] = []
    for number, turn in enumerate(turns):
        found.append(found[-1] + 1 if number and turn == turns[number - 1] else 0)
    return found


def _classifier(path: str, setting: str, of_levels: bool) -> Classifier | None:
    if not path:
        return None
    classifier = load_classifier(path)
    names = [head.name for head in classifier.config.heads]
    if (LEVEL_HEAD.name in names) != of_levels:
        task = "levels" if of_levels else "epitome"
        raise ConfigError(
            f"{setting} = {path!r} reads {', '.join(names)}: expected a classifier of "
            f"`python -m empathax.train_classifier --task={task}`"
        )
    return classifier
