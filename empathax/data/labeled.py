"""Single replies with a label (KTO) in packed rows, and the mismatched replies for its estimate of the KL divergence.

A mismatched reply is the reply to another prompt, put after this prompt. TRL pairs (x_1, y_n), (x_2, y_1), ... within a
batch. Here replies are exchanged within a packed row, so every batch of rows holds its own mismatched replies, as
branches of the same trees. Each reply of a row comes exactly once more, whichever prompt it follows: `with_room` keeps
this room before rows are planned, `with_mismatched` assigns the replies afterwards.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

from empathax.data.batch import LabeledReplies
from empathax.data.prefix_tree import ScoredSequence
from empathax.data.row_plan import Group, RowPlan, Unit


def with_room(groups: Sequence[Group], num_replies: int) -> list[list[Unit]]:
    """Units (reply,) as (reply, place for a mismatched one of this length); its sequence id is `num_replies` more."""

    def placeholder(reply: ScoredSequence) -> ScoredSequence:
        own_ids = np.full_like(reply.reply_ids, -1 - reply.sequence_id)  # which no other sequence shares
        return ScoredSequence(reply.prompt_ids, own_ids, reply.sequence_id + num_replies)

    return [[(reply, placeholder(reply)) for (reply,) in group] for group in groups]


def with_mismatched(plan: RowPlan, max_length: int) -> RowPlan:
    """The plan with mismatched replies in the places that `with_room` kept; none where a row has no other prompt.

    A reply is cut where the sequence would be longer than `max_length` (0 = unlimited), as in TRL.
    """
    parts: list[Group] = list(plan.parts)
    for row in plan.rows:
        places = [(part, number) for part in row for number in range(len(parts[part]))]
        units = [parts[part][number] for part, number in places]
        dealt: dict[int, list[Unit]] = {part: list(parts[part]) for part in row}
        for (part, number), unit, other in zip(places, units, partners([unit[0] for unit in units]), strict=True):
            dealt[part][number] = _with_reply(unit, None if other is None else units[other][0], max_length)
        for part, own in dealt.items():
            parts[part] = own
    return dataclasses.replace(plan, parts=parts)


def partners(replies: Sequence[ScoredSequence]) -> list[int | None]:
    """For each of a row's replies the place of another one with another prompt, each once; None where none is left.

    A rotation by half of the replies in the order of their prompts: neighbours in this order share the most.
    """
    prompts = [reply.prompt_ids.tobytes() for reply in replies]
    order = sorted(range(len(replies)), key=lambda place: (prompts[place], replies[place].sequence_id))
    found: list[int | None] = [None] * len(replies)
    for number, place in enumerate(order):
        other = order[number - len(order) // 2]
        found[place] = other if prompts[other] != prompts[place] else None
    return found


def labeled_replies(
    sequence_ids: Int[np.ndarray, " sequences"], labels: Sequence[bool], num_slots: int
) -> LabeledReplies:
    """Where a row's replies are among its sequences, with their labels and mismatched replies."""
    slot_of = {int(sequence_id): slot for slot, sequence_id in enumerate(sequence_ids)}
    own = [sequence_id for sequence_id in slot_of if sequence_id < len(labels)]
    mismatched = [slot_of.get(sequence_id + len(labels)) for sequence_id in own]

    def filled(values: Sequence[float], dtype: type) -> np.ndarray:
        return np.array([*values, *[0] * (num_slots - len(values))], dtype)

    return LabeledReplies(
        index_BR=filled([slot_of[sequence_id] for sequence_id in own], np.int32),
        desirable_BR=filled([labels[sequence_id] for sequence_id in own], np.float32),
        weight_BR=filled([1.0] * len(own), np.float32),
        mismatched_index_BR=filled([slot or 0 for slot in mismatched], np.int32),
        mismatched_weight_BR=filled([slot is not None for slot in mismatched], np.float32),
    )


def _with_reply(unit: Unit, other: ScoredSequence | None, max_length: int) -> Unit:
    """A unit of `with_room` with the reply of `other` in its place."""
    reply, place = unit
    if other is None:
        return (reply,)
    room = max_length - len(reply.prompt_ids) if max_length else len(other.reply_ids)
    return (reply, dataclasses.replace(place, reply_ids=other.reply_ids[:room]))
