"""Whether a pair shows words of the dialogues that models are evaluated on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from empathax.data.records import CompletionRow, Dialogue, Row
from empathax.preferences.contexts import SPLITS
from empathax.preferences.pairs import Pair
from empathax.preferences.words import words

WINDOW = 13  # words in a row, as GPT-3's decontamination (Brown et al. 2020, appendix C)
WHOLE = 8  # words from which on a whole turn counts


class HeldOutTexts:
    """Runs of 13 words of held-out dialogues, and their turns of 8 to 12 words as a whole."""

    def __init__(self, texts: Iterable[str] = ()) -> None:
        self._known = {run for text in texts for run in _own_runs(words(text))}
        self._sizes = sorted({len(run) for run in self._known})
        self._shared: dict[str, str] = {}  # turns stand in many contexts

    def __len__(self) -> int:
        return len(self._known)

    def shared(self, text: str) -> str:
        """The first run of words of `text` that a held-out dialogue has; "" if there is none."""
        if text not in self._shared:
            found = words(text)
            runs = (run for size in self._sizes for run in _runs(found, size))
            self._shared[text] = next((" ".join(run) for run in runs if run in self._known), "")
        return self._shared[text]

    def of_pair(self, pair: Pair) -> str:
        """As `shared`, in the seeker's turns and both replies. The supporter's earlier turns do not count by
        themselves: supporters greet in many dialogues with the same sentences."""
        texts = [message.content for message in pair.context.prompt if message.role == "user"]
        texts += [pair.chosen.text, pair.rejected.text]
        return next((run for text in texts if (run := self.shared(text))), "")


def held_out_texts(rows: Mapping[str, Sequence[Row]], split: str) -> HeldOutTexts:
    """What pairs of `split` must not share: the dialogues of the splits after it (`rows` as of `load_by_split`)."""
    later = SPLITS[SPLITS.index(split) + 1 :]
    return HeldOutTexts(text for name in later for row in rows.get(name, ()) for text in _texts(row))


def _texts(row: Row) -> list[str]:
    if isinstance(row, Dialogue):
        return [message.content for message in row.messages]
    prompt = [row.prompt] if isinstance(row.prompt, str) else [message.content for message in row.prompt]
    replies = [row.completion] if isinstance(row, CompletionRow) else [row.chosen, row.rejected]
    return prompt + replies


def _own_runs(found: Sequence[str]) -> list[tuple[str, ...]]:
    return _runs(found, len(found) if WHOLE <= len(found) < WINDOW else WINDOW)


def _runs(found: Sequence[str], size: int) -> list[tuple[str, ...]]:
    return [tuple(found[at : at + size]) for at in range(len(found) - size + 1)]
