"""What is wrong with a set of replies at a glance: repetition, length, questions, kinds of response, leaked templates.

Definitions: docs/metrics.md. The columns are found by patterns, so the host counts them; the four-grams of all replies
are counted under jit. A new column is one entry of what `health_columns` returns.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Sequence

import jax
import numpy as np
from jaxtyping import Float

from empathax.evaluation.metrics.ngrams import most_frequent, sort_ngrams
from empathax.evaluation.metrics.words import TextIds

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
_QUESTIONS = re.compile(r"\?+").findall


def health_columns(replies: Sequence[str], words: TextIds) -> dict[str, Float[np.ndarray, " E"]]:
    """A number for each reply by metric name; NaN leaves a reply out. `words` are the replies' Treebank words."""
    plain = [" ".join(reply.lower().replace("’", "'").split()) for reply in replies]

    def share(is_so: Callable[[str], object], texts: Sequence[str] = plain) -> Float[np.ndarray, " E"]:
        return np.array([100.0 if is_so(text) else 0.0 for text in texts])

    return {
        "reply_words": words.lengths_N.astype(np.float64),
        "empty_replies": share(lambda text: not text),
        "questions_per_reply": np.array([float(len(_QUESTIONS(text))) for text in plain]),
        **{kind: share(finds) for kind, finds in _CUES.items()},
        "template_leakage": share(leaks_template, replies),
    }


def repeated_replies(
    replies: Sequence[str], dialogues: Sequence[Hashable], histories: Sequence[Sequence[str]]
) -> Float[np.ndarray, " E"]:
    """100 for a reply that was said before in its dialogue, but for case and spacing; an empty one never was.

    Args:
        replies: in the order in which they were said.
        dialogues: the dialogue of each.
        histories: the supporter's turns before each.
    """
    said: dict[Hashable, set[str]] = {}
    found = []
    for reply, dialogue, history in zip(replies, dialogues, histories, strict=True):
        own, earlier = _same(reply), said.setdefault(dialogue, set())
        found.append(100.0 if own and own in earlier | set(map(_same, history)) else 0.0)
        earlier.add(own)
    return np.array(found)


def top_4gram_share(words: TextIds) -> float:
    """Occurrences of the most frequent four-gram over all four-grams of all replies, x100. Of no single reply."""
    most, total = jax.device_get(most_frequent(sort_ngrams(*words.in_one_row(), 4)))
    return 100.0 * int(most) / max(int(total), 1)


def leaks_template(reply: str) -> bool:
    """Whether `reply` holds a control token of a known chat template."""
    return _TEMPLATE.search(reply) is not None


def _same(text: str) -> str:
    return " ".join(text.casefold().split())
