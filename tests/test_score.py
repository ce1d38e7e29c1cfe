"""The score command: numbers against plain log-softmax, every packing, input order, and bad input before any work."""

import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers

from empathax import score
from empathax.data.chat import ChatTemplate
from empathax.data.records import Message
from empathax.models.transformer import logits
from empathax.models.weights import source
from empathax.models.weights.source import resolve_model

MODEL = "random:tiny-gemma2"
USER = [{"role": "user", "content": "I lost my job"}]
LONGER = [*USER, {"role": "assistant", "content": "Oh no"}, {"role": "user", "content": "Yes"}]
PAIRS = [
    {"prompt": USER, "chosen": "That hurts.", "rejected": "Find a new one."},
    {"prompt": "My cat died", "chosen": "I am so sorry.", "rejected": "ok"},
    {
        "prompt": LONGER,
        "chosen": [{"role": "assistant", "content": "Tell me."}],
        "rejected": [{"role": "assistant", "content": "So?"}],
    },
]


def write(path, rows):
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def run(tmp_path, rows, *flags, model=MODEL):
    data, out = write(tmp_path / "data.jsonl", rows), tmp_path / "out.jsonl"
    code = score.main([f"--model={model}", f"--data={data}", f"--out={out}", *flags])
    return code, [json.loads(line) for line in out.read_text().splitlines()] if out.exists() else None


@pytest.fixture(scope="module")
def reference():
    """(messages, reply) -> (log-prob, tokens) by one forward pass over the whole sequence."""
    model = resolve_model(MODEL)
    params, template = model.load_params(), ChatTemplate(model.tokenizer(), "auto", model.config.family)
    forward = jax.jit(logits, static_argnums=1)

    def logp(messages, reply):
        example = template.encode_example([Message(**message) for message in messages], reply)
        ids = np.concatenate([example.prompt_ids, example.reply_ids])
        size = 256  # padding comes later and is never seen
        padded = np.pad(ids, (0, size - len(ids)))[None]
        scores_TV = forward(params, model.config, padded, np.arange(size)[None], np.full((1, size), size))[0]
        logps_TV = jax.nn.log_softmax(scores_TV, axis=-1)
        queries = np.arange(len(example.prompt_ids) - 1, len(ids) - 1)
        return float(jnp.sum(logps_TV[queries, ids[queries + 1]])), len(example.reply_ids)

    return logp


@pytest.mark.parametrize("packing", ["tree", "pair", "none"])
def test_pairs_equal_one_forward_pass_each(tmp_path, reference, packing):
    code, rows = run(tmp_path, PAIRS, f"--packing={packing}")
    assert code == 0
    assert list(rows[0]) == ["logp_chosen", "logp_rejected", "tokens_chosen", "tokens_rejected"]
    prompts = [USER, [{"role": "user", "content": "My cat died"}], LONGER]
    replies = [("That hurts.", "Find a new one."), ("I am so sorry.", "ok"), ("Tell me.", "So?")]
    for row, prompt, (chosen, rejected) in zip(rows, prompts, replies, strict=True):
        for name, reply in (("chosen", chosen), ("rejected", rejected)):
            logp, tokens = reference(prompt, reply)
            assert row[f"logp_{name}"] == pytest.approx(logp, abs=1e-3)
            assert row[f"tokens_{name}"] == tokens


def test_sft_rows_and_dialogues(tmp_path, reference):
    dialogue = [*LONGER, {"role": "assistant", "content": "Tell me."}]
    code, rows = run(tmp_path, [{"messages": dialogue}, {"prompt": USER, "completion": "Oh no"}, PAIRS[0]])
    assert code == 0
    first, second = reference(USER, "Oh no"), reference(LONGER, "Tell me.")
    assert rows[0] == {"logp": pytest.approx(first[0] + second[0], abs=1e-3), "tokens": first[1] + second[1]}
    assert rows[1] == {"logp": pytest.approx(first[0], abs=1e-3), "tokens": first[1]}
    assert rows[2]["logp_rejected"] == pytest.approx(reference(USER, "Find a new one.")[0], abs=1e-3)


def test_rows_come_back_in_input_order(tmp_path):
    random = np.random.default_rng(0)
    rows = [{"prompt": f"problem {n % 5}", "completion": "a" * int(random.integers(1, 60))} for n in range(24)]
    code, scored = run(tmp_path, rows, "--rows-per-batch=2")
    assert code == 0
    assert [row["tokens"] for row in scored] == [len(row["completion"]) + 1 for row in rows]  # bytes and the stop token
    _, backwards = run(tmp_path, rows[::-1], "--rows-per-batch=2")
    assert [row["logp"] for row in backwards[::-1]] == pytest.approx([row["logp"] for row in scored], abs=1e-3)


def test_system_prompt_changes_the_prompt_only(tmp_path):
    _, plain = run(tmp_path, PAIRS)
    _, led = run(tmp_path, PAIRS, "--system-prompt=Be kind")
    assert [row["tokens_chosen"] for row in led] == [row["tokens_chosen"] for row in plain]
    assert led[0]["logp_chosen"] != pytest.approx(plain[0]["logp_chosen"], abs=1e-3)


@pytest.fixture
def no_weights(monkeypatch):
    """Fails a test that gets as far as loading weights, which comes before any compilation."""

    def load_params(*args, **kwargs):
        pytest.fail("the weights were loaded before the input was refused")

    monkeypatch.setattr(source.RandomModel, "load_params", load_params)


@pytest.mark.usefixtures("no_weights")
@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        ([PAIRS[0], "{broken"], "data.jsonl:2: not JSON"),
        ([PAIRS[0], {"prompt": "x", "chosen": "y"}], "data.jsonl:2: rejected is missing"),
        ([{"prompt": LONGER[:2], "chosen": "a", "rejected": "b"}], "data.jsonl:1: wrong role order"),
        ([{"prompt": "x", "chosen": "a" * 9000, "rejected": "b"}], "data.jsonl:1: prompt and reply take"),
        ([{"prompt": "x", "chosen": " ", "rejected": "b"}], "data.jsonl:1: empty reply"),
        ([PAIRS[0], {"messages": USER}], "no assistant turn"),
        ([], "the file is empty"),
    ],
)
def test_bad_rows_exit_3_before_any_work(tmp_path, capsys, rows, reason):
    code, written = run(tmp_path, rows)
    error = capsys.readouterr().err
    assert (code, written) == (3, None)
    assert error.startswith("error: ")
    assert reason in error


@pytest.mark.usefixtures("no_weights")
def test_every_bad_row_is_named_at_once(tmp_path, capsys):
    long = {"prompt": "x", "chosen": "a" * 90, "rejected": "b"}
    code, _ = run(tmp_path, [long, PAIRS[1], long], "--max-length=60")
    error = capsys.readouterr().err
    assert code == 3
    assert "data.jsonl:1" in error
    assert "data.jsonl:3" in error
    assert "--max-length is 60" in error


@pytest.mark.usefixtures("no_weights")
def test_missing_files_and_wrong_flags(tmp_path, capsys):
    out = f"--out={tmp_path / 'out.jsonl'}"
    assert score.main([f"--model={MODEL}", f"--data={tmp_path / 'nothing.jsonl'}", out]) == 3
    assert "no such file" in capsys.readouterr().err
    data = f"--data={write(tmp_path / 'data.jsonl', PAIRS)}"
    assert score.main([f"--model={tmp_path / 'nothing'}", data, out]) == 4
    assert "does not exist" in capsys.readouterr().err
    assert score.main([f"--model={MODEL}", data, f"--out={tmp_path / 'no' / 'out.jsonl'}"]) == 2
    assert "--out=" in capsys.readouterr().err
    for flag in ("--packing=forest", "--rows-per-batch=0", "--max-length=-1"):
        with pytest.raises(SystemExit) as usage:
            score.main([f"--model={MODEL}", data, out, flag])
        assert usage.value.code == 2


@pytest.mark.usefixtures("no_weights")
def test_a_tokenizer_of_another_model_exits_2(tmp_path, capsys):
    resolve_model(MODEL).tokenizer().save(tmp_path)
    larger = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    larger.add_tokens([f"word{n}" for n in range(600)])
    larger.save(str(tmp_path / "tokenizer.json"))
    code, _ = run(tmp_path, PAIRS, f"--tokenizer={tmp_path}")
    assert code == 2
    assert "embedding of 512 rows" in capsys.readouterr().err


def test_the_command_line(tmp_path):
    data, out = write(tmp_path / "data.jsonl", PAIRS[:1]), tmp_path / "out.jsonl"
    command = [sys.executable, "-m", "empathax.score", f"--model={MODEL}", f"--data={data}", f"--out={out}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert len(out.read_text().splitlines()) == 1
    assert "1 rows with 2 replies" in done.stderr
    bad = subprocess.run([*command, "--tokens=3"], capture_output=True, text=True, timeout=300)
    assert (bad.returncode, "unrecognized arguments: --tokens=3" in bad.stderr) == (2, True)
