"""The tokens that end a reply: the template's own, and those that a user adds."""

from __future__ import annotations

from collections.abc import Sequence

from empathax.data.chat import ChatTemplate
from empathax.errors import ConfigError, raise_all
from empathax.models.tokenizer import Tokenizer


def stop_token_ids(template: ChatTemplate, extra: Sequence[str] = ()) -> tuple[int, ...]:
    """Ids of the template's stop tokens and of `extra`, sorted.

    An extra one is a token as the vocabulary spells it ("<|im_end|>"), or a text that is a single token ("\\n"). A
    reply ends at that token only, not where the same characters are part of another. Raises one ConfigError with every
    text that is none or several tokens.
    """
    problems: list[str] = []
    added = [_single_id(template.tokenizer, text, problems) for text in extra]
    raise_all(ConfigError, "replies cannot stop there", problems)
    return tuple(sorted({*template.stop_token_ids, *added}))


def _single_id(tokenizer: Tokenizer, text: str, problems: list[str]) -> int:
    by_name = tokenizer.token_to_id(text)
    if by_name is not None:
        return by_name
    ids = tokenizer.encode(text)
    unknown = tokenizer.token_to_id(tokenizer.unk_token) if tokenizer.unk_token else None
    if len(ids) == 1 and ids[0] != unknown:
        return ids[0]
    found = "not in the vocabulary" if unknown in ids else f"{len(ids)} tokens ({_in_words(tokenizer, ids)})"
    problems.append(f"stop token {text!r} is {found}: expected a single token; name one, or leave it out")
    return -1


def _in_words(tokenizer: Tokenizer, ids: Sequence[int]) -> str:
    shown = ", ".join(repr(tokenizer.id_to_token(token_id)) for token_id in ids[:6])
    return (shown or "none") + (", ..." if len(ids) > 6 else "")
