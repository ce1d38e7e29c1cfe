"""The command: a real plan in a child process, its JSON, and the errors that it passes on."""

import importlib.util
import json
from pathlib import Path

import jax
import pytest
from jax.sharding import SingleDeviceSharding

from empathax import plan
from empathax.planning.costs import refused_memory
from empathax.planning.steps import Lowered
from tests.planning.short_rows import short_pairs

ROOT = Path(__file__).parents[2]
TINY = f"--config={ROOT}/tests/launch/tiny_config.py"


@pytest.fixture
def short(tmp_path) -> list[str]:
    """Flags for rows of 128 tokens."""
    data = {"path": short_pairs(tmp_path / "pairs.jsonl"), "system_prompt": "none", "row_length": 128}
    return [TINY, *(f"--config.data.{name}={value}" for name, value in data.items()), "--config.data.eval_fraction=0.3"]


def _plan(capsys, *flags: str) -> dict:
    assert plan.main([*flags, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_a_plan_as_json(capsys, short):
    found = _plan(capsys, *short, "--topology=cpu:2", "--parts=train,eval")
    assert found["fits"] is True
    assert found["missing_bytes"] == 0
    assert found["hbm_bytes"] > 2**30
    sizes = found["bytes_per_device"]
    kinds = {"frozen", "parameters", "gradients", "optimizer", "reference", "batch", "temporaries", "total"}
    assert kinds == sizes.keys()
    assert sizes["frozen"] == 0
    assert sizes["optimizer"] == pytest.approx(2 * sizes["parameters"], rel=0.01)  # two moments
    assert sizes["total"] == sum(size for kind, size in sizes.items() if kind != "total")
    assert found["collectives"]["all-reduce"]["count"] >= 1  # the gradients of two halves of the batch
    assert found["model_flops_per_step"] > 0
    assert found["compile_seconds"] > 0
    assert found["parts"].keys() == {"train", "eval"}
    assert found["parts"]["eval"]["bytes_per_device"]["gradients"] == 0
    assert found["parts"]["eval"]["bytes_per_device"]["optimizer"] == sizes["optimizer"]  # which stays there meanwhile


def test_an_adapter_on_frozen_weights_in_four_bits(capsys, short):
    lora = ("--config.lora.rank=4", "--config.lora.after_sft=keep", "--config.model.quantization=nf4")
    found = _plan(capsys, *short, *lora, "--topology=cpu:1", "--parts=train", "--config.mesh.data=1")
    sizes, num_trained = found["bytes_per_device"], found["num_trained"]
    assert num_trained < 0.2 * found["num_parameters"]
    assert (sizes["parameters"], sizes["gradients"]) == (4 * num_trained, 4 * num_trained)
    assert sizes["optimizer"] == pytest.approx(8 * num_trained, rel=0.01)
    assert sizes["frozen"] < 2.5 * found["num_parameters"]  # kernels in 0.5625 bytes, the vocabulary's in 4


@pytest.mark.parametrize(
    ("flags", "code", "reason"),
    [
        (["--topology=v9:4"], 2, "is not known"),
        (["--topology=cpu:2", "--parts=train,sleep"], 2, "--parts=train,sleep"),
        (["--topology=cpu:2", "--stage=dpo"], 2, "this config's stages are sft"),
        (["--topology=cpu:2", "--config.mesh.data=3"], 2, "does not fit 2 devices"),
        (["--topology=cpu:2", "--config.model.path=some/model"], 4, "--model-config=FILE"),
        (["--topology=cpu:2", "--config.sft.rows_per_batch=64"], 3, "one step of sft takes"),
    ],
)
def test_errors_arrive_as_one_message(capsys, short, flags, code, reason):
    assert plan.main([*short, *flags]) == code
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert reason in error


def test_a_child_that_dies_is_reported(capsys, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_no_such_flag=1")
    assert plan.main([TINY, "--topology=cpu:2"]) == 2
    assert "the compiling process ended with" in capsys.readouterr().err


def test_a_refusal_says_how_much_is_missing():
    message = (
        "RESOURCE_EXHAUSTED: the total memory required for HLO temporaries (15.92G) exceeds available HBM (15.75G)."
    )
    alone = SingleDeviceSharding(jax.devices()[0])
    array = jax.ShapeDtypeStruct((2**30,), "float32", sharding=alone)  # 4 GiB, which the figure includes
    lowered = Lowered(None, {"parameters": array}, {"reference": array})
    memory = refused_memory(lowered, message)
    assert memory is not None
    assert (memory.refused, memory.by_kind["parameters"]) == (True, 4 * 2**30)
    assert memory.by_kind["temporaries"] == round(15.92 * 2**30) - 4 * 2**30
    assert memory.total == round(15.92 * 2**30) + 4 * 2**30  # with what is held beside the program
    other = "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 17.50G of 15.75G hbm."
    assert refused_memory(lowered, other).total == round(17.5 * 2**30) + 4 * 2**30
    assert refused_memory(lowered, "INTERNAL: something else") is None


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu (extra plan) is not installed")
def test_a_tpu_that_is_not_here(capsys, short):
    rows = ("--config.sft.rows_per_batch=4", "--config.eval.rows_per_batch=4", "--config.data.max_train_dialogues=0")
    found = _plan(capsys, *short, *rows, "--topology=v5e:2x2", "--parts=train")
    assert found["fits"]
    assert found["num_devices"] == 4
    assert found["hbm_bytes"] == int(15.75 * 2**30)
    assert found["roofline"]["step_seconds_at_least"] > 0
    assert found["collectives"]


def test_a_search_ends_with_the_plan_of_what_it_found(capsys, short):
    found = _plan(capsys, *short, "--topology=cpu:1", "--parts=train", "--search", "--config.sft.rows_per_batch=1")
    assert found["largest_rows_per_batch"] == found["rows_per_batch"]
    tried = {plan["rows_per_batch"]: plan["fits"] for plan in found["searched"]}
    assert tried[found["rows_per_batch"]]
    assert max(tried) == found["rows_per_batch"]  # all that the data have: a step of theirs fits on any machine
