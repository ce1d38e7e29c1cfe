"""Damaged and unusual files: file:line and a reason for each bad row, and nothing else goes wrong."""

import json
import re

import pyarrow
import pyarrow.parquet
import pytest

from empathax.config.losses import REPLY_ROWS
from empathax.data import files
from empathax.data.files import open_source, read_values
from empathax.data.records import Tally
from empathax.errors import DataError

GOOD = {"prompt": "Hi", "completion": "Hello"}


def read(path):
    tally = Tally()
    return list(read_values(path, tally)), tally.bad


def test_json_lines_with_blank_lines_and_a_byte_order_mark(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(GOOD).encode() + b"\r\n\n" + json.dumps(GOOD).encode())
    rows, bad = read(path)
    assert rows == [(GOOD, f"{path}:1"), (GOOD, f"{path}:3")]
    assert not bad


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"prompt": "Hi", ', "not JSON: .* at column 17"),
        (b'{"prompt": "\xff\xfe"}', "not UTF-8: byte 0xff at column 13"),
        (b"[" * 100_000, "nested too deeply"),
        (b'"' + b"x" * (10 << 20) + b'"', "more than 8 MiB"),
    ],
    ids=["broken", "utf8", "deep", "10MB"],
)
def test_a_bad_line_is_counted_with_its_number_and_the_rest_is_read(tmp_path, line, reason):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(json.dumps(GOOD).encode() + b"\n" + line + b"\n" + json.dumps(GOOD).encode() + b"\n")
    rows, bad = read(path)
    assert [origin for _, origin in rows] == [f"{path}:1", f"{path}:3"]
    assert len(bad) == 1
    assert bad[0].startswith(f"{path}:2: ")
    assert re.search(reason, bad[0])


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "the file is empty"),
        (b"\xef\xbb\xbf", "the file is empty"),
        ('{"prompt": "Hi"}'.encode("utf-16"), "UTF-16"),
        (b"PK\x03\x04rest", "zip"),
    ],
)
def test_files_that_are_something_else(tmp_path, content, reason):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(content)
    with pytest.raises(DataError, match=reason):
        read(path)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(DataError, match="No such file"):
        read(tmp_path / "rows.jsonl")


def test_a_json_list_knows_the_lines_of_its_items(tmp_path):
    path = tmp_path / "rows.json"
    path.write_text(f"\n[\n  {json.dumps(GOOD)},\n\n  {json.dumps(GOOD, indent=1)}, {json.dumps(GOOD)}\n]\n")
    assert [origin.rsplit(":")[-1] for _, origin in read(path)[0]] == ["3", "5", "8"]
    assert [value for value, _ in read(path)[0]] == [GOOD] * 3


def test_a_broken_json_list_names_the_line(tmp_path):
    path = tmp_path / "rows.json"
    path.write_text('[\n{"a": 1},\n{"b": }\n]')
    with pytest.raises(DataError, match=r"rows.json:3: not a JSON list"):
        read(path)


def test_json_lines_under_the_name_json(tmp_path):
    path = tmp_path / "rows.json"
    path.write_text(json.dumps(GOOD) + "\n" + json.dumps(GOOD))
    assert len(read(path)[0]) == 2


def test_an_empty_json_list(tmp_path):
    path = tmp_path / "rows.json"
    path.write_text("[]")
    assert read(path) == ([], [])


def test_csv_with_quotes_and_line_breaks(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text('prompt,completion\n"Hi, ""you""","a\nb"\nx,y\n')
    rows, _ = read(path)
    assert rows[0] == ({"prompt": 'Hi, "you"', "completion": "a\nb"}, f"{path}:3")
    assert rows[1] == ({"prompt": "x", "completion": "y"}, f"{path}:4")


def test_the_first_publication_of_empathetic_dialogues_does_not_quote(tmp_path):
    path = tmp_path / "train.csv"
    path.write_text('conv_id,utterance_idx,utterance,selfeval\nc,1,"Oh" no_comma_ sad,5\n')
    assert read(path)[0][0][0]["utterance"] == '"Oh" no_comma_ sad'


def test_csv_that_is_not_utf8(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_bytes(b"prompt,completion\n\xff,x\n")
    with pytest.raises(DataError, match="not UTF-8"):
        read(path)


def test_parquet(tmp_path):
    path = tmp_path / "rows.parquet"
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([{"messages": messages, "system": None}]), path)
    assert read(path)[0] == [({"messages": messages}, f"{path}:1")]
    path.write_bytes(b"PAR1 nonsense")
    with pytest.raises(DataError, match="not a parquet file"):
        read(path)


def test_a_long_line_is_not_held_in_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "MAX_LINE_BYTES", 100)
    path = tmp_path / "rows.jsonl"
    path.write_text('"' + "x" * 1000 + '"\n' + json.dumps(GOOD) + "\n")
    with path.open("rb") as file:
        assert max(len(line) for line in files._lines(file)) == 101
    assert len(read(path)[0]) == 1


def test_what_follows_a_json_list_is_not_passed_over(tmp_path):
    path = tmp_path / "rows.json"
    path.write_text(f"[{json.dumps(GOOD)}]\n[{json.dumps(GOOD)}]\n")
    with pytest.raises(DataError, match=r"rows.json:1: found '\[.* after the list's end"):
        read(path)


@pytest.mark.parametrize(("suffix", "packing"), [(".gz", "gzip"), (".bz2", "bz2"), (".zst", "zstd"), ("", "gzip")])
@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json", "rows.csv"])
def test_packed_files(tmp_path, name, suffix, packing):
    path = tmp_path / f"{name}{suffix}"
    texts = {"jsonl": json.dumps(GOOD), "json": json.dumps([GOOD], indent=1), "csv": "prompt,completion\nHi,Hello\n"}
    with pyarrow.output_stream(path, compression=packing) as file:
        file.write(texts[name.partition(".")[2]].encode())
    assert [value for value, _ in read(path)[0]] == [GOOD]


@pytest.mark.parametrize("packing", ["gzip", "bz2", "zstd"])
def test_damaged_packed_files(tmp_path, packing):
    path = tmp_path / "rows.jsonl"
    with pyarrow.output_stream(path, compression=packing) as file:
        file.write((json.dumps(GOOD) + "\n").encode() * 100)
    path.write_bytes(path.read_bytes()[:-8] + b"damaged!")
    with pytest.raises(DataError, match=r"rows.jsonl: cannot be read"):
        read(path)


def test_a_packed_split_is_found(tmp_path):
    (tmp_path / "d").mkdir()
    for name in ("train", "test"):
        with pyarrow.output_stream(tmp_path / "d" / f"{name}-00000-of-00001.jsonl.zst", compression="zstd") as file:
            file.write(json.dumps(GOOD).encode())
    assert open_source(str(tmp_path / "d"), REPLY_ROWS).keys() == {"train", "eval"}


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.parquet", "rows.csv", "rows.json"])
def test_a_git_lfs_pointer_is_named(tmp_path, name):
    path = tmp_path / name
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 988097824\n")
    with pytest.raises(DataError, match=f"{name} is a Git LFS pointer.*git lfs pull"):
        read(path)


@pytest.mark.parametrize("length", [131_073, 1_000_000])
def test_long_csv_fields(tmp_path, length):
    path = tmp_path / "rows.csv"
    path.write_text(f'prompt,completion\n"{"w" * length}",x\n')
    assert read(path)[0] == [({"prompt": "w" * length, "completion": "x"}, f"{path}:2")]


@pytest.mark.parametrize("name", ["rows.json", "rows.jsonl"])
def test_objects_over_several_lines(tmp_path, name):
    path = tmp_path / name
    path.write_text(json.dumps(GOOD, indent=2) + "\n" + json.dumps(GOOD, indent=2))
    assert read(path)[0] == [(GOOD, f"{path}:1"), (GOOD, f"{path}:5")]
    path.write_text(json.dumps([GOOD, GOOD], indent=2))
    assert [value for value, _ in read(path)[0]] == [GOOD, GOOD]
    path.write_text(json.dumps({"train": [GOOD, GOOD]}, indent=2))
    assert read(path)[0] == [(GOOD, f"{path}:train[0]"), (GOOD, f"{path}:train[1]")]
    path.write_text(json.dumps({"train": [GOOD], "test": [GOOD]}, indent=2))
    with pytest.raises(DataError, match="one JSON object with the lists train, test: write each to a file of its own"):
        read(path)
    path.write_text('{\n "prompt": "Hi",\n "completion"\n}')
    with pytest.raises(DataError, match=f"{name}:4: not JSON"):
        read(path)
