"""Replies to be moved into other dialogues: drawn by a hash, of about the length of the reply they stand against."""

from __future__ import annotations

import bisect
import hashlib
from collections.abc import Callable, Sequence

from empathax.preferences.contexts import Context
from empathax.preferences.words import num_words, plain

_NEAREST = 16  # replies nearest in length, among which the hash draws
_MAX_RATIO = 1.5  # of the two replies' numbers of words


class ReplyPool:
    """Gold replies of `contexts` by a group each ("" = one group for all).

    A draw looks at replies of nearly the same number of words only, at most half as many again: otherwise length would
    tell chosen from rejected. A reply is drawn again only when all like it have been drawn as often.
    """

    def __init__(self, contexts: Sequence[Context], group: Callable[[Context], str] = lambda context: "") -> None:
        self._by_group: dict[str, list[tuple[int, str, Context]]] = {}
        self._num_drawn: dict[str, int] = {}
        for context in contexts:
            entry = (num_words(context.reply), context.context_id, context)
            self._by_group.setdefault(group(context), []).append(entry)
        for entries in self._by_group.values():
            entries.sort(key=lambda entry: entry[:2])

    @property
    def groups(self) -> set[str]:
        return set(self._by_group)

    def draw(self, key: str, target: Context, groups: Sequence[str], once: bool = False) -> Context | None:
        """A context whose reply can stand in `target`: of one of `groups`, another dialogue, other words. The number of
        words is as near as can be; of the nearest the least drawn are taken (with `once`: those not drawn yet), and of
        these one by a hash of `key`. None if there is none."""
        near = [entry for name in groups for entry in self._nearest(name, target)]
        wanted = num_words(target.reply)
        if once:
            near = [entry for entry in near if entry[1] not in self._num_drawn]
        if not near:
            return None
        near.sort(key=lambda entry: (abs(entry[0] - wanted), entry[1]))
        near = near[:_NEAREST]
        least = min(self._num_drawn.get(entry[1], 0) for entry in near)
        fresh = [entry for entry in near if self._num_drawn.get(entry[1], 0) == least]
        drawn = fresh[_hash(key) % len(fresh)][2]
        self._num_drawn[drawn.context_id] = least + 1
        return drawn

    def _nearest(self, group: str, target: Context) -> list[tuple[int, str, Context]]:
        entries = self._by_group.get(group, [])
        middle = bisect.bisect_left(entries, num_words(target.reply), key=lambda entry: entry[0])
        found: list[tuple[int, str, Context]] = []
        said = plain(target.reply)
        for step in range(4 * _NEAREST):
            places = [place for place in (middle - 1 - step, middle + step) if 0 <= place < len(entries)]
            found += [entries[place] for place in places if self._fits(entries[place][2], target, said)]
            if len(found) >= 2 * _NEAREST:
                break
        return found

    def _fits(self, other: Context, target: Context, said: str) -> bool:
        low, high = sorted(num_words(context.reply) for context in (other, target))
        return other.dialogue_id != target.dialogue_id and high <= _MAX_RATIO * low and plain(other.reply) != said


def _hash(key: str) -> int:
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big")
