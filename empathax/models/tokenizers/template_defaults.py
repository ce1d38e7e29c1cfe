"""Defaults for a chat template's own variables, written at its head: whoever renders it then renders the same text.

transformers and vLLM pass a variable such as Qwen3's `enable_thinking` only where a caller names it. Training names it;
so that an exported model gets the trained prompt by default, the template that is saved with it sets the value itself.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

_DEFAULT = "{{%- if {name} is not defined %}}{{%- set {name} = {value} %}}{{%- endif %}}\n"
_FOUND = re.compile(r"\{%- if (\w+) is not defined %\}\{%- set \1 = (.*?) %\}\{%- endif %\}\n")


def with_defaults(source: str, values: Mapping[str, Any]) -> str:
    """The template's source with a default for each variable; of those that it has, the others stay.

    Values are JSON without null, which is a Jinja expression too.
    """
    head, body = _split(source)
    merged = {**values, **{name: value for name, value in head.items() if name not in values}}
    literals = {name: json.dumps(merged[name], ensure_ascii=False, sort_keys=True) for name in sorted(merged)}
    return "".join(_DEFAULT.format(name=name, value=literal) for name, literal in literals.items()) + body


def defaults_of(source: str) -> dict[str, Any]:
    """The values that `with_defaults` wrote at the template's head."""
    return _split(source)[0]


def _split(source: str) -> tuple[dict[str, Any], str]:
    """(values, the template below them)."""
    values: dict[str, Any] = {}
    position = 0
    while found := _FOUND.match(source, position):
        try:
            value = json.loads(found[2])
        except json.JSONDecodeError:  # an author's own line that looks like ours
            break
        values[found[1]], position = value, found.end()
    return values, source[position:]
