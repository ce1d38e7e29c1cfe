"""Text that came from a file or a command line, fit to be shown in a message: bounded, control characters escaped."""

from __future__ import annotations

from typing import Any

SHOWN_CHARACTERS = 200


def shown(text: str, limit: int = SHOWN_CHARACTERS) -> str:
    """`text` cut to `limit` characters; what a terminal would obey rather than print is escaped.

    An escape sequence in a model's file could otherwise rewrite the lines above it, and a text of a megabyte would hide
    the message that it stands in.
    """
    cut = text if len(text) <= limit else f"{text[:limit]}..."
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode("ascii") for one in cut)


def quoted(value: Any, limit: int = SHOWN_CHARACTERS) -> str:
    """repr of `value`, bounded as by `shown`; also of what has no repr: a number of 5,000 digits, a deep list."""
    if isinstance(value, int) and value.bit_length() > 4 * limit:
        return f"a whole number of about {int(value.bit_length() * 0.30103):,} digits"
    try:
        return shown(repr(value[: limit + 1] if isinstance(value, str) else value), limit)
    except (ValueError, RecursionError):
        return f"a {type(value).__name__} that is too large to show"
