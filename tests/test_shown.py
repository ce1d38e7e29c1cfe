"""Text from files in messages: bounded, and nothing that a terminal would obey."""

import pytest

from empathax.shown import quoted, shown


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("plain é 漢", "plain é 漢"),
        ("\x1b[2Jred\r\n\0", r"\x1b[2Jred\r\n\x00"),
        ("\u202eleft", r"\u202eleft"),
        ("\ud800", r"\ud800"),
        ("a" * 300, "a" * 200 + "..."),
    ],
)
def test_shown(text, words):
    assert shown(text) == words


def test_quoted():
    assert quoted("a\x1b") == r"'a\x1b'"
    assert quoted({"a": [1]}) == "{'a': [1]}"
    assert quoted(10**5000) == "a whole number of about 5,000 digits"
    assert quoted([10**5000]) == "a list that is too large to show"
    assert len(quoted("a" * 10**6)) < 250
