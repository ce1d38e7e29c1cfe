"""Defaults at a chat template's head: what any renderer makes of them, and that they are found again."""

import jinja2
import pytest

from empathax.models.tokenizers.template_defaults import defaults_of, with_defaults

SOURCE = "\n  {%- if thinks %}{{ depth }}{% else %}no{% endif %}"


def render(source, **variables):
    return jinja2.Environment(trim_blocks=True, lstrip_blocks=True).from_string(source).render(**variables)


def test_a_default_holds_where_nobody_sets_the_variable():
    source = with_defaults(SOURCE, {"thinks": True, "depth": 3})
    assert render(source) == "3"
    assert render(source, depth=4) == "4"
    assert render(source, thinks=False) == render(SOURCE, thinks=False)
    assert defaults_of(source) == {"thinks": True, "depth": 3}
    assert defaults_of(SOURCE) == {}


def test_new_defaults_replace_old_ones_of_their_name():
    source = with_defaults(with_defaults(SOURCE, {"thinks": True, "depth": 3}), {"depth": 5})
    assert defaults_of(source) == {"thinks": True, "depth": 5}
    assert source == with_defaults(SOURCE, {"thinks": True, "depth": 5})
    assert with_defaults(source, {}) == source
    assert with_defaults(SOURCE, {}) == SOURCE


@pytest.mark.parametrize("value", [True, 1.5, "a 'b' \"c\" %} {{ x }}\n\u00e9", [1, {"a": [False]}], {}])
def test_values_survive(value):
    source = with_defaults("{{ it | tojson }}", {"it": value})
    assert defaults_of(source) == {"it": value}
    assert render(source) == render("{{ it | tojson }}", it=value)


@pytest.mark.parametrize(
    "line", ["{%- if a is not defined %}{%- set a = b + 1 %}{%- endif %}\n", "{%- if a %}x{% endif %}"]
)
def test_an_authors_own_lines_are_left_alone(line):
    assert defaults_of(line) == {}
    assert with_defaults(line, {"c": 1}).endswith(line)
