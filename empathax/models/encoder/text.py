"""Texts to the rows an encoder reads: [CLS] text [SEP], or [CLS] text [SEP] second text [SEP]."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from empathax.errors import WeightsError
from empathax.models.encoder.encoder import EncoderConfig
from empathax.models.tokenizers.tokenizer import Tokenizer

_WIDTH_STEP = 16  # rows are padded to multiples of it, so that few shapes are compiled


class EncoderRow(NamedTuple):
    """The ids of one input: segment 0 is [CLS], the first text and [SEP], segment 1 the rest."""

    token_ids: list[int]
    num_first: int  # tokens of segment 0


class EncoderBatch(NamedTuple):
    """Rows of equal length: numpy arrays on the host, traced ones inside jit."""

    token_ids_BT: Any  # int32
    mask_BT: Any  # bool: real tokens
    segment_ids_BT: Any  # int32: 0 in the first text, 1 in the second


class EncoderText:
    """Turns text into an encoder's ids. Control tokens ("[SEP]") written in the text are plain characters."""

    def __init__(self, tokenizer: Tokenizer, config: EncoderConfig):
        self._tokenizer, self._config = tokenizer, config
        begin, end = ("<s>", "</s>") if config.family == "roberta" else ("[CLS]", "[SEP]")
        self._begin, self._end = (_known_id(tokenizer, text, config.family) for text in (begin, end))
        self.pad_id: int = tokenizer.pad_token_id or 0

    def row(self, first: str, second: str = "", max_first: int = 0, max_second: int = 0) -> EncoderRow:
        """The ids of one text or a pair. Of too long texts the first loses its end, the second its beginning; 0 = no
        limit but the encoder's."""
        limit = self._config.max_tokens - 2
        ids = self._tokenizer.encode_plain(first)[: min(max_first or limit, limit)]
        row = [self._begin, *ids, self._end]
        room = min(max_second or limit, self._config.max_tokens - len(row) - self._num_separators)
        context = self._tokenizer.encode_plain(second)[-room:] if second and room > 0 else []
        if not context:
            return EncoderRow(row, len(row))
        separators = [self._end] * (self._num_separators - 1)  # RoBERTa writes two between the texts
        return EncoderRow([*row, *separators, *context, self._end], len(row))

    @property
    def _num_separators(self) -> int:
        return 2 if self._config.family == "roberta" else 1

    def batch(self, rows: Sequence[EncoderRow], width: int = 0) -> EncoderBatch:
        """Rows padded to `width`, or to their own longest in steps of 16."""
        longest = max((len(row.token_ids) for row in rows), default=1)
        width = width or min(-(-longest // _WIDTH_STEP) * _WIDTH_STEP, self._config.max_tokens)
        token_ids_BT = np.full((len(rows), width), self.pad_id, np.int32)
        segment_ids_BT = np.zeros((len(rows), width), np.int32)
        mask_BT = np.zeros((len(rows), width), bool)
        for number, row in enumerate(rows):
            token_ids_BT[number, : len(row.token_ids)] = row.token_ids
            mask_BT[number, : len(row.token_ids)] = True
            segment_ids_BT[number, row.num_first : len(row.token_ids)] = 1
        return EncoderBatch(token_ids_BT, mask_BT, segment_ids_BT)

    def batches(self, rows: Sequence[EncoderRow], batch_size: int) -> Iterator[tuple[np.ndarray, EncoderBatch]]:
        """(row numbers, batch) over all rows, similar lengths together; the last of a batch repeats to fill it."""
        order = np.argsort([len(row.token_ids) for row in rows], kind="stable")
        for start in range(0, len(rows), batch_size):
            numbers = order[start : start + batch_size]
            filled = np.pad(numbers, (0, batch_size - len(numbers)), mode="edge")
            yield numbers, self.batch([rows[number] for number in filled])


def _known_id(tokenizer: Tokenizer, text: str, family: str) -> int:
    token_id = tokenizer.token_to_id(text)
    if token_id is None:
        raise WeightsError(
            f"the encoder's tokenizer lacks {text}, which a {family} encoder needs: are tokenizer and config.json of "
            "the same model?"
        )
    return token_id
