"""Every metric of a set of replies, with the per-reply statistics behind it: what becomes a row of a table."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from empathax.config import EvalOptions
from empathax.errors import ConfigError, DataError
from empathax.evaluation.classifiers.classifier import Classifier, classify, load_classifier
from empathax.evaluation.classifiers.data import LEVEL_HEAD
from empathax.evaluation.judging.chat_server import ChatServer
from empathax.evaluation.judging.judge import CRITERIA, judge_replies, rubric_version
from empathax.evaluation.metrics.dialogue_health import SCALE, health_columns, health_metrics
from empathax.evaluation.metrics.levels import NORMALISATIONS, count_levels, validation_gap
from empathax.evaluation.metrics.semantic import semantic_values
from empathax.evaluation.metrics.statistics import MeanOfValues, ReplyLevels, Statistic
from empathax.evaluation.metrics.style import count_text, readability_values
from empathax.evaluation.metrics.text_metrics import REPLY_DISTINCT, score_texts
from empathax.evaluation.metrics.text_statistics import text_statistics
from empathax.evaluation.reply_set import Turn
from empathax.models.encoder.files import LoadedEncoder, load_encoder

EPITOME_PREFIX = "epitome_style_"


@dataclass(frozen=True)
class ReplyScores:
    """Metrics by their names in docs/metrics.md and, reply by reply, what most of them are computed from.

    Levels are 0 to 3, in the replies' order; empty where no classifier read them.
    """

    metrics: Mapping[str, float]
    per_example: Mapping[str, Statistic]
    levels: tuple[int, ...] = ()
    reference_levels: tuple[int, ...] = ()


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
        owners = tuple(turn.dialogue for turn in turns)
        references = [turn.reference for turn in turns]
        metrics = score_texts(replies, references)
        statistics: dict[str, Statistic] = text_statistics(replies, references, owners)
        parts = [self._health(owners, turns, replies), self._readability(owners, replies)]
        parts += [self._semantic(owners, references, replies), self._epitome(owners, turns, replies)]
        parts += [self._judged(owners, turns, replies)]
        for found_metrics, found in parts:
            metrics |= found_metrics
            statistics |= found
        # replies that are all too short for an n-gram leave nothing to take a mean of
        metrics = {name: value for name, value in metrics.items() if name not in REPLY_DISTINCT or name in statistics}
        if self.levels is None or any(turn.quartile is None for turn in turns):
            return ReplyScores(metrics, statistics)
        levels, reference_levels = self._levels(turns, replies), self._levels_of_references(tuple(turns))
        quartiles = tuple(turn.quartile or 0 for turn in turns)
        gap = {name: float(value) for name, value in _gap(levels, reference_levels, quartiles, self.normalise).items()}
        statistics["validation_gap"] = ReplyLevels(
            owners, self.normalise, levels, quartiles, owners, reference_levels, quartiles
        )
        return ReplyScores(metrics | gap, statistics, levels, reference_levels)

    def _health(self, owners: tuple[str, ...], turns: Sequence[Turn], replies: Sequence[str]) -> _Part:
        said: dict[str, Any] = {}
        samples = _sample_numbers(turns)
        dialogues = list(zip(owners, samples, strict=True))  # what one sample says is no repetition of another's
        if len(set(dialogues)) < len(dialogues) or any(turn.supporter for turn in turns):  # dialogues are known
            said = {"dialogue_ids": dialogues, "histories": [turn.supporter for turn in turns]}
        columns = health_columns(replies, **said)
        statistics = {name: MeanOfValues.of(owners, SCALE[name] * np.array(column)) for name, column in columns.items()}
        return health_metrics(replies, columns), dict(statistics)

    def _readability(self, owners: tuple[str, ...], replies: Sequence[str]) -> _Part:
        return _means(owners, readability_values(replies) if self.readability else {})

    def _semantic(self, owners: tuple[str, ...], references: Sequence[str], replies: Sequence[str]) -> _Part:
        return _means(owners, semantic_values(self.encoder, replies, references) if self.encoder else {})

    def _epitome(self, owners: tuple[str, ...], turns: Sequence[Turn], replies: Sequence[str]) -> _Part:
        """The mean degree (none 0, weak 1, strong 2) of each head."""
        if self.epitome is None:
            return {}, {}
        logits = classify(self.epitome, replies, [turn.seeker for turn in turns])
        degrees = {f"{EPITOME_PREFIX}{name}": values.argmax(axis=1).astype(float) for name, values in logits.items()}
        return _means(owners, degrees)

    def _judged(self, owners: tuple[str, ...], turns: Sequence[Turn], replies: Sequence[str]) -> _Part:
        if self.judge is None:
            return {}, {}
        print(f"{self.judge.options.model} judges {len(replies):,} replies ...", file=sys.stderr, flush=True)
        prompts, references = [turn.prompt for turn in turns], [turn.reference for turn in turns]
        found = judge_replies(self.judge, prompts, replies=replies, references=references, criteria=self.criteria)
        for judgements in found.values():
            print(judgements.in_words(), file=sys.stderr)
        metrics = {name: value for judgements in found.values() for name, value in judgements.metrics().items()}
        statistics = {name: judgements.statistic(owners) for name, judgements in found.items()}
        return metrics, {name: statistic for name, statistic in statistics.items() if statistic is not None}

    def _levels(self, turns: Sequence[Turn], texts: Sequence[str]) -> tuple[int, ...]:
        assert self.levels is not None
        logits = classify(self.levels, texts, [turn.seeker for turn in turns])[LEVEL_HEAD.name]
        return tuple(logits.argmax(axis=1).tolist())

    def _levels_of_references(self, turns: tuple[Turn, ...]) -> tuple[int, ...]:
        if turns not in self._reference_levels:
            self._reference_levels[turns] = self._levels(turns, [turn.reference for turn in turns])
        return self._reference_levels[turns]


_Part = tuple[dict[str, float], dict[str, Statistic]]


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


def _means(owners: tuple[str, ...], values: Mapping[str, np.ndarray]) -> _Part:
    """Means of columns, without the texts that have no value (NaN)."""
    statistics: dict[str, MeanOfValues] = {}
    for name, values_E in values.items():
        has_value_E = np.isfinite(values_E)
        if has_value_E.any():
            kept = tuple(owner for owner, has_value in zip(owners, has_value_E.tolist(), strict=True) if has_value)
            statistics[name] = MeanOfValues.of(kept, values_E[has_value_E])
    return {name: float(np.mean(statistic.values)) for name, statistic in statistics.items()}, dict(statistics)


def _gap(
    levels: Sequence[int], reference_levels: Sequence[int], quartiles: Sequence[int], normalise: str
) -> dict[str, jax.Array]:
    levels_B, reference_B, quartiles_B = (jnp.array(values) for values in (levels, reference_levels, quartiles))
    return _compiled_gap(levels_B, reference_B, quartiles_B, normalise=normalise)


def _counted_gap(
    levels_B: jax.Array, reference_B: jax.Array, quartiles_B: jax.Array, normalise: str
) -> dict[str, jax.Array]:
    return validation_gap(count_levels(levels_B, quartiles_B), count_levels(reference_B, quartiles_B), normalise)


_compiled_gap = jax.jit(_counted_gap, static_argnames="normalise")


def _sample_numbers(turns: Sequence[Turn]) -> list[int]:
    """Of each reply, how many before it answer the same turn: samples of one turn stand side by side."""
    found: list[int] = []
    for number, turn in enumerate(turns):
        found.append(found[-1] + 1 if number and turn == turns[number - 1] else 0)
    return found
