"""Text with control tokens in it, to token ids: what people wrote never becomes a control token.

Strings of control tokens that must stay text are replaced by placeholder characters before a chat template is rendered.
Afterwards each placeholder is tokenized as the plain text it stands for.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from empathax.models.tokenizers.tokenizer import Tokenizer

_ESCAPES = 0x100000  # U+100000 and up (private use): the n-th control token's text
_CACHE_ENTRIES = 1 << 16
_PROBES = ("Hello", " Hello", "\nHello", "\n\nHi there", "user\nI feel low.", "  two", "é, ok")


class ControlText:
    """Escapes and tokenizes text for one tokenizer; `template` is the source of the chat template that writes it."""

    def __init__(self, tokenizer: Tokenizer, template: str) -> None:
        self.tokenizer = tokenizer
        self.controls = sorted(tokenizer.special_tokens, key=lambda token: (-len(token), token))
        self.pattern = pattern_of(self.controls)
        self._placeholder = {token: chr(_ESCAPES + number) for number, token in enumerate(self.controls)}
        last = chr(_ESCAPES + max(len(self.controls) - 1, 0))
        self._placeholder_pattern = re.compile(f"([{chr(_ESCAPES)}-{last}])")
        self._splitter = self._split_pattern(template)
        self._cache: dict[str, list[int]] = {}

    def escaped(self, value: Any, pattern: re.Pattern[str] | None = None) -> Any:
        """Text, or lists and dicts of it, with each control token that `pattern` finds (default: each) replaced."""
        if isinstance(value, str):
            return (pattern or self.pattern).sub(lambda match: self._placeholder[match.group()], value)
        if isinstance(value, Mapping):
            return {self.escaped(key, pattern): self.escaped(item, pattern) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [self.escaped(item, pattern) for item in value]
        return value

    def token_ids(self, text: str) -> list[int]:
        """Token ids of escaped text; a placeholder becomes the text it stands for, never its control token."""
        pieces = self._placeholder_pattern.split(text)  # text, placeholder, text, ...
        if len(pieces) == 1:
            return self._remembered(text)
        segments = [
            (self.controls[ord(piece) - _ESCAPES], True) if number % 2 else (piece, False)
            for number, piece in enumerate(pieces)
        ]
        return self.tokenizer.encode_segments(segments)

    def _remembered(self, text: str) -> list[int]:
        """`tokenizer.encode(text)`, from remembered pieces where control tokens part them (a dialogue's old turns)."""
        if self._splitter is None:
            return self.tokenizer.encode(text)
        ids: list[int] = []
        for piece in self._splitter.split(text):
            if piece not in self._cache:
                if len(self._cache) >= _CACHE_ENTRIES:
                    self._cache.clear()
                self._cache[piece] = self.tokenizer.encode(piece) if piece else []
            ids += self._cache[piece]
        return ids

    def _split_pattern(self, template: str) -> re.Pattern[str] | None:
        """Control tokens at which a text may be cut and tokenized piece by piece with the same result; None if none."""
        encode = self.tokenizer.encode

        def independent(token: str) -> bool:
            return all(encode(f"ok{token}{text}") == encode("ok") + encode(token) + encode(text) for text in _PROBES)

        written = [token for token in self.controls if token in template and independent(token)]
        return re.compile(f"({'|'.join(map(re.escape, written))})") if written else None


def pattern_of(tokens: Iterable[str]) -> re.Pattern[str]:
    """Finds any of the tokens, the longest first; nothing if there are none."""
    longest_first = sorted(tokens, key=lambda token: (-len(token), token))
    return re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")
