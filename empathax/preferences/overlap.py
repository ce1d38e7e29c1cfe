"""Whether a pair shows words of the dialogues that models are evaluated on."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

from empathax.data.records import CompletionRow, Dialogue, Row
from empathax.preferences.contexts import SPLITS
from empathax.preferences.pairs import Pair

WINDOW = 13  # words in a row, as GPT-3's decontamination (Brown et al. 2020, appendix C)
WHOLE = 8  # words from which on a whole turn counts
_WORD = re.compile(r"\w+(?:'\w+)?")


class HeldOutTexts:
    """Runs of 13 words, and whole turns of 8 words or more, of held-out dialogues."""

    def __init__(self, texts: Iterable[str] = ()) -> None:
        self._known = {run for text in texts for run in _runs(text)}

    def __len__(self) -> int:
        return len(self._known)

    def shared(self, text: str) -> str:
        """The first run of words that `text` shares with a held-out dialogue; "" if there is none."""
        return next((" ".join(run) for run in _runs(text) if run in self._known), "")

    def of_pair(self, pair: Pair) -> str:
        """As `shared`, in the seeker's turns and both replies. The supporter's earlier turns do not count by
        themselves: supporters greet in many dialogues with the same sentences."""
        texts = [message.content for message in pair.context.prompt if message.role == "user"]
        texts += [pair.chosen.text, pair.rejected.text]
        return next((run for text in texts if (run := self.shared(text))), "")


def held_out_texts(rows: Mapping[str, Sequence[Row]], split: str) -> HeldOutTexts:
    """What pairs of `split` must not share: the dialogues of the splits after it (`rows` as of `load_rows`)."""
    later = SPLITS[SPLITS.index(split) + 1 :]
    return HeldOutTexts(text for name in later for row in rows.get(name, ()) for text in _texts(row))


def _texts(row: Row) -> list[str]:
    if isinstance(row, Dialogue):
        return [message.content for message in row.messages]
    prompt = [row.prompt] if isinstance(row.prompt, str) else [message.content for message in row.prompt]
    replies = [row.completion] if isinstance(row, CompletionRow) else [row.chosen, row.rejected]
    return prompt + replies


def _runs(text: str) -> list[tuple[str, ...]]:
    words = tuple(_WORD.findall(text.casefold()))
    whole = [words] if WHOLE <= len(words) < WINDOW else []
    return whole + [words[at : at + WINDOW] for at in range(len(words) - WINDOW + 1)]
