"""Near-duplicates against a comparison of everything with everything."""

import random

import pytest

from empathax.preferences.overlap import NearDuplicates


def triples(text: str) -> set:
    words = text.lower().split()
    return {tuple(words[i : i + 3]) for i in range(len(words) - 2)}


def similar(first: str, second: str) -> float:
    a, b = triples(first), triples(second)
    return len(a & b) / len(a | b)


def changed(text: str, draw: random.Random) -> str:
    words = text.split()
    for _ in range(draw.randrange(4)):
        words[draw.randrange(len(words))] = f"w{draw.randrange(40)}"
    return " ".join(words)


@pytest.mark.parametrize("threshold", [0.5, 0.8, 1.0])
def test_the_first_near_text_is_found_exactly_where_brute_force_finds_one(threshold):
    draw = random.Random(1)
    texts = [" ".join(f"w{draw.randrange(40)}" for _ in range(draw.randrange(4, 40))) for _ in range(60)]
    texts += [changed(draw.choice(texts), draw) for _ in range(240)]
    index, num_found = NearDuplicates(threshold), 0
    for number, text in enumerate(texts):
        expected = next((i for i in range(number) if similar(text, texts[i]) >= threshold), None)
        assert index.find(text) == expected
        num_found += expected is not None
        index.add(text)
    assert 20 < num_found < 290


def test_short_texts_are_near_only_if_their_words_are_the_same():
    index = NearDuplicates(0.8)
    index.add("I see")
    assert index.find("i  SEE!") == 0
    assert index.find("I hear") is None
    assert index.find("") is None
