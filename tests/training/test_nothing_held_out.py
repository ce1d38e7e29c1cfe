"""Training on every row: nothing is held out, nothing is measured, and that is said."""

import json

import pytest

from empathax.config import from_config_dict
from empathax.errors import DataError
from empathax.training import evaluate_model
from empathax.training.run import begin, describe, execute, open_workdir, prepare
from tests.training.tiny import tiny_settings


@pytest.fixture
def settings(tmp_path):
    """Two stages on few rows."""

    def write(name, rows):
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
        return str(tmp_path / name)

    found = tiny_settings()
    found.data.path = write("rows.jsonl", [{"prompt": f"Hi {n}", "completion": f"Yes {n}"} for n in range(32)])
    found.data.preference_path = write(
        "pairs.jsonl", [{"prompt": f"Hi {n}", "chosen": f"Yes {n}", "rejected": "No"} for n in range(32)]
    )
    found.data.system_prompt = "none"
    found.data.eval_fraction = 0.0
    found.data.packing = "none"
    found.data.max_train_dialogues = 0
    for block in (found.eval, found.sft, found.dpo):
        block.rows_per_batch = 8  # as many as devices
    found.sft.max_steps = found.dpo.max_steps = 1
    return found


def test_a_run_without_held_out_rows(settings, tmp_path):
    run = prepare(from_config_dict(settings), tmp_path / "run")
    assert describe(run).count("nothing held out (data.eval_fraction = 0)") == 2
    open_workdir(run)
    begin(run)
    assert "Nothing was held out (data.eval_fraction = 0), so no model was measured: base, +SFT, +SFT+DPO" in execute(
        run
    )
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["stage"] for line in lines if line["split"] == "train"] == ["sft", "dpo"]


@pytest.mark.parametrize(("block", "name", "value"), [("eval", "turns", -1), ("sft", "best_metric", "perplexity")])
def test_what_needs_held_out_rows_is_refused_before_training(settings, tmp_path, block, name, value):
    settings[block][name] = value
    with pytest.raises(DataError, match=rf"{block}\.{name} = .* is measured on held-out rows"):
        prepare(from_config_dict(settings), tmp_path / "run")


def test_evaluation_needs_held_out_rows(settings):
    with pytest.raises(DataError, match="no held-out rows"):
        evaluate_model.prepare(from_config_dict(settings))


def test_rows_that_cannot_be_parted_are_still_an_error(settings, tmp_path):
    settings.data.eval_fraction = 0.1
    settings.data.max_train_dialogues = 1
    settings.data.path = str(tmp_path / "one.jsonl")
    (tmp_path / "one.jsonl").write_text(json.dumps({"prompt": "Hi", "completion": "Yes"}) + "\n")
    with pytest.raises(DataError, match="no held-out rows"):
        prepare(from_config_dict(settings), tmp_path / "run")
