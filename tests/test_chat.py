"""The chat command: batch use, the terminal, and bad input before any weights are loaded."""

import io
import json
import sys

import pytest

from empathax import chat
from empathax.models.weights import source

MODEL = "--model=random:tiny-llama"
SHORT = "--max-new-tokens=16"


def prompts(tmp_path, text='{"prompt": "I feel low"}\n{"prompt": "Hi"}\n'):
    path = tmp_path / "prompts.jsonl"
    path.write_text(text)
    return f"--prompt-file={path}"


def test_batch_use_writes_a_line_for_each_prompt(tmp_path, capsys):
    out = tmp_path / "out.jsonl"
    assert chat.main([MODEL, SHORT, prompts(tmp_path), f"--out={out}", "--compare=random:tiny-llama:1"]) == 0
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["prompt"] for row in rows] == ["I feel low", "Hi"]
    assert rows[0].keys() == {"prompt", "reply", "reply_compare"}
    assert rows[0]["reply"] != rows[0]["reply_compare"]
    capsys.readouterr()
    assert chat.main([MODEL, SHORT, prompts(tmp_path)]) == 0
    printed = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["reply"] for row in printed] == [row["reply"] for row in rows]


def test_sampling_depends_on_the_seed(tmp_path, capsys):
    def replies(seed):
        assert chat.main([MODEL, SHORT, prompts(tmp_path), "--temperature=1", f"--seed={seed}"]) == 0
        return capsys.readouterr().out

    first = replies(1)
    assert replies(1) == first
    assert replies(2) != first


def test_several_samples_of_each_prompt(tmp_path, capsys):
    flags = [MODEL, SHORT, prompts(tmp_path), "--temperature=1", "--min-p=0.01", "--repetition-penalty=1.1"]
    assert chat.main([*flags, "--num-samples=3", "--compare=random:tiny-llama:1", "--stop-token=\n"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    for row in rows:
        assert row.keys() == {"prompt", "reply", "reply_compare", "replies", "replies_compare"}
        assert len(row["replies"]) == len(row["replies_compare"]) == 3
        assert (row["replies"][0], row["replies_compare"][0]) == (row["reply"], row["reply_compare"])
        assert len(set(row["replies"])) > 1
    assert chat.main([*flags, "--stop-token=\n"]) == 0
    first = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["reply"] for row in first] == [row["reply"] for row in rows]


def test_the_terminal(monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", io.StringIO("I feel low\n/reset\n/quit\n"))
    assert chat.main([MODEL, SHORT]) == 0
    assert "new dialogue" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "code", "reason"),
    [
        (["--temperature=-1"], 2, "temperature = -1.0"),
        (["--top-p=1.5"], 2, "top_p = 1.5"),
        (["--min-p=-1", "--repetition-penalty=0"], 2, "2 problems\n  - min_p = -1.0"),
        (["--stop-token=Seeker:"], 2, "'Seeker:' is"),
        (["--prompt-file=nothing.jsonl"], 3, "nothing.jsonl: cannot be read"),
        (["--model=nowhere/at/all"], 4, "does not exist"),
        (["--compare=random:tiny-lama"], 4, "tiny-lama"),
        (["--chat-template=none.jinja"], 3, "none.jinja"),
    ],
)
def test_bad_input_is_refused_before_weights_are_loaded(monkeypatch, capsys, flags, code, reason):
    monkeypatch.setattr(source.RandomModel, "load_params", lambda *_: pytest.fail("weights were loaded"))
    assert chat.main([MODEL, *flags]) == code
    assert reason in capsys.readouterr().err


def test_flags_that_do_not_go_together():
    for flags in (["--out=x.jsonl"], ["--max-new-tokens=0"], ["--temperature=1", "--num-samples=2"]):
        with pytest.raises(SystemExit) as usage:
            chat.main([MODEL, *flags])
        assert usage.value.code == 2
