"""Templates of self-contained pages: whatever a model or a user wrote is escaped."""

from __future__ import annotations

import re
from typing import Any

import jinja2
from markupsafe import Markup

_UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")


def environment(*packages: str) -> jinja2.Environment:
    """The templates of `packages`, then those of the report."""
    return jinja2.Environment(
        loader=jinja2.ChoiceLoader([jinja2.PackageLoader(name) for name in (*packages, "empathax.evaluation.report")]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=_printable,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _printable(value: Any) -> Any:
    """Text without characters that HTML cannot hold: control characters become U+FFFD."""
    if isinstance(value, str) and not isinstance(value, Markup):
        return _UNPRINTABLE.sub("\ufffd", value)
    return value
