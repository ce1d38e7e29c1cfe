"""The evaluate command: its numbers against those of `score` on the same rows, a reference, bad input."""

import itertools
import json
from pathlib import Path

import numpy as np
import pytest

import empathax.data.samples
from empathax import evaluate, score
from empathax.config.flags import load_config
from empathax.evaluation.report.record import read_record
from empathax.models.weights import source
from empathax.training import evaluate_model
from tests.evaluation.metrics.reference_metrics import reference_metrics
from tests.evaluation.metrics.test_text_metrics import REFERENCES, REPLIES

SAMPLES = Path(empathax.data.samples.__file__).parent
CONFIG = """
from empathax.config import default_config


def get_config():
    config = default_config()
    config.model.path = "random:tiny-llama"
    config.data.path = "samples"
    config.data.system_prompt = "none"
    config.data.max_length = 4096
    config.data.max_train_dialogues = 2
    config.data.max_eval_dialogues = 2
    config.eval.rows_per_batch = 8
    config.eval.num_replies = 2
    config.eval.max_new_tokens = 8
    return config
"""
REWARDS = {"reward_accuracy", "reward_margin", "reward_chosen", "reward_rejected"}


@pytest.fixture(scope="module")
def config_path(tmp_path_factory):
    path = tmp_path_factory.mktemp("config") / "tiny.py"
    path.write_text(CONFIG)
    return path


@pytest.fixture(scope="module")
def scored(tmp_path_factory):
    """(file, model) -> rows of `score` for the first two held-out dialogues."""
    directory = tmp_path_factory.mktemp("scored")

    def run(name, model):
        lines = (SAMPLES / f"{name}_heldout.jsonl").read_text(encoding="utf-8").splitlines()
        keys = [json.loads(line).get("dialogue_id", json.loads(line)["id"]) for line in lines]
        kept = set(itertools.islice(dict.fromkeys(keys), 2))
        (directory / "data.jsonl").write_text(
            "".join(f"{line}\n" for line, key in zip(lines, keys, strict=True) if key in kept), encoding="utf-8"
        )
        out = directory / "out.jsonl"
        assert score.main([f"--model={model}", f"--data={directory / 'data.jsonl'}", f"--out={out}"]) == 0
        return [json.loads(line) for line in out.read_text().splitlines()]

    return run


def test_a_model_against_the_configs_own(config_path, scored, tmp_path, capsys):
    out = tmp_path / "metrics.json"
    flags = [f"--config={config_path}", "--model=random:tiny-llama:1", f"--out={out}", "--config.dpo.beta=0.2"]
    assert evaluate.main(flags) == 0
    metrics = json.loads(out.read_text())
    assert all(type(value) is float for value in metrics.values())

    replies = scored("dialogues", "random:tiny-llama:1")
    nll, tokens = -sum(row["logp"] for row in replies), sum(row["tokens"] for row in replies)
    assert metrics["perplexity"] == pytest.approx(np.exp(nll / tokens), rel=1e-5)

    policy, reference = (scored("preferences", f"random:tiny-llama:{seed}") for seed in (1, 0))
    rewards = {
        side: 0.2 * np.array([a[f"logp_{side}"] - b[f"logp_{side}"] for a, b in zip(policy, reference, strict=True)])
        for side in ("chosen", "rejected")
    }
    margins = rewards["chosen"] - rewards["rejected"]
    assert metrics["reward_margin"] == pytest.approx(margins.mean(), abs=1e-3)
    assert metrics["reward_accuracy"] == pytest.approx((margins > 0).mean())
    assert metrics["reward_chosen"] == pytest.approx(rewards["chosen"].mean(), abs=1e-3)
    assert metrics["logp_rejected"] == pytest.approx(np.mean([row["logp_rejected"] for row in policy]), abs=1e-2)

    printed = capsys.readouterr().out
    assert "reference random:tiny-llama" in printed
    assert "| random:tiny-llama:1 " in printed
    assert printed.count("\n> ") == 3  # replies to look at


def test_the_base_model_has_rewards_of_zero(config_path, tmp_path):
    out = tmp_path / "metrics.json"
    assert evaluate.main([f"--config={config_path}", "--config.stages=dpo", f"--out={out}"]) == 0
    metrics = json.loads(out.read_text())
    assert metrics.keys() >= REWARDS
    assert {metrics[name] for name in REWARDS} == {0.0}
    assert "perplexity" not in metrics


def test_replies_follow_the_settings(config_path, tmp_path):
    """Two samples of each prompt."""
    flags = [f"--config={config_path}", "--config.stages=sft", "--config.eval.turns=4", f"--record={tmp_path}"]
    sampled = [*flags, "--config.eval.temperature=1.0", "--config.eval.min_p=0.01", "--config.eval.num_samples=2"]
    assert evaluate.main([*sampled, "--config.eval.repetition_penalty=1.2", "--label=mine"]) == 0
    record = read_record(tmp_path / "evaluation.json")
    assert record.label == "mine"
    assert record.decoding["repetition_penalty"] == 1.2
    pairs = list(zip(record.replies[::2], record.replies[1::2], strict=True))
    assert all(first.prompt == second.prompt and first.reply != second.reply for first, second in pairs)
    assert len({reply.prompt for reply in record.replies}) == len(pairs)


def test_text_that_something_else_wrote(tmp_path, capsys):
    for name, texts in (("said", REPLIES), ("gold", REFERENCES)):
        (tmp_path / f"{name}.jsonl").write_text("".join(f"{json.dumps({'text': text})}\n" for text in texts))
    files = [f"--predictions={tmp_path / 'said.jsonl'}", f"--references={tmp_path / 'gold.jsonl'}"]
    out = tmp_path / "metrics.json"
    assert evaluate.main([*files, f"--out={out}", f"--record={tmp_path / 'record'}", "--readability"]) == 0
    metrics = json.loads(out.read_text())
    expected = reference_metrics(REPLIES, REFERENCES)
    assert {name: metrics[name] for name in expected} == pytest.approx(expected, rel=1e-6)
    assert {"flesch_kincaid_grade", "reply_words", "questions_per_reply"} <= metrics.keys()
    assert "perplexity" not in metrics
    assert "| said " in capsys.readouterr().out
    assert read_record(tmp_path / "record" / "evaluation.json").data.num_turns == len(REPLIES)


@pytest.mark.parametrize("flags", [["--predictions=a"], ["--predictions=a", "--references=b", "--model=c"]])
def test_files_stand_alone(flags):
    with pytest.raises(SystemExit) as usage:
        evaluate.main(flags)
    assert usage.value.code == 2


def test_rewards_need_a_reference_that_reads_the_same_tokens(config_path, monkeypatch, capsys):
    monkeypatch.setattr(evaluate_model, "_same_tokens", lambda *_: False)
    evaluation = evaluate_model.prepare(load_config([f"--config={config_path}"])[0], "random:tiny-qwen2")
    row = evaluate_model.evaluate(evaluation, "qwen2")
    assert not REWARDS & row.metrics.keys()
    assert {"logp_chosen", "logp_rejected", "perplexity"} <= row.metrics.keys()
    assert "rewards are not measured" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "code", "reason"),
    [
        (["--config.eval.num_reply=3"], 2, "num_reply"),
        (["--config.eval.top_p=0.0"], 2, "top_p = 0.0"),
        (["--config.eval.num_samples=2"], 2, "num_samples = 2 with temperature = 0"),
        (["--config.eval.stop_tokens=Seeker:"], 2, "'Seeker:' is"),
        (["--config.mesh.fsdp=3"], 2, "mesh"),
        (["--model=random:tiny-lama"], 4, "tiny-lama"),
        (["--config.data.path=nothing.jsonl"], 3, "no such file"),
        (["--out=missing/metrics.json"], 2, "no directory"),
    ],
)
def test_bad_input_is_refused_before_weights_are_loaded(config_path, monkeypatch, capsys, flags, code, reason):
    monkeypatch.setattr(source.RandomModel, "load_params", lambda *_: pytest.fail("weights were loaded"))
    assert evaluate.main([f"--config={config_path}", *flags]) == code
    assert reason in capsys.readouterr().err


def test_unknown_flags_are_usage_errors(config_path, capsys):
    assert evaluate.main([f"--config={config_path}", "--modle=x"]) == 2
    assert "unknown arguments: --modle=x" in capsys.readouterr().err
