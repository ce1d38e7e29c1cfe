"""Chat templates are programs from the internet: what they must not do ends in a DataError, soon."""

import gc
import time

import pytest

from empathax.data import sandbox
from empathax.data.sandbox import TemplateProcess, TemplateRefused
from empathax.errors import DataError


def render(source, **variables):
    process = TemplateProcess(source, "the template")
    return process.render([{"messages": [], **variables}])[0]


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ cycler.__init__.__globals__.os.system('true') }}",
        "{{ messages.append(1) }}",
        "{{ raise_exception.__globals__['sys'] }}",
        "{% include '/etc/passwd' %}",
        "{% import 'os' as os %}",
    ],
)
def test_nothing_outside_can_be_reached(source):
    with pytest.raises(DataError):
        render(source)


@pytest.mark.parametrize(
    "source",
    [
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "{% for a in range(99999) %}{% for b in range(99999) %}xxxxxxxxxx{% endfor %}{% endfor %}",
        "{{ 'x' * 3000000000 }}",
        "{{ 10 ** (10 ** 10) }}",
        "{% set n = 10 %}{{ n ** (n ** n) }}",
        "{{ '%3000000000d' % 1 }}",
        "{% macro f(n) %}{{ f(n) }}{{ f(n) }}{% endmacro %}{{ f(1) }}",
        "{% for a in range(1000000000) %}{% endfor %}",
    ],
    ids=["loops", "prints", "repeats", "folded power", "power", "pads", "recursion", "range"],
)
def test_time_memory_and_output_are_limited(source, monkeypatch):
    monkeypatch.setattr(sandbox, "CPU_SECONDS", 0.5)
    started = time.monotonic()
    with pytest.raises(DataError, match=r"the template.*set data.chat_template"):
        render(source)
    assert time.monotonic() - started < 60


def test_the_limit_is_what_ends_a_loop(monkeypatch):
    """The detector disabled: the same loop, made finite, runs through."""
    loop = "{% for a in range(2000) %}{% for b in range(2000) %}{% endfor %}{% endfor %}done"
    monkeypatch.setattr(sandbox, "CPU_SECONDS", 0.01)
    with pytest.raises(DataError):
        render(loop)
    monkeypatch.setattr(sandbox, "CPU_SECONDS", 60.0)
    assert render(loop) == "done"


def test_a_refusal_is_another_error_than_a_fault():
    with pytest.raises(TemplateRefused, match="user first"):
        render("{{ raise_exception('user first') }}")
    with pytest.raises(DataError, match="cannot be used") as error:
        render("{{ nothing.at.all }}")
    assert not isinstance(error.value, TemplateRefused)


def test_a_syntax_error_names_the_line():
    with pytest.raises(DataError, match=r"line 2"):
        TemplateProcess("{% if true %}\n{% endfor %}", "the template")


def test_the_process_goes_on_after_a_refusal():
    process = TemplateProcess("{% if stop %}{{ raise_exception('no') }}{% endif %}fine", "the template")
    with pytest.raises(TemplateRefused):
        process.render([{"messages": [], "stop": True}])
    assert process.render([{"messages": []}]) == ["fine"]


def test_the_process_ends_with_its_owner():
    owner = TemplateProcess("x", "the template")
    child = owner._process
    del owner
    gc.collect()
    assert child.returncode is not None


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("{% generation %}a{% endgeneration %}b", "ab"),
        ("{% for i in [1, 2, 3] %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}", "1"),
        ("{{ {'a': '<é>'} | tojson }}", '{"a": "<é>"}'),
        ("{{ strftime_now('%d %b %Y') }}", "26 Jul 2024"),
        ("  {% if true %}\nx\n  {% endif %}\n", "x\n"),
        ("{% set ns = namespace(n=1) %}{% set ns.n = ns.n + 1 %}{{ ns.n }}", "2"),
    ],
)
def test_what_templates_of_the_hub_use(source, text):
    assert render(source) == text
