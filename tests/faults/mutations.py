"""Valid files made invalid: bytes flipped, cut and doubled; values of JSON swapped for other types and sizes."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable
from typing import Any

_BIG = "@@5000 digits@@"  # json.dumps refuses such a number: its digits take this text's place
_STRANGE: tuple[Callable[[], Any], ...] = (
    lambda: None, lambda: True, lambda: 0, lambda: -1, lambda: 1, lambda: 2**31, lambda: 2**63, lambda: 10**18,
    lambda: 10**400, lambda: _BIG, lambda: 1e308, lambda: -1e308, lambda: 1e-320, lambda: 0.5, lambda: float("nan"),
    lambda: float("inf"), lambda: "", lambda: "x", lambda: "a" * 5000, lambda: "\x1b[31mred\r\n\0", lambda: "\ud800",
    lambda: "\U0010ffff", list, dict, lambda: [[]], lambda: [None], lambda: {"": {}}, lambda: [1, "a", {}],
    lambda: {"content": 5}, lambda: nested(50), lambda: nested(99), lambda: nested(400),
)  # fmt: skip


def nested(depth: int) -> Any:
    """Lists inside each other."""
    value: Any = []
    for _ in range(depth):
        value = [value]
    return value


def mutated_bytes(data: bytes, rng: random.Random) -> bytes:
    """A few bytes, or a stretch, of `data` changed; among the first ones more often than not."""
    found = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 8))):
        length = max(1, len(found))
        place = rng.randrange(min(length, 256)) if rng.random() < 0.6 else rng.randrange(length)
        match rng.randrange(7):
            case 0:
                found[place : place + 1] = bytes([rng.randrange(256)])
            case 1 if place < len(found):
                found[place] ^= 1 << rng.randrange(8)
            case 2:
                del found[place:]
            case 3:
                found[place:place] = rng.choice((b"\0", b"\x1b[2J", b"\xff\xfe", b"\xed\xa0\x80", b'"', b"}", b"\n"))
            case 4:
                found[place : place + 8] = rng.choice((2**62, 2**60, 2**32, 2**31, 0)).to_bytes(8, "little")
            case 5:
                found[place:place] = found[place : place + rng.randrange(1, 200)]
            case _:
                del found[place : place + rng.randrange(1, 64)]
    return bytes(found)


def mutated_json(value: Any, rng: random.Random) -> bytes:
    """The JSON text of `value` with one or two places changed."""
    value = copy.deepcopy(value)
    for _ in range(rng.choice((1, 1, 1, 2))):
        value = _changed(value, rng)
    text = json.dumps(value, ensure_ascii=rng.random() < 0.5).replace(f'"{_BIG}"', "9" * 5000)
    if rng.random() < 0.05 and text.startswith("{") and len(text) > 2:
        text = text[:-1] + "," + text[1:]  # every key twice
    if rng.random() < 0.02:
        text = "[" * 100_000 + text
    encoding = rng.choice(("utf-8",) * 20 + ("utf-16", "utf-8-sig"))
    return text.encode(encoding, "surrogatepass")


def _changed(value: Any, rng: random.Random) -> Any:
    places = _places(value)
    if not places or rng.random() < 0.02:
        return rng.choice(_STRANGE)()
    owner, key = rng.choice(places)
    match rng.randrange(6):
        case 0:
            del owner[key]
        case 1 if isinstance(owner, dict):
            owner[rng.choice(("unknown", "", "\x1b[0m", "9" * 300))] = rng.choice(_STRANGE)()
        case 2:
            other, name = rng.choice(places)
            owner[key] = copy.deepcopy(other[name])
        case _:
            owner[key] = rng.choice(_STRANGE)()
    return value


def _places(value: Any, limit: int = 3000) -> list[tuple[Any, Any]]:
    """(container, key) of values in `value`, the outer ones first."""
    found: list[tuple[Any, Any]] = []
    queue = [value]
    while queue and len(found) < limit:
        one = queue.pop(0)
        keys = one.keys() if isinstance(one, dict) else range(len(one)) if isinstance(one, list) else ()
        own = [(one, key) for key in list(keys)[:200]]
        found += own
        queue += [one[key] for _, key in own if isinstance(one[key], dict | list)]
    return found
