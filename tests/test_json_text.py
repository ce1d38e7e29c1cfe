"""JSON that users give: what is refused, where the error says it is, and what our own files may hold."""

import json

import pytest

from empathax import json_text
from empathax.errors import DataError, WeightsError

DEEP = "[" * 100 + "]" * 100


@pytest.mark.parametrize(
    ("source", "reason", "line"),
    [
        ("", "it is empty", 0),
        (" \n\t", "it is empty", 0),
        ('{"a": 1', "not JSON", 1),
        ('{"a": 1}\n\n]', "not JSON: Extra data at column 1", 3),
        (b'{"a":\n "\xff"}', "not UTF-8: byte 0xff at column 3", 2),
        ('{"a": 1}'.encode("utf-16"), "it is UTF-16", 0),
        ('{"a": 1}'.encode("utf-32"), "it is UTF-32", 0),
        ("[" * 100_000, "nested too deeply", 0),
        (f"[{DEEP}]", "nested too deeply", 0),
        ('{"a": ' * 101 + "1" + "}" * 101, "nested too deeply", 0),
        ("9" * 5000, "a number of 5,000 digits", 0),
        ('{"inner": {"hidden_size": 1' + "0" * 400 + "}}", "hidden_size: a number of 401 digits", 0),
        ('{"a": [1, 1e400]}', "a: the number 1e400 is beyond", 0),
        ('{"eps": NaN}', "eps: found NaN", 0),
        ('{"eps": -Infinity}', "eps: found -Infinity", 0),
        ('{"a": 1, "b": 2, "a": 1}', "the key 'a' stands twice", 0),
        (r'{"a": "\ud800"}', "half of a surrogate pair", 0),
        (r'{"\udfff": 1}', "half of a surrogate pair", 0),
    ],
)
def test_what_is_refused(source, reason, line):
    with pytest.raises(json_text.JsonError) as caught:
        json_text.parse(source)
    assert reason in str(caught.value)
    assert caught.value.line == line
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    ("source", "value"),
    [
        (b'\xef\xbb\xbf{"a": [1, -2.5, true, null, "\xc3\xa9"]}', {"a": [1, -2.5, True, None, "é"]}),
        (DEEP, json.loads(DEEP)),
        (r'"\ud83d\ude00"', "\U0001f600"),
        (r'"\\ud800"', "\\ud800"),
        ("1000000000000000019884624838656", 1000000000000000019884624838656),  # model_max_length of transformers
    ],
)
def test_what_is_read(source, value):
    assert json_text.parse(source) == value


def test_our_own_files_may_hold_half_pairs_and_nan():
    assert json_text.parse(r'"\ud800"', half_pairs=True) == "\ud800"
    assert json_text.parse("[NaN, Infinity]", non_finite=True)[1] == float("inf")


def test_errors_name_the_file_and_the_line(tmp_path):
    path = tmp_path / "a.json"
    path.write_text('{"a": 1,\n"b": }')
    with pytest.raises(WeightsError, match=r"a\.json:2 cannot be read as JSON: not JSON: Expecting value at column 6"):
        json_text.read(path, WeightsError)
    with pytest.raises(FileNotFoundError):
        json_text.read(tmp_path / "b.json", WeightsError)
    with pytest.raises(FileNotFoundError):
        json_text.read(path / "below.json", WeightsError)
    with pytest.raises(DataError, match="is a directory, expected a file"):
        json_text.read(tmp_path, DataError)
    with pytest.raises(DataError, match="has 15 bytes, expected at most 4"):
        json_text.read(path, DataError, max_bytes=4)
    with pytest.raises(DataError, match="File name too long"):
        json_text.read(tmp_path / ("x" * 300), DataError)
    with pytest.raises(DataError, match="no path"):
        json_text.read(tmp_path / "a\0b", DataError)


@pytest.mark.parametrize(
    ("check", "value", "reason"),
    [
        (json_text.an_object, [1], r"f: a = \[1\]: expected an object"),
        (json_text.a_text, None, "f: a = None: expected text"),
        (json_text.texts, ["a", 1], "expected a list of texts"),
        (json_text.whole_number, True, "expected a whole number from 0 to 2,147,483,647"),
        (json_text.whole_number, 2**31, "expected a whole number"),
        (json_text.whole_number, 1.0, "expected a whole number"),
    ],
)
def test_fields_of_a_wrong_type(check, value, reason):
    with pytest.raises(DataError, match=reason):
        check(value, "f: a", DataError)


@pytest.mark.parametrize(
    "error", [KeyError("x"), TypeError("y"), RecursionError(), MemoryError(), ZeroDivisionError(), Exception("plain")]
)
def test_whatever_content_makes_code_fail_names_the_file(error):
    with pytest.raises(WeightsError, match=rf"f\.json is malformed \({type(error).__name__}"):  # noqa: SIM117
        with json_text.content_of("f.json", WeightsError):
            raise error


def test_errors_with_a_sentence_and_interrupts_pass():
    for error in (DataError("said"), KeyboardInterrupt(), SystemExit(3)):
        with pytest.raises(type(error)), json_text.content_of("f", WeightsError):
            raise error
