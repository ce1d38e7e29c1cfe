"""Sets made by rules, without an LLM: what the supporter said against a reply that was said elsewhere.

Four rules draw the rejected reply from other dialogues: by strategy, by failed dialogues, by emotion, by place. What
each is for and where it misleads: docs/preference_data.md.
"""

from __future__ import annotations

import bisect
import dataclasses
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from empathax.config import DataOptions
from empathax.data.records import Dialogue
from empathax.data.sources import load_all
from empathax.data.support_corpora import ADVICE
from empathax.errors import DataError
from empathax.preferences.filters import FilterOptions, filter_pairs
from empathax.preferences.overlap import num_words, plain
from empathax.preferences.pairs import Candidate, Context, Pair
from empathax.preferences.set_files import PreferenceSet, check_not_empty, in_words, start, write_set
from empathax.preferences.source import SPLITS, Source, check_names, contexts_of, read_source

FAILED_FILE = "failed_esconv.json"
_FAILED_RULE = "failed_supporter"


def build_rule_sets(
    names: Sequence[str],
    options: DataOptions,
    *,
    failed_path: str,
    filters: FilterOptions,
    splits: Sequence[str],
    seed: int,
    out: Path,
    say: Callable[[str], None],
) -> None:
    """Makes the sets of the rules `names`, one in `out`, several in `out`/NAME, and tells `say` what is in them.

    Raises:
        ConfigError: an unknown rule or split, or `out` holds something else.
        DataError: the source cannot be read, or lacks a split or what a rule goes by; or filters leave no pair.
    """
    check_names("rule", names, tuple(RULES))
    check_names("split", splits or SPLITS, SPLITS)
    source = read_source(options, splits)
    failed_file = _failed_file(failed_path, options.path) if _FAILED_RULE in names else None
    all_failed = _failed(failed_file) if failed_file else {}
    say(source.in_words)
    for name in names:
        directory = out / name if len(names) > 1 else out
        failed = all_failed if name == _FAILED_RULE else {}
        settings = {
            "rule": name,
            "source": source.path,
            "failed": str(failed_file) if failed else None,
            "contexts": source.digest(*failed.items()),
            "seed": seed,
            "splits": list(source.contexts),
            "data": source.settings,
            **vars(filters),
        }
        made = _made(name, source, failed, filters, settings)
        summary = write_set(directory, made, start(directory, settings))
        say(in_words(summary, directory))
        check_not_empty(summary)


def _made(
    name: str, source: Source, failed: dict[str, list[Context]], filters: FilterOptions, settings: dict[str, Any]
) -> PreferenceSet:
    rule, contexts, seed = RULES[name], source.contexts, settings["seed"]
    made = {split: rule_pairs(name, part, failed.get(split, []), seed) for split, part in contexts.items()}
    if not any(made.values()):
        raise DataError(
            f"rule {name}: no pair can be made of {sum(map(len, contexts.values())):,} contexts; it needs "
            f"{rule.needs}: choose another rule or source"
        )
    return PreferenceSet(
        name,
        f"No language model took part. Chosen: {rule.chosen}. Rejected: {rule.rejected}.",
        settings,
        {split: filter_pairs(pairs, source.held_out[split], filters) for split, pairs in made.items()},
        {split: len(texts) for split, texts in source.held_out.items()},
        {"pairs_before_filters": {split: len(pairs) for split, pairs in made.items()}},
    )


def _failed_file(path: str, source: str) -> Path:
    """FailedESConv: at `path`, else beside or in the source."""
    beside = Path(source).expanduser()
    place = Path(path).expanduser() if path else (beside.parent if beside.is_file() else beside) / FAILED_FILE
    if not place.is_file():
        raise DataError(
            f"{place}: no such file; the rule {_FAILED_RULE} takes its rejected replies from FailedESConv: name its "
            "file with --failed"
        )
    return place


def _failed(place: Path) -> dict[str, list[Context]]:
    """Contexts of FailedESConv by split: a dialogue goes to one of them by its name, so that no reply is in two."""
    rows, _ = load_all(str(place), DataOptions())
    found: dict[str, list[Context]] = {split: [] for split in SPLITS}
    for row in rows:
        if isinstance(row, Dialogue):
            share = int(row.dialogue_id[:8], 16) / 2**32
            split = "train" if share < 0.7 else "valid" if share < 0.85 else "test"
            found[split] += contexts_of([row])
    return found


def rule_pairs(name: str, contexts: Sequence[Context], failed: Sequence[Context], seed: int) -> list[Pair]:
    """The pairs of one rule for the contexts of a split, in their order; `failed` are those of failed dialogues."""
    pairs = list(RULES[name].make(contexts, failed, seed))
    order = {context.context_id: number for number, context in enumerate(contexts)}
    return sorted(pairs, key=lambda pair: order[pair.context.context_id])


def _premature_advice(contexts: Sequence[Context], failed: Sequence[Context], seed: int) -> Iterator[Pair]:
    late = [
        context
        for context in contexts
        if _half(context) == 1 and context.strategies and ADVICE.issuperset(context.strategies)
    ]
    pool = ReplyPool(late, group=_problem)
    for context in contexts:
        is_open = any(context.strategies) and not ADVICE.intersection(context.strategies)
        if _half(context) == 0 and is_open:
            yield from _against(pool, context, [_problem(context)], "premature_advice", seed)


def _failed_supporter(contexts: Sequence[Context], failed: Sequence[Context], seed: int) -> Iterator[Pair]:
    pool = ReplyPool(failed, group=_problem_and_quartile)
    for context in contexts:
        like = _problem_and_quartile(context)
        groups = [like] if like in pool.groups else sorted(g for g in pool.groups if g.endswith(f"/{context.quartile}"))
        yield from _against(pool, context, groups, _FAILED_RULE, seed)


def _opposite_emotion(contexts: Sequence[Context], failed: Sequence[Context], seed: int) -> Iterator[Pair]:
    known = [context for context in contexts if _emotion(context)]
    pool = ReplyPool(known, group=lambda context: f"{_emotion(context)}/{context.quartile}")
    present = {group.rpartition("/")[0] for group in pool.groups}
    for context in contexts:
        groups = [f"{other}/{context.quartile}" for other in sorted(farthest(_emotion(context), present))]
        for pair in _against(pool, context, groups, "opposite_emotion", seed):
            steps = distance(_emotion(context), str(pair.rejected.source["emotion_type"]))
            rejected = Candidate(pair.rejected.text, {**pair.rejected.source, "steps": steps})
            yield dataclasses.replace(pair, rejected=rejected)


def _position(contexts: Sequence[Context], failed: Sequence[Context], seed: int) -> Iterator[Pair]:
    pool = ReplyPool(contexts, group=_problem_and_quartile)
    for context in contexts:
        if context.quartile not in (0, 1):
            continue
        groups = [f"{_problem(context)}/{context.quartile + 2}"]
        other = pool.draw(f"{seed}/position/{context.context_id}", context, groups, once=True)
        if other:  # both ways: each reply is chosen in its place and rejected in the other's
            link = f"{context.context_id} {other.context_id}"
            yield dataclasses.replace(_pair(context, other, "position"), link=link)
            yield dataclasses.replace(_pair(other, context, "position"), link=link)


@dataclass(frozen=True)
class Rule:
    """A rule.

    Attributes:
        make: (contexts of a split, contexts of failed dialogues, seed) to pairs.
        chosen, rejected: what these replies are, for the data card.
        needs: what a source must have.
    """

    make: Callable[[Sequence[Context], Sequence[Context], int], Iterator[Pair]]
    chosen: str
    rejected: str
    needs: str


RULES: Mapping[str, Rule] = {
    "premature_advice": Rule(
        _premature_advice,
        "what the supporter said in the first half of the dialogue, where that is no advice",
        "a reply of nothing but suggestions or information from the second half of a dialogue about the same problem "
        "(any, where the source names no problems)",
        "ESConv's strategies",
    ),
    "failed_supporter": Rule(
        _failed_supporter,
        "what the supporter said",
        "a reply from the same quartile of a dialogue about the same problem that was found not to help",
        f"FailedESConv (--failed=FILE, or {FAILED_FILE} beside the source)",
    ),
    "opposite_emotion": Rule(
        _opposite_emotion,
        "what the supporter said",
        "a reply from the same quartile of a dialogue about the emotion farthest away on Plutchik's wheel (as EmPO)",
        "dialogues with emotions that lie apart on Plutchik's wheel",
    ),
    "position": Rule(
        _position,
        "what the supporter said",
        "a reply from half a dialogue earlier or later in another dialogue about the same problem (any, where the "
        "source names no problems); the two replies also stand the other way round in that place, so that no word by "
        "itself tells chosen from rejected",
        "dialogues of several turns of the supporter's",
    ),
}


def _against(pool: ReplyPool, context: Context, groups: Sequence[str], method: str, seed: int) -> Iterator[Pair]:
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


def _problem(context: Context) -> str:
    return context.kinds.get("problem_type", "")


def _problem_and_quartile(context: Context) -> str:
    return f"{_problem(context)}/{context.quartile}"


def _emotion(context: Context) -> str:
    return context.kinds.get("emotion_type", "")


_NEAREST = 16  # replies nearest in length, among which the hash draws
_MAX_RATIO = 1.5  # of the two replies' numbers of words


class ReplyPool:
    """Gold replies of `contexts`, in the group that `group` names for each.

    A draw looks at replies of nearly the same number of words only, at most half as many again: otherwise length would
    tell chosen from rejected. A reply is drawn again only when all like it have been drawn as often.
    """

    def __init__(self, contexts: Sequence[Context], group: Callable[[Context], str]) -> None:
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


PRIMARY = ("joy", "trust", "fear", "surprise", "sadness", "disgust", "anger", "anticipation")  # around the wheel

# ESConv's emotion types and EmpatheticDialogues' 32 labels, each at the primary emotion it is nearest to.
_PLACES = {
    "joy": "joy joyful excited proud content happy",
    "trust": "trust trusting faithful grateful caring confident sentimental",
    "fear": "fear afraid terrified anxiety anxious nervousness apprehensive",
    "surprise": "surprise surprised impressed",
    "sadness": "sadness sad depression pain lonely disappointed devastated nostalgic guilt guilty",
    "disgust": "disgust disgusted shame ashamed embarrassed",
    "anger": "anger angry annoyed furious jealousy jealous",
    "anticipation": "anticipation anticipating hopeful prepared",
}
_PLACE_OF = {name: PRIMARY.index(primary) for primary, names in _PLACES.items() for name in names.split()}


def distance(first: str, second: str) -> int | None:
    """Steps between two emotions around the wheel, 4 = opposite; None if one is not known."""
    places = [_PLACE_OF.get(name.strip().lower()) for name in (first, second)]
    if places[0] is None or places[1] is None:
        return None
    steps = abs(places[0] - places[1])
    return min(steps, len(PRIMARY) - steps)


def farthest(emotion: str, present: set[str]) -> set[str]:
    """Those of the emotions `present` that lie farthest from `emotion`, at least 2 steps; empty if there is none."""
    steps = {other: distance(emotion, other) or 0 for other in present}
    most = max(steps.values(), default=0)
    return {other for other, value in steps.items() if value == most} if most >= 2 else set()
