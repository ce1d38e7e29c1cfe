"""A sweep of two tiny runs: Table 1's four rows from one command, with records, a report, and the best evaluation."""

import json
import os
import re
import subprocess
import sys
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from empathax.config import LoraOptions
from empathax.config.lora import spec_of
from empathax.errors import ConfigError, Preempted
from empathax.evaluation.report.files import read_runs
from empathax.evaluation.report.record import read_record
from empathax.models.lora.adapters import Adapter, init_adapter
from empathax.models.lora.files import write_adapter
from empathax.models.weights.source import resolve_model
from empathax.models.weights.steps import find_steps, open_step
from empathax.parallel.mesh import make_mesh
from empathax.training import experiment, sweep
from empathax.training.run import base_fingerprint, prepare
from tests.evaluation.report.made_up import plain
from tests.training.tiny import OPTIMIZED, tiny_config

CONFIG = """
from empathax.config import default_config
from empathax.config.recipes import TABLE_1


def get_config():
    config = default_config()
    config.name = "tiny table"
    config.model.path = "random:tiny-llama"
    config.data.path = "samples"
    config.data.max_train_dialogues = 3
    config.data.max_eval_dialogues = 3
    config.data.max_length = 4096
    config.data.max_dropped_fraction = 0.5
    config.eval.objectives = ("sft", "dpo")
    config.eval.turns = -1
    config.eval.in_loop_turns = 4
    config.eval.every_steps = 1
    config.eval.num_replies = 1
    config.eval.max_new_tokens = 6
    config.sft.best_metric = "perplexity"
    config.sft.num_epochs = config.dpo.num_epochs = 3.0
    config.sft.learning_rate = 3e-2  # much too high: the last step is not the best one
    config.sft.schedule = "constant"
    config.tracking.progress = False
    return config


def get_sweep():
    return TABLE_1
"""
LABELS = ["base", "+SFT", "+DPO", "+SFT+DPO"]


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    directory = tmp_path_factory.mktemp("sweep")
    (directory / "config.py").write_text(CONFIG)
    out = directory / "run"
    # a process of its own: on one device, whatever the tests have
    command = [sys.executable, "-m", "empathax.train", f"--config={directory / 'config.py'}", f"--workdir={out}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=os.environ | OPTIMIZED)
    assert done.returncode == 0, done.stderr
    assert "+SFT+DPO" in done.stdout
    return out


def test_four_rows_in_one_report(workdir):
    records = read_runs([workdir])
    assert [record.label for record in records] == LABELS
    table = json.loads((workdir / "table.json").read_text())
    assert "tiny table" in json.dumps(table)
    page = (workdir / "report.html").read_text()
    assert all(label in page for label in LABELS)
    assert not re.findall(r"(?:src|href)=[\"']?(?!data:|#)[^\"' >]+", page)  # asks for nothing from anywhere
    assert {len(record.replies) for record in records} == {records[0].data.num_turns}
    assert all(record.data.num_pairs > 0 and "perplexity" in record.metrics for record in records)


def test_every_metric_but_one_has_an_interval(workdir):
    for record in read_runs([workdir]):
        known = {metric for entry in record.per_example.items() for metric in plain(*entry)}
        without = {"top_4gram_share", *(f"distinct_{n}_reply" for n in (1, 2, 3))}  # no words of a random model
        assert record.metrics.keys() - known <= without


def test_rewards_are_against_the_base_model(workdir):
    base, sft, dpo, _ = read_runs([workdir])
    assert base.metrics["reward_margin"] == 0.0
    chosen = [record.metrics["logp_chosen"] for record in (base, sft, dpo)]
    for record, logp in zip((sft, dpo), chosen[1:], strict=True):
        assert record.metrics["reward_chosen"] == pytest.approx(0.1 * (logp - chosen[0]), rel=1e-3, abs=1e-4)


def test_the_stage_ends_with_its_best_evaluation(workdir):
    lines = [json.loads(line) for line in (workdir / "sft_dpo" / "metrics.jsonl").read_text().splitlines()]
    seen = {line["step"]: line["perplexity"] for line in lines if line["stage"] == "sft" and line["split"] == "eval"}
    best = min((step for step in seen if step), key=seen.get)
    assert best != max(seen), "the test needs a stage whose last step is not its best"
    record = read_record(workdir / "sft_dpo" / "evaluations" / "sft" / "evaluation.json")
    assert record.metrics["perplexity"] == pytest.approx(seen[best], rel=1e-5)
    finished = find_steps(workdir / "sft_dpo" / "checkpoints" / "sft")[0]
    assert open_step(finished).meta["best_step"] == best
    like = resolve_model("random:tiny-llama").load_params()
    kept, chosen = (
        open_step(step).read_as(like) for step in (finished, workdir / "sft_dpo" / "best" / "sft" / str(best))
    )
    jax.tree.map(np.testing.assert_array_equal, kept, chosen)


def test_text_metrics_at_every_evaluation(workdir):
    lines = [json.loads(line) for line in (workdir / "dpo" / "metrics.jsonl").read_text().splitlines()]
    held_out = [line for line in lines if line["split"] == "eval"]
    assert len(held_out) >= 2
    assert all({"rouge_l", "distinct_2", "reward_accuracy"} <= line.keys() for line in held_out)


def test_variations_of_one_kind_have_labels_of_their_own():
    variations = {
        "low": tiny_config(stages=("dpo",)),
        "high": tiny_config(stages=("dpo",), dpo__beta=0.5),
        "other": tiny_config(stages=("sft",), model__path="random:tiny-llama:1"),
    }
    assert sweep.row_labels({name: SimpleNamespace(config=config) for name, config in variations.items()}) == {
        "low": {"base": "base", "+DPO": "+DPO (low)"},
        "high": {"+DPO": "+DPO (high)"},
        "other": {"base": "base (other)", "+SFT": "+SFT"},
    }


def test_rewards_of_a_sweep_have_one_beta():
    variations = {
        "sigmoid": tiny_config(dpo__beta=0.1),
        "simpo": tiny_config(dpo__loss=("simpo",), dpo__beta=2.0),
        "own": tiny_config(eval__reward_beta=0.5),
    }
    found = sweep.with_common_beta(variations)
    assert {name: config.reward_beta for name, config in found.items()} == {"sigmoid": 0.1, "simpo": 0.1, "own": 0.5}
    assert found["simpo"].dpo == variations["simpo"].dpo
    assert variations["simpo"].reward_beta == 2.0


@pytest.fixture
def one_device(monkeypatch):
    monkeypatch.setattr(experiment, "make_mesh", lambda options: make_mesh(options, jax.devices()[:1]))


def two(**changes):
    return {name: tiny_config(stages=("sft",), eval__turns=-1, **changes) for name in ("a", "b")}


def test_a_sweep_that_was_stopped_goes_on(one_device, monkeypatch, tmp_path):
    def stop(*args):
        raise Preempted("stopped")

    monkeypatch.setattr(sweep, "execute", stop)
    for _ in range(2):
        with pytest.raises(Preempted):
            sweep.run(sweep.prepare(two(), tmp_path), tmp_path)
    assert {"config.json", "tensorboard"} <= {entry.name for entry in (tmp_path / "b").iterdir()}


def test_nothing_is_emptied_before_all_variations_are_checked(one_device, tmp_path):
    jobs = sweep.prepare(two(), tmp_path)
    for job in jobs.values():
        (job.workdir / "config.json").write_text("{}")
    wrong = two() | {"b": tiny_config(stages=("sft",), eval__turns=-1, sft__freeze=("nothing",))}
    with pytest.raises(ConfigError, match="fits no parameter"):
        sweep.prepare(wrong, tmp_path, overwrite=True)
    assert (tmp_path / "a" / "config.json").exists()


@pytest.mark.parametrize("changes", [{"model__param_dtype": "bfloat16"}, {"model__compute_dtype": "bfloat16"}])
def test_base_models_of_other_precision_are_measured_apart(one_device, tmp_path, changes):
    jobs = sweep.prepare(two() | {"b": tiny_config(stages=("sft",), eval__turns=-1, **changes)}, tmp_path)
    assert base_fingerprint(jobs["a"].experiment) != base_fingerprint(jobs["b"].experiment)
    assert sweep.row_labels(jobs)["b"]["base"] == "base (b)"
    assert "base" not in sweep.row_labels(sweep.prepare(two(), tmp_path))["b"]


def test_the_adapter_that_a_run_begins_with_is_part_of_its_weights(one_device, tmp_path):
    adapters = [tmp_path / name for name in ("one", "two")]
    spec = spec_of(LoraOptions(rank=2))
    for seed, directory in enumerate(adapters):
        directory.mkdir()
        tree = init_adapter(resolve_model("random:tiny-llama").load_params(), spec, seed)
        write_adapter(directory, Adapter(jax.device_get(tree), spec), "random:tiny-llama")
    digests = set()
    for directory in adapters:
        config = tiny_config(stages=("dpo",), eval__turns=-1, lora__rank=2, lora__path=str(directory))
        digests.add(prepare(config, tmp_path / "run").experiment.model.weights_digest)
    assert len(digests) == 2


def test_a_sweep_needs_replies_to_compare(tmp_path):
    with pytest.raises(ConfigError, match=r"the variations a, b have eval.turns = 0"):
        sweep.prepare({"a": tiny_config(), "b": tiny_config()}, tmp_path / "run")
