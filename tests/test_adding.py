"""What CONTRIBUTING.md says of adding things, done in this process: through the registries alone, and then run."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest

from empathax.config import losses, options
from empathax.config.losses import LOSSES, Loss
from empathax.data.records import Message
from empathax.errors import ConfigError, Preempted
from empathax.evaluation import reply_metrics
from empathax.evaluation.metrics.statistics import mean_of_known
from empathax.evaluation.reply_metrics import ReplyScorer
from empathax.evaluation.reply_record import make_record
from empathax.evaluation.reply_set import Turn
from empathax.evaluation.report.files import write_report
from empathax.evaluation.report.paper import paper_models
from empathax.evaluation.report.table import COLUMNS, TABLE_1, Column
from empathax.models.architecture import hf_fields
from empathax.models.architecture.hf_config import from_hf_config
from empathax.models.transformer import init_params, logits
from empathax.models.weights.steps import find_steps
from empathax.objectives import pair_losses
from empathax.parallel.mesh import make_mesh
from empathax.parallel.stopping import StopVote
from empathax.training import experiment, results
from empathax.training.sweep import prepare, run
from tests.training.tiny import tiny_config

QUIET = {"tracking__tensorboard": False, "eval__num_replies": 0, "dpo__warmup_ratio": 0.0}


@pytest.fixture
def _one_device(monkeypatch):
    monkeypatch.setattr(experiment, "make_mesh", lambda options: make_mesh(options, jax.devices()[:1]))


def trained(workdir, **changes):
    """Runs a tiny config; the lines of its metrics.jsonl, and its report."""
    text = run(prepare({"": tiny_config(**{**QUIET, **changes})}, workdir), workdir)
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()], text


@pytest.mark.usefixtures("_one_device")
def test_a_preference_loss(monkeypatch, tmp_path):
    def squared(margin, *, beta, label_smoothing):
        return (1.0 - beta * margin) ** 2 + label_smoothing

    monkeypatch.setattr(pair_losses, "squared", squared, raising=False)
    monkeypatch.setitem(LOSSES, "squared", Loss("squared", losses.MARGIN, options=("beta", "label_smoothing")))
    changes = {"stages": ("dpo",), "dpo__loss": ("squared",), "dpo__label_smoothing": 0.25, "dpo__max_steps": 2}
    lines, _ = trained(tmp_path / "run", **changes)
    first = next(line for line in lines if line["split"] == "train")
    assert first["loss"] == pytest.approx(1.25, abs=1e-4)  # no margin yet
    with pytest.raises(ConfigError, match=r"simpo_gamma = 9.0 does nothing"):
        tiny_config(dpo__loss=("squared",), dpo__simpo_gamma=9.0)


def test_a_column_without_a_figure_in_the_paper(monkeypatch, tmp_path):
    def words(scorer, scored):
        return {"words_a_reply": mean_of_known(scored.dialogues, np.array([len(r.split()) for r in scored.replies]))}

    monkeypatch.setitem(reply_metrics.MEASURES, "words", words)
    monkeypatch.setitem(COLUMNS, "words_a_reply", Column("words_a_reply", TABLE_1, "Words", 1, "higher"))
    turns = [Turn(f"d{i}", (Message("user", "I am sad"),), "That sounds hard") for i in range(3)]
    records = []
    for label, replies in (("short", ["a b", "c d", "e f"]), ("long", ["a b c d", "e f g h", "i j k l m n o"])):
        scores = ReplyScorer().score(turns, replies)
        records.append(make_record(label, label, turns, replies, scores, path="made up", split="test"))
    write_report(tmp_path, records, paper_models(("llama8b",)), "a title", seed=0)
    table = (tmp_path / "table.md").read_text()
    assert "Words" in table
    assert "5.0" in table  # (4 + 4 + 7) / 3
    assert "5.0" in (tmp_path / "table.tex").read_text()
    assert "Words" in (tmp_path / "report.html").read_text()
    assert "| Words |" in results.table({"long": results.Row(records[1].metrics, (), ())})  # as `evaluate` prints it


def test_a_model_family(monkeypatch):
    """As Llama, with norms over heads: a field that another family reads otherwise."""
    monkeypatch.setitem(hf_fields.FAMILY_OF_MODEL_TYPE, "calm", "calm")
    for table, like in (("DEFAULTS", "llama"), ("FIXED", "llama"), ("TRAITS", "qwen3")):
        known = getattr(hf_fields, table)
        monkeypatch.setitem(known, "calm", known[like])
    settings = {"model_type": "calm", "vocab_size": 64, "hidden_size": 32, "intermediate_size": 64}
    settings |= {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}
    config = from_hf_config(settings)
    assert config.family == "calm"
    assert config.qk_norm
    ids = np.arange(6)[None]
    values = logits(init_params(config, 0), config, ids, ids, np.full((1, 6), 6))
    assert values.shape == (1, 6, 64)
    assert np.isfinite(values).all()


@pytest.mark.usefixtures("_one_device")
def test_a_stage_whose_batches_depend_on_the_state(monkeypatch, tmp_path):
    """Its file and its line in STAGES are all: run, loop, step, checkpoints and report take it, and it is resumed."""
    kind = options.StageKind("dpo", "tests.training.on_policy_stage")
    monkeypatch.setitem(options.STAGES, "on_policy", kind)
    changes = {
        "stages": ("sft", "on_policy"),
        "sft__max_steps": 1,
        "dpo__max_steps": 4,
        "dpo__learning_rate": 1e-2,
        "data__max_length": 512,
        "data__system_prompt": "none",
        "checkpoint__every_steps": 0,
    }
    whole, text = trained(tmp_path / "whole", **changes)
    assert "+SFT+on-policy against the reference it started from (+SFT)" in text
    losses_seen = [line["loss"] for line in whole if line["stage"] == "on_policy" and line["split"] == "train"]
    assert losses_seen[0] == pytest.approx(np.log(2.0), abs=1e-4)
    assert len(set(losses_seen)) == 4

    with monkeypatch.context() as stopped:
        votes = iter([False, True])
        stopped.setattr(StopVote, "vote", lambda self: next(votes))
        with pytest.raises(Preempted, match="after step 2 of on_policy"):
            trained(tmp_path / "stopped", **changes)
    again, _ = trained(tmp_path / "stopped", **changes)
    timing = ("tokens_per_second", "pairs_per_second", "memory_gb")
    kept = [[{k: v for k, v in line.items() if k not in timing} for line in lines] for lines in (whole, again)]
    assert kept[0] == kept[1]
    assert find_steps(tmp_path / "stopped")[0].parts[-2:] == ("on_policy", "4")


def test_an_unknown_stage_is_refused_where_settings_are_read():
    with pytest.raises(ConfigError, match=r"stages = \('dpoo',\): expected one or more of 'sft', 'dpo'"):
        tiny_config(stages=("dpoo",))
    with pytest.raises(ConfigError, match=r"stage 'dpoo' does not exist.*did you mean 'dpo'"):
        tiny_config().stage("dpoo")


def test_contributing_names_these_places():
    text = (Path(__file__).parent.parent / "CONTRIBUTING.md").read_text()
    for place in ("`LOSSES`", "`COLUMNS`", "`MEASURES`", "`DEFAULTS`", "`STAGES`", "objectives/pair_losses.py"):
        assert place in text
