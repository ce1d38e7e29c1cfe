"""Changes to a `tokenizers` backend that the library has no call for; most go through its JSON form."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterable
from typing import Any

import tokenizers


def add_whole_tokens(backend: tokenizers.Tokenizer, texts: Iterable[str], *, special: bool) -> None:
    """Makes tokens whole words that are found in text before anything else; new ones get the next ids."""
    backend.add_tokens([tokenizers.AddedToken(text, normalized=False, special=special) for text in texts])


def begin_with(backend: tokenizers.Tokenizer, bos: str | None, eos: str | None = None) -> None:
    """Makes `encode(..., add_special_tokens=True)` put `bos` before a text and `eos` after it, where given."""
    ends = [token for token in (bos, eos) if token]
    backend.post_processor = tokenizers.processors.TemplateProcessing(
        single=[piece for piece in (bos, "$A", eos) if piece],
        special_tokens=[(token, backend.token_to_id(token)) for token in ends],
    )


def without_added_tokens(backend: tokenizers.Tokenizer, first_id: int) -> tokenizers.Tokenizer:
    """A copy without the added tokens from `first_id` on."""
    spec = json.loads(backend.to_str())
    spec["added_tokens"] = [token for token in spec["added_tokens"] if token["id"] < first_id]
    return tokenizers.Tokenizer.from_str(json.dumps(spec))


def hide_tokens(backend: tokenizers.Tokenizer, texts: Iterable[str]) -> tuple[tokenizers.Tokenizer, dict[str, str]]:
    """A copy in which the given tokens have names that no text can contain, and those names.

    Ids, merges and everything else stay, so all other text is tokenized as before.
    """
    nonce = secrets.token_hex(8)
    names = {text: f"\U0010fffe{nonce}{number}\U0010fffe" for number, text in enumerate(sorted(texts))}
    spec = json.loads(backend.to_str())
    spec["post_processor"] = None
    for token in spec["added_tokens"]:
        token["content"] = names.get(token["content"], token["content"])
    _rename_in_model(spec["model"], names)
    return tokenizers.Tokenizer.from_str(json.dumps(spec)), names


def _rename_in_model(model: dict[str, Any], names: dict[str, str]) -> None:
    """Renames tokens in the "model" part of a tokenizer.json; merges that would build one of them are dropped."""
    vocabulary = model["vocab"]
    if isinstance(vocabulary, dict):
        model["vocab"] = {names.get(text, text): token_id for text, token_id in vocabulary.items()}
    else:  # Unigram: [text, score] pairs
        model["vocab"] = [[names.get(text, text), score] for text, score in vocabulary]
    if model.get("unk_token") in names:
        model["unk_token"] = names[model["unk_token"]]
    if "merges" in model:
        model["merges"] = [
            (left, right)
            for left, right in model["merges"]
            if left not in names and right not in names and left + right not in names
        ]
