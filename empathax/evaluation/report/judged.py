"""Every row of a report against its first one, reply by reply, as a judge sees it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from empathax.errors import DataError
from empathax.evaluation.judging.chat_server import ChatServer
from empathax.evaluation.judging.judge_material import rubric_version
from empathax.evaluation.judging.judge_pairs import RUBRIC, compare_replies
from empathax.evaluation.report.record import EvaluationRecord


def judged(judge: ChatServer, records: Sequence[EvaluationRecord]) -> list[EvaluationRecord]:
    """The records with `win_rate` against the first one, its counts, and what is needed for its interval.

    Raises a DataError if a record lacks replies to the first one's prompts, and what `compare_replies` raises.
    """
    first, *others = records
    if not first.replies or any(_asked(record) != _asked(first) for record in others):
        raise DataError("--judge compares replies to the same prompts: expected all of them in every evaluation.json")
    return [first, *(_against(judge, record, first) for record in others)]


def _against(judge: ChatServer, record: EvaluationRecord, first: EvaluationRecord) -> EvaluationRecord:
    comparison = compare_replies(
        judge,
        [reply.prompt for reply in record.replies],
        replies_a=[reply.reply for reply in record.replies],
        replies_b=[reply.reply for reply in first.replies],
    )
    statistic = comparison.statistic([reply.dialogue for reply in record.replies])
    return dataclasses.replace(
        record,
        metrics={**record.metrics, **comparison.metrics()},
        per_example={**record.per_example, **({"win_rate": statistic} if statistic else {})},
        decoding={**record.decoding, "judge of pairs": judge.options.model, "rubric pairs": rubric_version(RUBRIC)},
    )


def _asked(record: EvaluationRecord) -> list[object]:
    return [(reply.dialogue, reply.prompt) for reply in record.replies]
