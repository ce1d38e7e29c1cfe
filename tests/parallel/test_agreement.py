"""What processes are compared by; the comparison between real processes is in test_processes.py."""

import json

import pytest

from empathax.data.sandbox import TemplateRefused
from empathax.errors import ConfigError, DataError
from empathax.parallel import agreement
from empathax.parallel.agreement import _first_error, _kind, fail_together, from_leader


def test_each_difference_names_process_and_fact():
    words = [json.dumps(facts) for facts in ({"a": 1, "b": 2}, {"a": 1, "b": 2}, {"a": 3, "c": 4})]
    assert json.loads(agreement._differences(words)) == [
        "process 2: a is 3, process 0 has 1",
        "process 2: b is None, process 0 has 2",
        "process 2: c is 4, process 0 has None",
    ]


def test_the_digest_sees_every_change_of_the_source(tmp_path):
    (tmp_path / "inner").mkdir()
    (tmp_path / "a.py").write_text("x = 1\n")
    (tmp_path / "inner/b.py").write_text("y = 1\n")
    digests = [agreement.source_digest(tmp_path)]
    for change in (
        lambda: (tmp_path / "inner/b.py").write_text("y = 2\n"),
        lambda: (tmp_path / "a.py").rename(tmp_path / "c.py"),
        lambda: (tmp_path / "d.py").touch(),
    ):
        change()
        digests.append(agreement.source_digest(tmp_path))
    assert len(set(digests)) == 4
    (tmp_path / "a.pyc").touch()
    assert agreement.source_digest(tmp_path) == digests[-1]


def test_an_error_of_a_kind_that_is_defined_elsewhere_is_raised_again_as_what_it_is_a_kind_of():
    assert _kind(TemplateRefused("no")) == "DataError"
    assert _kind(ConfigError("no")) == "ConfigError"


def test_an_error_names_the_processes_that_met_it():
    ours, other = json.dumps(["DataError", "no such file"]), json.dumps(["ConfigError", "else"])
    assert _first_error(["", "", ""]) == ""
    assert _first_error([ours, ours]) == ours
    assert json.loads(_first_error(["", ours, other, ours])) == ["DataError", "process 1, 3 of 4: no such file"]


def test_one_process_alone_keeps_its_errors():
    with pytest.raises(DataError, match=r"^unchanged$"), fail_together():
        raise DataError("unchanged")
    with pytest.raises(ConfigError, match=r"^here$"):
        from_leader(_fail)
    assert from_leader(lambda: {"a": [1, None]}) == {"a": [1, None]}


def _fail():
    raise ConfigError("here")
