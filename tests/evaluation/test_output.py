"""Result files appear whole or not at all."""

import json

import pytest

from empathax.errors import ConfigError
from empathax.evaluation.output import check_writable, write_json, write_json_lines


def test_lines_and_objects(tmp_path):
    write_json_lines(tmp_path / "rows.jsonl", iter([{"a": 1}, {"a": "é"}]))
    assert (tmp_path / "rows.jsonl").read_text(encoding="utf-8") == '{"a": 1}\n{"a": "é"}\n'
    write_json(tmp_path / "one.json", {"x": 0.5})
    assert json.loads((tmp_path / "one.json").read_text()) == {"x": 0.5}


def test_an_error_on_the_way_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("old")

    def rows():
        yield {"a": 1}
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        write_json_lines(path, rows())
    assert path.read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["rows.jsonl"]


def test_places_that_cannot_be_written(tmp_path):
    with pytest.raises(ConfigError, match="is a directory"):
        check_writable(tmp_path)
    with pytest.raises(ConfigError, match="there is no directory"):
        check_writable(tmp_path / "missing" / "out.jsonl")
    check_writable(tmp_path / "out.jsonl")
