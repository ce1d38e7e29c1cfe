"""Prompt files: every accepted shape, and one sentence for what is not accepted."""

import json

import pytest

from empathax.data.records import Message
from empathax.errors import DataError
from empathax.evaluation.generation.prompt_file import read_prompts

USER, REPLY = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}


def write(tmp_path, *lines, name="prompts.jsonl"):
    path = tmp_path / name
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return path


def test_json_rows(tmp_path):
    path = write(
        tmp_path,
        {"prompt": "I feel low", "chosen": "x", "rejected": "y"},
        {"prompt": [USER, REPLY, USER]},
        {"messages": [{"role": "system", "content": "S"}, USER, REPLY]},
    )
    rows = read_prompts(path)
    assert [row.given for row in rows] == [
        "I feel low",
        [USER, REPLY, USER],
        [{"role": "system", "content": "S"}, USER, REPLY],
    ]
    assert rows[0].messages == (Message("user", "I feel low"),)
    assert [message.role for message in rows[1].messages] == ["user", "assistant", "user"]
    assert rows[2].messages == (Message("system", "S"), Message("user", "Hi"))


def test_text_lines_and_system_text(tmp_path):
    rows = read_prompts(write(tmp_path, "one", "", "  two ", name="prompts.txt"), system="Be kind")
    assert [row.given for row in rows] == ["one", "two"]
    assert rows[1].messages == (Message("system", "Be kind"), Message("user", "two"))


def test_a_rows_own_system_text_is_kept(tmp_path):
    row = {"messages": [{"role": "system", "content": "S"}, USER]}
    assert read_prompts(write(tmp_path, row), system="other")[0].messages[0] == Message("system", "S")


def test_json_is_recognized_under_any_name(tmp_path):
    assert read_prompts(write(tmp_path, {"prompt": "a"}, name="prompts"))[0].given == "a"


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{broken", "not JSON"),
        ({"text": "a"}, "found the keys text"),
        ({"prompt": 3}, "prompt is a number"),
        ({"prompt": "  "}, "empty"),
        ({"prompt": [REPLY]}, "wrong role order"),
        ({"prompt": [{"role": "bot", "content": "x"}]}, "unknown role 'bot'"),
        ({"prompt": [{"role": "user"}]}, "message 0"),
        ({"messages": []}, "wrong role order"),
    ],
)
def test_bad_rows_are_named_with_their_line(tmp_path, line, reason):
    with pytest.raises(DataError, match=reason) as error:
        read_prompts(write(tmp_path, {"prompt": "fine"}, line))
    assert "prompts.jsonl:2" in str(error.value)


def test_missing_empty_and_binary_files(tmp_path):
    with pytest.raises(DataError, match="cannot be read"):
        read_prompts(tmp_path / "nothing.txt")
    with pytest.raises(DataError, match="cannot be read"):
        read_prompts(tmp_path / "nothing.jsonl")
    with pytest.raises(DataError, match="no prompt"):
        read_prompts(write(tmp_path, "", name="empty.txt"))
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    with pytest.raises(DataError, match="not UTF-8"):
        read_prompts(tmp_path / "latin.txt")


def test_only_line_ends_end_a_prompt(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_bytes("I feel\u2028alone today\r\nsecond\x0cpart\n".encode())
    assert [row.given for row in read_prompts(path)] == ["I feel\u2028alone today", "second\x0cpart"]
