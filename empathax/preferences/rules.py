"""Pairs that need no LLM: a gold reply against one that somebody said elsewhere. What each rule is for and where it
misleads: docs/preference_data.md."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from empathax.data.support_corpora import ADVICE
from empathax.errors import DataError
from empathax.preferences.contexts import Context
from empathax.preferences.emotions import distance, farthest
from empathax.preferences.pairs import Candidate, Pair
from empathax.preferences.reply_pool import ReplyPool

Made = Iterator[Pair]


@dataclass(frozen=True)
class Rule:
    """A rule: (contexts of a split, contexts of dialogues that failed, seed) to pairs, and how it is described."""

    make: Callable[[Sequence[Context], Sequence[Context], int], Made]
    chosen: str
    rejected: str


def rule_pairs(name: str, contexts: Sequence[Context], failed: Sequence[Context], seed: int) -> list[Pair]:
    """The pairs of one rule, in the order of `contexts`."""
    pairs = list(RULES[name].make(contexts, failed, seed))
    order = {context.context_id: number for number, context in enumerate(contexts)}
    return sorted(pairs, key=lambda pair: order[pair.context.context_id])


def check_made(name: str, pairs: Mapping[str, Sequence[Pair]], contexts: Mapping[str, Sequence[Context]]) -> None:
    """Raises a DataError if the contexts lack what the rule goes by: no split has a pair."""
    if not any(pairs.values()):
        raise DataError(
            f"rule {name}: no pair can be made of {sum(map(len, contexts.values())):,} contexts; it needs "
            f"{_NEEDS[name]}: choose another rule or source"
        )


def _premature_advice(contexts: Sequence[Context], failed: Sequence[Context], seed: int) -> Made:
    late = [context for context in contexts if _half(context) == 1 and context.strategies and _is_advice(context)]
    pool = ReplyPool(late, group=_problem)
    for context in contexts:
        is_open = context.strategies and any(context.strategies) and not ADVICE.intersection(context.strategies)
        if _half(context) == 0 and is_open:
            yield from _against(pool, context, [_problem(context)], "premature_advice", seed)


def _failed_supporter(contexts: Sequence[Context], failed: Sequence[Context], seed: int) -> Made:
    pool = ReplyPool(failed, group=lambda context: f"{_problem(context)}/{context.quartile}")
    for context in contexts:
        like = f"{_problem(context)}/{context.quartile}"
        groups = [like] if like in pool.groups else sorted(g for g in pool.groups if g.endswith(f"/{context.quartile}"))
        yield from _against(pool, context, groups, "failed_supporter", seed)


def _opposite_emotion(contexts: Sequence[Context], failed: Sequence[Context], seed: int) -> Made:
    pool = ReplyPool(
        [c for c in contexts if _emotion(c)], group=lambda context: f"{_emotion(context)}/{context.quartile}"
    )
    present = {group.rpartition("/")[0] for group in pool.groups}
    for context in contexts:
        others = sorted(farthest(_emotion(context), present))
        groups = [f"{other}/{context.quartile}" for other in others]
        for pair in _against(pool, context, groups, "opposite_emotion", seed):
            steps = distance(_emotion(context), str(pair.rejected.source["emotion_type"]))
            rejected = Candidate(pair.rejected.text, {**pair.rejected.source, "steps": steps})
            yield dataclasses.replace(pair, rejected=rejected)


def _position(contexts: Sequence[Context], failed: Sequence[Context], seed: int) -> Made:
    pool = ReplyPool(contexts, group=lambda context: f"{_problem(context)}/{context.quartile}")
    for context in contexts:
        if context.quartile not in (0, 1):
            continue
        groups = [f"{_problem(context)}/{context.quartile + 2}"]
        other = pool.draw(f"{seed}/position/{context.context_id}", context, groups, once=True)
        if other:  # both ways: each reply is chosen in its place and rejected in the other's
            link = f"{context.context_id} {other.context_id}"
            yield dataclasses.replace(_pair(context, other, "position"), link=link)
            yield dataclasses.replace(_pair(other, context, "position"), link=link)


RULES: Mapping[str, Rule] = {
    "premature_advice": Rule(
        _premature_advice,
        "what the supporter said in the first half of the dialogue, where that is no advice",
        "a reply of nothing but suggestions or information from the second half of a dialogue about the same problem "
        "(any, where the source names no problems)",
    ),
    "failed_supporter": Rule(
        _failed_supporter,
        "what the supporter said",
        "a reply from the same quartile of a dialogue about the same problem that was found not to help",
    ),
    "opposite_emotion": Rule(
        _opposite_emotion,
        "what the supporter said",
        "a reply from the same quartile of a dialogue about the emotion farthest away on Plutchik's wheel (as EmPO)",
    ),
    "position": Rule(
        _position,
        "what the supporter said",
        "a reply from half a dialogue earlier or later in another dialogue about the same problem (any, where the "
        "source names no problems); the two replies also stand the other way round in that place, so that no word by "
        "itself tells chosen from rejected",
    ),
}
_NEEDS = {
    "premature_advice": "ESConv's strategies",
    "failed_supporter": "FailedESConv (--failed=FILE, or failed_esconv.json beside the source)",
    "opposite_emotion": "dialogues with emotions that lie apart on Plutchik's wheel",
    "position": "dialogues of several turns of the supporter's",
}


def _against(pool: ReplyPool, context: Context, groups: Sequence[str], method: str, seed: int) -> Made:
    if context.reply and context.quartile is not None:
        other = pool.draw(f"{seed}/{method}/{context.context_id}", context, groups)
        if other:
            yield _pair(context, other, method)


def _pair(context: Context, other: Context, method: str) -> Pair:
    source = {
        "by": "rule",
        "rule": method,
        "source": other.origin,
        "context_id": other.context_id,
        "quartile": other.quartile,
        "strategies": list(other.strategies),
        **other.kinds,
    }
    chosen = Candidate(context.reply, {"by": "gold", "strategies": list(context.strategies), **context.kinds})
    return Pair(context, chosen, Candidate(other.reply, source), method)


def _half(context: Context) -> int | None:
    return None if context.quartile is None else context.quartile // 2


def _is_advice(context: Context) -> bool:
    return ADVICE.issuperset(context.strategies)


def _problem(context: Context) -> str:
    return context.kinds.get("problem_type", "")


def _emotion(context: Context) -> str:
    return context.kinds.get("emotion_type", "")
