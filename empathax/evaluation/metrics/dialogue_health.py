"""What is wrong with a set of replies at a glance: repetition, length, questions, kinds of response, leaked templates.

Definitions: docs/metrics.md. Shares are in percent.
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterator, Mapping, Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from empathax.errors import DataError
from empathax.evaluation.metrics.id_rows import one_row
from empathax.evaluation.metrics.ngrams import TableSizes, ngram_table
from empathax.evaluation.metrics.words import lower_pieces, treebank_piece

# Wordings that mark a kind of response; a reply may be of several kinds.
CUES = {
    "understanding": r"i(?: can)? (?:hear|understand|see (?:how|why|that)|imagine)|sounds like|seems like|makes sense"
    r"|(?:that|it|this) (?:must|sounds|seems)|you(?: are|'re) feeling|you feel"
    r"|(?:i am|i'm|im)(?: so| very| really)? sorry",
    "self_disclosure": r"i(?: have|'ve)(?: also| been| had| felt| gone| struggled)|when i|my own|me too|for me"
    r"|i (?:was|felt|went|used to|lost|struggled)|(?:happened|same)(?: thing)? (?:to|with|for) me"
    r"|in my (?:experience|case|life)",
    "advice": r"you (?:should|could|can|might|may want|need to|ought)|(?:try|consider) (?:to|a|the|\w+ing)"
    r"|(?:have|did) you (?:tried|try|considered|thought (?:of|about))|i(?:'d| would)? (?:suggest|recommend|advise)"
    r"|why (?:don't|not)|how about|what if you|make sure|it (?:may|might|could|would) help",
}
_CUES = {kind: re.compile(rf"\b(?:{pattern})\b").search for kind, pattern in CUES.items()}
# Control tokens of the known chat templates.
_TEMPLATE = re.compile(
    r"<\|[^|<>\s]{1,40}\|>|\[/?(?:INST|SYSTEM_PROMPT|AVAILABLE_TOOLS)\]|<</?SYS>>|</?s>|</?think>"
    r"|</?(?:start_of_turn|end_of_turn|bos|eos|pad|unk)>"
)
NAMES = ("reply_words", "empty_replies", "questions_per_reply", *CUES, "template_leakage")
_PER_REPLY = ("reply_words", "questions_per_reply")  # counts; all others are shares
SCALE = {name: 1.0 if name in _PER_REPLY else 100.0 for name in (*NAMES, "repeated_replies")}


def dialogue_health(
    replies: Sequence[str],
    *,
    dialogue_ids: Sequence[Hashable] | None = None,
    histories: Sequence[Sequence[str]] | None = None,
    special_tokens: Sequence[str] = (),
) -> dict[str, float]:
    """The numbers of `replies`, in the order in which they were said.

    Args:
        dialogue_ids: the dialogue of each reply. Without it and `histories` there is no `repeated_replies`.
        histories: the supporter turns before each reply, for replies to given histories.
        special_tokens: a tokenizer's control tokens, besides those of the known templates.

    Raises:
        DataError: no replies, or not one dialogue id or history for each.
    """
    columns = health_columns(replies, dialogue_ids=dialogue_ids, histories=histories, special_tokens=special_tokens)
    return health_metrics(replies, columns)


def health_metrics(replies: Sequence[str], columns: Mapping[str, Sequence[int]]) -> dict[str, float]:
    """The numbers of `replies` from their `health_columns`."""
    row_1K = one_row(lower_pieces(replies).ids(treebank_piece))
    sums, sizes = jax.device_get(_count(jnp.array(list(columns.values()), jnp.int32), row_1K))
    found = {name: SCALE[name] * int(total) / len(replies) for name, total in zip(columns, sums, strict=True)}
    return found | {"top_4gram_share": 100.0 * int(sizes.most) / max(int(sizes.total), 1)}


def health_columns(
    replies: Sequence[str],
    *,
    dialogue_ids: Sequence[Hashable] | None = None,
    histories: Sequence[Sequence[str]] | None = None,
    special_tokens: Sequence[str] = (),
) -> dict[str, list[int]]:
    """A number for each reply: metric -> counts, or 0 and 1. Times SCALE, their mean is the metric.

    Arguments and errors as `dialogue_health`; `top_4gram_share` is of all replies together and not among them.
    """
    _check(replies, dialogue_ids, histories)
    words = lower_pieces(replies).ids(treebank_piece)
    columns = dict(zip(NAMES, _columns(replies, words.lengths_N.tolist(), special_tokens), strict=True))
    if dialogue_ids is None and histories is None:
        return columns
    return columns | {"repeated_replies": _repeats(replies, dialogue_ids, histories)}


@jax.jit
def _count(columns_FN: Int[Array, "F N"], row_1K: Int[Array, "1 K"]) -> tuple[Array, TableSizes]:
    return jnp.sum(columns_FN, axis=1), ngram_table(row_1K, 4).sizes()


def _columns(replies: Sequence[str], num_words: Sequence[int], special_tokens: Sequence[str]) -> Iterator[list[int]]:
    """One number a reply for each of NAMES."""
    plain = [" ".join(reply.lower().replace("’", "'").split()) for reply in replies]
    own = re.compile("|".join(map(re.escape, special_tokens)) or r"(?!)").search
    yield list(num_words)
    yield [not text for text in plain]
    yield [len(re.findall(r"\?+", text)) for text in plain]
    for finds in _CUES.values():
        yield [finds(text) is not None for text in plain]
    yield [bool(leaks_template(reply) or own(reply)) for reply in replies]


def leaks_template(reply: str) -> bool:
    """Whether `reply` holds a control token of a known chat template."""
    return _TEMPLATE.search(reply) is not None


def _repeats(
    replies: Sequence[str], dialogue_ids: Sequence[Hashable] | None, histories: Sequence[Sequence[str]] | None
) -> list[int]:
    """Whether a reply was said before in its dialogue, but for case and spacing; an empty one never was."""
    said: dict[Hashable, set[str]] = {}
    found: list[int] = []
    for number, reply in enumerate(replies):
        own = _same(reply)
        earlier = said.setdefault(dialogue_ids[number], set()) if dialogue_ids is not None else set()
        before = earlier | {_same(turn) for turn in histories[number]} if histories is not None else earlier
        found.append(bool(own) and own in before)
        earlier.add(own)
    return found


def _same(text: str) -> str:
    return " ".join(text.casefold().split())


def _check(
    replies: Sequence[str], dialogue_ids: Sequence[Hashable] | None, histories: Sequence[Sequence[str]] | None
) -> None:
    if not replies:
        raise DataError("found no replies: expected at least one")
    for name, values in (("dialogue_ids", dialogue_ids), ("histories", histories)):
        if values is not None and len(values) != len(replies):
            raise DataError(f"found {len(values)} {name} for {len(replies)} replies: expected one for each")
