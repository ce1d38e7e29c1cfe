"""Log-probabilities of given replies: those of a file, row by row, or those of any batches, by sequence id."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jaxtyping import Float32, Int64

from empathax.config import DataOptions
from empathax.config.losses import PAIRED_ROWS
from empathax.data.chat import ChatTemplate
from empathax.data.dataset import check_token_ids
from empathax.data.examples import ReplyEncoder, Unusable, replies_of, to_sequence
from empathax.data.loader import eval_batches
from empathax.data.packing import PackedRows, pack
from empathax.data.records import Row, Tally
from empathax.data.row_plan import Unit
from empathax.data.sources import load_all
from empathax.errors import DataError, NonFiniteError, raise_all
from empathax.models.architecture.model_config import ModelConfig
from empathax.models.tokenizers.tokenizer import Tokenizer

# Longer rows share more between dialogues but cost more attention; only a single long reply makes them longer.
_ROW_LENGTH = 1024

ScoreStep = Callable[[Any, Any], Any]  # (parameters, batch) -> SequenceScores of training/step.py


@dataclass(frozen=True)
class ScoringJob:
    """A file's rows, encoded and packed. `units[i]` lists the sequence ids of row i, (chosen, rejected) or (reply,)."""

    packed: PackedRows
    units: tuple[tuple[tuple[int, ...], ...], ...]

    def describe(self) -> str:
        """One line for the terminal."""
        sizes = self.packed.sizes
        return (
            f"{len(self.units):,} rows with {self.packed.num_sequences:,} replies, laid out in {len(self.packed):,} "
            f"packed rows of {sizes.tokens:,} tokens"
        )


def prepare(path: str, options: DataOptions, tokenizer: Tokenizer, model_config: ModelConfig) -> ScoringJob:
    """Reads and encodes every row of `path`. Compiles nothing.

    Raises a DataError with all rows that cannot be read, that the chat template refuses, that are too long or empty;
    a ConfigError for a tokenizer that is not the model's.
    """
    rows, tally = load_all(path, options)
    _check_complete(path, tally)
    template = ChatTemplate(
        tokenizer, options.chat_template, model_config.family, options.template_variables, options.template_date
    )
    encoder = ReplyEncoder(template, options, truncate=False)
    groups: dict[str, list[Unit]] = {}
    units: list[tuple[tuple[int, ...], ...]] = []
    problems: list[str] = []
    next_id = 0
    for row in rows:
        encoded = list(_encode(row, encoder, next_id, problems))
        next_id += sum(map(len, encoded))
        units.append(tuple(tuple(sequence.sequence_id for sequence in unit) for unit in encoded))
        # a unit is one reply or a pair; a file may hold both, which never share a group
        groups.setdefault(f"{len(encoded[0]) if encoded else 0} {row.dialogue_id}", []).extend(encoded)
    raise_all(DataError, f"{path}: rows that cannot be scored", problems, limit=5)
    check_token_ids(list(groups.values()), tokenizer, model_config)
    return ScoringJob(pack(list(groups.values()), options.packing, max_length=_ROW_LENGTH), tuple(units))


def score_replies(
    job: ScoringJob,
    score_step: ScoreStep,
    params: Any,
    rows_per_batch: int,
    on_progress: Callable[[int], None] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """(log-prob, number of tokens) by sequence id. `on_progress` is told how many packed rows are done."""

    def report(num_batches: int) -> None:
        if on_progress:
            on_progress(min(num_batches * rows_per_batch, len(job.packed)))

    batches = eval_batches(job.packed, rows_per_batch)
    return logps_by_sequence(score_step, params, batches, job.packed.num_sequences, report)


def logps_by_sequence(
    score_step: ScoreStep,
    params: Any,
    batches: Iterable[Any],
    num_sequences: int,
    on_progress: Callable[[int], None] | None = None,
) -> tuple[Float32[np.ndarray, " sequences"], Int64[np.ndarray, " sequences"]]:
    """(log-prob, number of tokens) by sequence id over one pass of `batches`; NaN and 0 for ids that never come.

    Each batch is dispatched before the one before it is read. `on_progress` is told how many batches were read.
    """
    logps, num_tokens = np.full(num_sequences, np.nan, np.float32), np.zeros(num_sequences, np.int64)
    pending = None
    for num_read, batch in enumerate(batches):
        scores = score_step(params, batch)
        _collect(pending, logps, num_tokens)
        pending = scores
        if on_progress:
            on_progress(num_read)
    _collect(pending, logps, num_tokens)
    return logps, num_tokens


def output_rows(job: ScoringJob, logps: np.ndarray, num_tokens: np.ndarray) -> Iterator[dict[str, float]]:
    """What is written for each row, in input order; a dialogue's replies are added up.

    Raises a NonFiniteError, naming the row, for a log-prob that is no number.
    """
    for number, units in enumerate(job.units, start=1):
        columns = np.array(units, np.int64).T  # [1 or 2, replies]
        names = ("",) if len(columns) == 1 else ("_chosen", "_rejected")
        sums = [float(np.sum(logps[ids], dtype=np.float64)) for ids in columns]
        if not np.isfinite(sums).all():
            raise NonFiniteError(f"row {number} has the log-prob {sums}: the model's weights or activations overflow")
        counts = [int(num_tokens[ids].sum()) for ids in columns]
        yield {f"logp{name}": value for name, value in zip(names, sums, strict=True)} | {
            f"tokens{name}": count for name, count in zip(names, counts, strict=True)
        }


def _check_complete(path: str, tally: Tally) -> None:
    """Raises a DataError if a row was left out: the output would not match the input line by line."""
    lost: Counter[str] = tally.dropped
    if lost:
        reasons = ", ".join(f"{count} rows: {reason}" for reason, count in lost.items())
        raise DataError(f"{path} has rows that cannot be scored ({reasons}); remove them first")


def _encode(row: Row, encoder: ReplyEncoder, next_id: int, problems: list[str]) -> Iterator[Unit]:
    for prompt, replies in replies_of(row, PAIRED_ROWS):
        try:
            encoded = encoder.encode(prompt, replies, row.template_variables)
        except Unusable as error:
            problems.append(f"{row.origin}: {error}".replace("data.max_length", "--max-length"))
            continue
        yield tuple(to_sequence(reply, next_id + n) for n, reply in enumerate(encoded.replies))
        next_id += len(replies)


def _collect(scores: Any, logps: np.ndarray, num_tokens: np.ndarray) -> None:
    if scores is None:
        return
    scores = jax.device_get(scores)
    is_used_BS = scores.sequence_id_BS >= 0
    ids = scores.sequence_id_BS[is_used_BS]
    logps[ids] = scores.logps_BS[is_used_BS]
    num_tokens[ids] = np.rint(scores.num_tokens_BS[is_used_BS]).astype(np.int64)
